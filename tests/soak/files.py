"""Every file of pydicom, pydicom-data and deid-data through ``dicomnode deid`` as delivered, text in pixels looked for.

It passes with its pixels, masked or not, or says by a documented word why not; nothing crashes. A round is a part of
the files.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dicomnode.config import Settings
from dicomnode.node import Node
from tests import corpora

from .campaign import Broken, Rounds

PARTS = 12
CRASHES = ("deid-failed",)  # a documented word, too, but no answer to a file


class FilesCampaign:
    """``PARTS`` rounds are all files. ``run`` raises ``Broken`` where one is lost, changed, or ends in a fault."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        for number in numbers:
            if not self.rounds.has(number):
                said = self._round(number, self.folder / f"round-{number}-{time.time_ns()}")
                self.rounds.passed(number, said)
                self.rounds.say(f"files {number}: {said}")
        return [self.rounds.done[str(number)] for number in numbers]

    def _round(self, number: int, folder: Path) -> dict[str, Any]:
        files = sorted(file for root in corpora.folders() for file in root.rglob("*") if file.is_file())
        began, seen, reasons = time.monotonic(), 0, Counter[str]()
        with closing(Node(Settings(node={"data_dir": folder / "var"}))) as node:
            for place, file in enumerate(files[number % PARTS :: PARTS]):
                # Each into a folder of its own: some are one object in several encodings.
                for row, original in corpora.deidentified_pairs(node, [file], folder / "out" / str(place)):
                    self._settled(row, original)
                    reasons[row.reason.split(":")[0] or row.status] += 1
                    seen += 1
        return {"files": seen, "reasons": dict(reasons), "seconds": round(time.monotonic() - began, 1)}

    @staticmethod
    def _settled(row: corpora.Row, original: Path) -> None:
        try:
            corpora.assert_settled(row, original)
        except AssertionError as exc:
            raise Broken(f"{original.name}: {exc}") from exc
        if row.reason.split(":")[0] in CRASHES:
            raise Broken(f"{original.name}: {row.reason}")
