"""A small fixed sample of each soak campaign; ``make soak`` plays them whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak.associations import AssociationsCampaign
from soak.clock import ClockCampaign, can_set_clock
from soak.full_disk import KINDS as DISK_KINDS
from soak.full_disk import FullDiskCampaign, can_mount
from soak.in_a_row import InARowCampaign
from soak.pacs_down import MOODS, OBJECTS, PacsDownCampaign
from soak.silent import DELAY_S, SilentCampaign
from soak.silent import KINDS as SILENT_KINDS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
SEED = 1


def test_associations_one_after_another_leave_nothing_behind(tmp_path: Path):
    (said,) = InARowCampaign(tmp_path, SEED, count=80).run([0])
    assert said["associations"] == 80
    assert {"receiver-0", "receiver-1", "worker", "web", "supervisor"} <= set(said["growth"])


def test_silent_clients_of_each_kind_delay_nobody(tmp_path: Path):
    said = SilentCampaign(tmp_path, SEED, patient=False, listen_s=0.3).run(range(len(SILENT_KINDS)))
    assert [s["kind"] for s in said] == list(SILENT_KINDS)
    assert all(s["worst_s"] <= s["usual_s"] + DELAY_S for s in said)


def test_200_associations_at_once_are_taken_or_told_the_limit(tmp_path: Path):
    (said,) = AssociationsCampaign(tmp_path, SEED, studies=0).run([0])
    assert said["held open"] == 64
    assert said["rejected with local limit exceeded"] == 136


def test_three_pacs_that_were_down_end_with_one_of_each_object(tmp_path: Path):
    (said,) = PacsDownCampaign(tmp_path, SEED, down_s=4.0, studies=1).run([0])
    assert said["objects at each PACS"] == len(OBJECTS)
    assert said["tries in vain"] >= len(MOODS)


@pytest.mark.skipif(not can_mount(), reason="mounting a small file system needs root")
def test_a_disk_that_was_full_costs_nothing_that_was_acknowledged(tmp_path: Path):
    (said,) = FullDiskCampaign(tmp_path, SEED, full_s=(2.0, 3.0)).run([DISK_KINDS.index("everything")])
    assert said["acknowledged"] + said["refused"] == 24


@pytest.mark.skipif(not can_set_clock(), reason="needs a C compiler")
def test_a_clock_that_is_set_back_stops_nothing(tmp_path: Path):
    (said,) = ClockCampaign(tmp_path, SEED, tries=2).run([0])
    assert said["set by_s"] == -300
