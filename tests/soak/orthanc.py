"""The integration tests with a real Orthanc, waiting a whole minute for a second round that must not come."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dicomnode.testing.orthanc import orthanc_is_installed

from .campaign import Broken, Rounds

TESTS = Path(__file__).parents[1] / "integration" / "test_orthanc.py"
REST_S = 60


class OrthancCampaign:
    """A round is all of ``tests/integration/test_orthanc.py``. ``run`` raises ``Broken`` where one fails."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rounds = Rounds.opened(folder, seed)

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        if not orthanc_is_installed():
            self.rounds.say("orthanc: left out, Orthanc is not installed")
            return []
        for number in numbers:
            if not self.rounds.has(number):
                began = time.monotonic()
                environment = {**os.environ, "DICOMNODE_PACS_REST_S": str(REST_S)}
                command = [sys.executable, "-m", "pytest", "-q", "--timeout=900", str(TESTS)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise Broken(done.stdout[-2000:])
                said = {"rest_s": REST_S, "seconds": round(time.monotonic() - began, 1)}
                self.rounds.passed(number, said)
                self.rounds.say(f"orthanc {number}: {said}")
        return [self.rounds.done[str(number)] for number in numbers]
