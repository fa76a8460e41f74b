"""A small fixed sample of the kill campaign: SIGKILL of a receiver, the worker and all, in different phases."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak.kill import PHASES, VICTIMS, KillCampaign, Plan

pytestmark = pytest.mark.integration
SEED = 1
ROUNDS = (0, 1, 7, 14)  # receive; de-identify; embed; deliver; the last two once more during the recovery


def test_the_sample_strikes_different_phases_and_a_recovery() -> None:
    plans = [Plan.draw(SEED, number) for number in ROUNDS]
    assert len({p.phase for p in plans}) == len(ROUNDS) == len(PHASES) - 1
    assert {p.victim for p in plans} == set(VICTIMS)
    assert any(p.second_kill_s is not None for p in plans)


@pytest.mark.timeout(300)
def test_a_killed_node_loses_nothing_and_answers_once(tmp_path: Path) -> None:
    campaign = KillCampaign(tmp_path / "kill", SEED, slices=12, matrix=64, quiet_s=5.0)
    said = campaign.run(ROUNDS)
    assert [s["acknowledged"] + s["sent_again"] for s in said] == [12] * len(ROUNDS)
    assert all(s["deliveries"] >= 1 for s in said)
