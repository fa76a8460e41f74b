"""From the last C-STORE to the report at the PACS, by stage: ``python benchmarks/loop.py [--rounds 3]``.

A real node on this machine, a repository of 24 phantom patients, a CT of 64 slices of 512 x 512 from a new patient
each round; then, where the shared images are (``DICOMNODE_SHARED``), a real one, once. The study-quiet time is
subtracted. Prints a markdown table of medians.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tarfile
import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study

QUIET_S = 2.0
ANSWER_S = 300.0
STAGE = re.compile(r'dicomnode_step_seconds_sum\{step="(\w+)"\} ([0-9.e+-]+)')


def stages(node: RunningNode) -> dict[str, float]:
    """Seconds so far by step of the workflow."""
    return {name: float(value) for name, value in STAGE.findall(node.get("/metrics")[1].decode())}


def real_study() -> list[Dataset]:
    """The shared 64-slice CT, empty where it is absent."""
    root = Path(__file__).parents[1].parent / "shared" / "data"
    archive = Path(os.environ.get("DICOMNODE_SHARED", root)) / "dicom" / "ct-chest-rider-64.tar.xz"
    if not archive.exists():
        return []
    with tarfile.open(archive) as tar:
        opened = [tar.extractfile(member) for member in tar.getmembers() if member.name.endswith(".dcm")]
        return [dcmread(BytesIO(file.read())) for file in opened if file is not None]


def new_patient(number: int, slices: int) -> list[Dataset]:
    """A phantom that the node has not seen."""
    return sample_study(slices, patient_id=f"BENCH-{number}", name=f"Bench^{number}", seed=900 + number, matrix=512)


def one_round(node: RunningNode, pacs: Pacs, study: Sequence[Dataset]) -> tuple[float, dict[str, float]]:
    """Seconds beyond the quiet time, and by stage, of one new patient's study."""
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
        rounds = [one_round(node, pacs, new_patient(n, arguments.slices)) for n in range(arguments.rounds)]
        real = real_study()
        once = one_round(node, pacs, real) if real else None
    names = [name for name, _ in sorted(rounds[0][1].items()) if any(stage[name] > 0 for _, stage in rounds)]
    print("| seconds | " + " | ".join(names) + " | last C-STORE to report, less the quiet time |")
    print("|---|" + "---|" * (len(names) + 1))
    medians = {name: statistics.median(stage[name] for _, stage in rounds) for name in names}
    total = statistics.median(seconds for seconds, _ in rounds)
    print(row(f"phantom, {arguments.slices} slices of 512 x 512, median of {len(rounds)}", names, medians, total))
    if once:
        print(row(f"real CT (RIDER), {len(real)} slices, once", names, once[1], once[0]))


def row(label: str, names: Sequence[str], stage: dict[str, float], total: float) -> str:
    """A line of the table."""
    return f"| {label} | " + " | ".join(f"{stage.get(name, 0.0):.2f}" for name in names) + f" | **{total:.1f}** |"


if __name__ == "__main__":
    main()
