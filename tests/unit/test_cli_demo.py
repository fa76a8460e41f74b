"""``make demo`` says the beginning of the report; ``KEEP=1`` keeps its node. The demo itself is run by CI."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dicomnode.cli.demo import CASE_LINE, KEEP, SHOWN_CASES, beginning

ROOT = Path(__file__).parents[2]


def test_the_first_cases_are_shown_and_the_verdict_before_them():
    case = [f"  {CASE_LINE}", "    rank: n"]
    tree = ["report", "  verdict: similar", *case * 5]
    assert beginning(tree) == tree[: 2 + 2 * SHOWN_CASES]
    assert beginning(tree[:4]) == tree[:4]
    assert beginning(["report", "  Query Image", "    Comment: Series 2", "    Subject UID: 2.25.1"]) == ["report"]


@pytest.mark.parametrize(("given", "kept"), [([], False), (["KEEP=1"], True)])
def test_make_hands_on_whether_the_node_is_kept(given, kept):
    command = ["make", "-n", "-s", "-o", "viewer", "demo", *given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    (line,) = [line for line in done.stdout.splitlines() if "dicomnode.cli.demo" in line]
    assert (KEEP in line) is kept
