"""``python -m tests.soak [CAMPAIGN ...] [--rounds N] [--seed S] [--folder F]``: long campaigns on a real node.

Seeded, resumable (a campaign goes on after its last passed round), with a log in the folder of each.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .campaign import Broken
from .kill import KillCampaign

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "soak")
    a = parser.parse_args()
    KillCampaign(a.folder / "kill", a.seed).run(range(a.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
