"""``python -m tests.soak [CAMPAIGN ...] [--rounds N] [--seed S] [--folder F]``: long campaigns on a real node.

Seeded and resumable: a campaign goes on after its last passed round; ``FOLDER/CAMPAIGN`` holds its state and its log,
``FOLDER/summary.md`` a table of all. ``--page`` also puts the table into docs/endurance.md; ``--only-summary`` plays
nothing. Exit 1 where a promise of the node was not kept.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .associations import AssociationsCampaign
from .campaign import Broken
from .clock import STEPS_S, ClockCampaign
from .files import PARTS as FILE_PARTS
from .files import FilesCampaign
from .flapping import FlappingCampaign
from .full_disk import FullDiskCampaign
from .in_a_row import InARowCampaign
from .kill import KillCampaign
from .orthanc import OrthancCampaign
from .pacs_down import PacsDownCampaign
from .silent import KINDS as SILENT_KINDS
from .silent import SilentCampaign
from .summary import PART, summary, write_page
from .takeover import TakeoverCampaign

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / "soak"
PAGE = ROOT / "docs" / "endurance.md"
CAMPAIGNS: dict[str, tuple[Callable[[Path, int], Any], int]] = {  # and the rounds of a usual night
    "kill": (KillCampaign, 200),
    "full-disk": (FullDiskCampaign, 50),
    "flapping": (FlappingCampaign, 3),
    "pacs-down": (PacsDownCampaign, 1),
    "clock": (ClockCampaign, len(STEPS_S)),
    "associations": (AssociationsCampaign, 2),
    "in-a-row": (InARowCampaign, 1),
    "orthanc": (OrthancCampaign, 1),
    "silent": (SilentCampaign, 2 * len(SILENT_KINDS)),
    "takeover": (TakeoverCampaign, 1),
    "files": (FilesCampaign, FILE_PARTS),
}


def main() -> int:
    """Run the campaigns that were asked for, all when none was."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", nargs="*", choices=[*CAMPAIGNS, []], help="which (default: all)")
    parser.add_argument("--rounds", type=int, help="rounds of each (default: its own)")
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        help="round to begin with: parts may run side by side, each in a folder of its own",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--page", action="store_true", help="write the table into docs/endurance.md too")
    parser.add_argument("--only-summary", action="store_true", help="play nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nodes are stopped, disks unmounted; run again to go on
    failed = 0
    for name in () if arguments.only_summary else arguments.campaign or CAMPAIGNS:
        campaign, usual = CAMPAIGNS[name]
        rounds = arguments.rounds or usual
        folder = arguments.folder / (f"{name}{PART}{arguments.first}" if arguments.first else name)
        try:
            campaign(folder, arguments.seed).run(range(arguments.first, rounds))
        except Broken as exc:
            with (folder / "soak.log").open("a") as log:
                log.write(f"FAILED: {exc}\n")
            sys.stdout.write(f"{name}: FAILED: {exc}\n")
            failed += 1
        else:
            sys.stdout.write(f"{name}: {rounds} rounds passed\n")
    table = summary(arguments.folder)
    (arguments.folder / "summary.md").write_text(table, "utf-8")
    sys.stdout.write(table)
    if arguments.page:
        write_page(PAGE, table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
