"""From the last C-STORE to the report at the PACS, by stage: ``python benchmarks/loop.py [--rounds 3]``.

A real node on this machine, a repository of 24 phantom patients, a CT of 64 slices of 512 x 512 from a new patient
each round. The study-quiet time is subtracted. Prints a markdown table of medians.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path

from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study

QUIET_S = 2.0
ANSWER_S = 300.0
STAGE = re.compile(r'dicomnode_step_seconds_sum\{step="(\w+)"\} ([0-9.e+-]+)')


def stages(node: RunningNode) -> dict[str, float]:
    """Seconds so far by step of the workflow."""
    return {name: float(value) for name, value in STAGE.findall(node.get("/metrics")[1].decode())}


def one_round(node: RunningNode, pacs: Pacs, number: int, slices: int) -> tuple[float, dict[str, float]]:
    """Seconds beyond the quiet time, and by stage, of one new patient's study."""
    study = sample_study(slices, patient_id=f"BENCH-{number}", name=f"Bench^{number}", seed=900 + number, matrix=512)
    before, had = stages(node), len(pacs.received)
    if any(Workstation().send(study, "127.0.0.1", node.dicom_port)):
        raise SystemExit("the node refused images")
    sent = time.monotonic()
    pacs.wait_for(had + 1, ANSWER_S)
    seconds = time.monotonic() - sent - QUIET_S
    time.sleep(1)  # the metrics of the last step are written when it has ended
    after = stages(node)
    return seconds, {name: after[name] - before.get(name, 0.0) for name in after}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slices", type=int, default=64)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as tmp,
        Pacs() as pacs,
        RunningNode(Path(tmp) / "node", pacs, quiet_s=QUIET_S) as node,
    ):
        findings = sample_repository(Path(tmp) / "repository", slices=8, matrix=128)
        node.run("index", "add", Path(tmp) / "repository", "--findings", findings)
        rounds = [one_round(node, pacs, n, arguments.slices) for n in range(arguments.rounds)]
    total = statistics.median(seconds for seconds, _ in rounds)
    names = [name for name, _ in sorted(rounds[0][1].items()) if any(stage[name] > 0 for _, stage in rounds)]
    print(f"{arguments.slices} slices of 512 x 512, median of {arguments.rounds} rounds\n")
    print("| | " + " | ".join(names) + " | last C-STORE to report, less the quiet time |")
    print("|---|" + "---|" * (len(names) + 1))
    medians = [statistics.median(stage[name] for _, stage in rounds) for name in names]
    print("| seconds | " + " | ".join(f"{m:.2f}" for m in medians) + f" | **{total:.1f}** |")


if __name__ == "__main__":
    main()
