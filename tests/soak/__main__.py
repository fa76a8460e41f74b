"""``python -m tests.soak [CAMPAIGN ...] [--rounds N] [--seed S] [--folder F]``: long campaigns on a real node.

Campaigns: kill, full-disk, flapping, associations. Seeded and resumable: a campaign goes on after its last passed
round; ``FOLDER/CAMPAIGN`` holds its state and its log. Exit 1 where a promise of the node was not kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .associations import AssociationsCampaign
from .campaign import Broken
from .flapping import FlappingCampaign
from .full_disk import FullDiskCampaign
from .kill import KillCampaign

FOLDER = Path(__file__).parents[2] / ".cache" / "soak"
CAMPAIGNS: dict[str, tuple[Callable[[Path, int], Any], int]] = {  # and the rounds of a usual night
    "kill": (KillCampaign, 25),
    "full-disk": (FullDiskCampaign, 3),
    "flapping": (FlappingCampaign, 3),
    "associations": (AssociationsCampaign, 2),
}


def main() -> int:
    """Run the campaigns that were asked for, all when none was."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", nargs="*", choices=[*CAMPAIGNS, []], help="which (default: all)")
    parser.add_argument("--rounds", type=int, help="rounds of each (default: its own)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.campaign or CAMPAIGNS:
        campaign, usual = CAMPAIGNS[name]
        rounds = arguments.rounds or usual
        try:
            campaign(arguments.folder / name, arguments.seed).run(range(rounds))
        except Broken as exc:
            sys.stdout.write(f"{name}: FAILED: {exc}\n")
            failed += 1
        else:
            sys.stdout.write(f"{name}: {rounds} rounds passed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
