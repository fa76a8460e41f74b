"""``make demo``: a node, a workstation and a PACS on this machine, from a study to a Structured Report.

Uses real cases where the shared images are (``DICOMNODE_SHARED``), what the test packages ship, and generated
phantoms, and says which. On a terminal, or with ``--keep`` (``make demo KEEP=1``), the node goes on serving until
Ctrl-C, SIGINT or SIGTERM. The whole tree of the report goes into a file, its beginning onto the screen.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import pydicom
from PIL import Image
from rich.console import Console

from dicomnode.deid.iod import is_image
from dicomnode.report.codes import Concept
from dicomnode.report.tree import sr_tree
from dicomnode.telemetry.logging import configure_logging
from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study, write_study

ROOT = Path(__file__).parents[2]
OUT = Path("demo-output")
ANSWER_S = 180.0
REAL_QUERY = "ct-chest-rider-64"
KEEP = "--keep"
SHOWN_CASES = 3  # of the report's tree; the rest is in its file
CASE_LINE = Concept.CASE.value[1]
LEFT_OUT = ("Language of", "Observer Type", "Device Observer", "Query Image", "Comment:", "Subject Class")
say = Console(highlight=False, soft_wrap=True).print


def shared_data() -> Path | None:
    """The shared images, None where they are absent."""
    folder = Path(os.environ.get("DICOMNODE_SHARED", ROOT.parent / "shared" / "data"))
    return folder if (folder / "dicom").is_dir() else None


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done, and how many seconds it took."""
    began = time.monotonic()
    say(f"[bold]{what}[/bold] ...")
    yield
    say(f"    {time.monotonic() - began:.1f} s")


def unpack(archive: Path, target: Path) -> Path:
    """Unpack one of the shared archives."""
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    return target / archive.name.removesuffix(".tar.xz")


def fill(node: RunningNode, work: Path) -> Path:
    """Put sample cases into the repository; returns the folder of the study to ask about."""
    with step("generating 24 phantom patients (marked synthetic)"):
        findings = sample_repository(work / "phantoms")
    with step("de-identifying, embedding and indexing the phantoms"):
        add(node, work / "phantoms", "--findings", findings)
    shipped = shipped_images(work / "packages")
    with step("indexing the CT and MR images that the packages pydicom and pydicom-data ship"):
        add(node, shipped)
    shared = shared_data()
    if shared is None:
        say("the shared images are absent (DICOMNODE_SHARED): phantoms and package images only")
        study = sample_study(24, patient_id="DEMO-25", name="Demo^Query", finding="consolidation", seed=99)
        write_study(study, work / "query")
        return work / "query"
    archives = sorted((shared / "dicom").glob("*.tar.xz"))
    folders = {a.name.removesuffix(".tar.xz"): unpack(a, work / "real") for a in archives}
    with step(f"indexing real cases: {', '.join(n for n in folders if n != REAL_QUERY)}"):
        real = [f for n, f in folders.items() if n != REAL_QUERY]
        add(node, *real, "--findings", shared / "dicom" / "findings.csv")
    if (shared / "covid-ct" / "labels.csv").exists():
        with step("indexing the labelled images of COVID-CT"):
            add(node, shared / "covid-ct" / "labels.csv")
    return folders[REAL_QUERY]


def add(node: RunningNode, *arguments: str | Path) -> None:
    """``dicomnode index add``; what was skipped or held is said, and does not end the demo."""
    done = node.run("index", "add", *arguments)
    for line in done.stdout.splitlines():
        say(f"    {line}", markup=False)
    notes = done.stderr.splitlines()
    for line in (n for n in notes if n.startswith("error:")):
        say(f"    {line}", markup=False)
    if any(n.startswith(("skipped:", "quarantine ")) for n in notes):
        say("    (some files were left out, as 'dicomnode index add' says of each: no images, or not safe to keep)")
    if "error:" in done.stderr:
        raise SystemExit(1)


def shipped_images(target: Path) -> Path:
    """CT and MR images of the installed packages pydicom and pydicom-data, copied into one folder."""
    target.mkdir(parents=True)
    folders = [Path(pydicom.__file__).parent / "data" / "test_files"]
    if find_spec("data_store") is not None:
        import data_store

        folders.append(Path(data_store.__file__).parent / "data")
    for path in sorted(p for folder in folders for p in folder.rglob("*.dcm")):
        try:
            ds = pydicom.dcmread(path, specific_tags=["Modality", "SOPClassUID"], stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError, ValueError, AttributeError):
            continue
        if ds.get("Modality") in ("CT", "MR") and is_image(str(ds.get("SOPClassUID", ""))):
            shutil.copy(path, target / f"{path.parent.name}-{path.name}")
    return target


def ask(node: RunningNode, pacs: Pacs, study: Path) -> tuple[Path, Path]:
    """Play the workstation; returns the report and the contact sheet that came back to the PACS."""
    files = sorted(p for p in study.rglob("*.dcm"))
    with step(f"the workstation sends {len(files)} images (C-STORE), the PACS waits for the answer"):
        statuses = Workstation().send(files, "127.0.0.1", node.dicom_port)
        if any(statuses):
            raise SystemExit("the node refused images")
        sent = time.monotonic()
        received = pacs.wait_for(2, ANSWER_S)
        say(f"    answer after {time.monotonic() - sent:.1f} s, 2 s of them the study-quiet time")
    by_modality = {pydicom.dcmread(p, stop_before_pixels=True).Modality: p for p in received}
    return by_modality["SR"], by_modality["OT"]


def seconds_by_step(node: RunningNode) -> None:
    """Print where the seconds went, from the node's own metrics."""
    sums = {}
    for line in node.get("/metrics")[1].decode().splitlines():
        if line.startswith("dicomnode_step_seconds_sum"):
            sums[line.split('"')[1]] = float(line.split()[-1])
    say("seconds by step: " + ", ".join(f"{k} {v:.2f}" for k, v in sums.items() if v > 0))


def show(node: RunningNode, sr: Path, sheet: Path) -> None:
    """Write the three files, print the tree, the link and what the validators say."""
    OUT.mkdir(exist_ok=True)
    shutil.copy(sr, OUT / "sr.dcm")
    shutil.copy(sheet, OUT / "contact-sheet.dcm")
    Image.fromarray(pydicom.dcmread(sheet).pixel_array).save(OUT / "contact-sheet.png")
    tree = sr_tree(pydicom.dcmread(sr))
    (OUT / "sr.txt").write_text("\n".join(tree) + "\n", "utf-8")
    say("[bold]the report that came back[/bold]")
    for line in beginning(tree):
        say(f"    {line}", markup=False)
    say(f"    ... the whole tree, {len(tree)} lines: {OUT / 'sr.txt'}")
    seconds_by_step(node)
    validators = ROOT / "tests" / "validators.py"
    if validators.exists():
        say("[bold]validators look at the report and the contact sheet[/bold] ...")
        command = [sys.executable, str(validators), str(OUT / "sr.dcm"), str(OUT / "contact-sheet.dcm")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own script
        for line in done.stdout.splitlines():
            say(f"    {line}", markup=False)
        if done.returncode:
            raise SystemExit(1)
    results = node.json("results", "list")["results"]
    link = node.json("results", "show", str(results[0]["id"]))["link"]
    say(f"files: {', '.join(str(OUT / n) for n in ('sr.dcm', 'sr.txt', 'contact-sheet.dcm', 'contact-sheet.png'))}")
    say(f"link in the report: {link}")


def beginning(tree: list[str]) -> list[str]:
    """The verdict and the first cases of a report's tree, without what identifies its objects."""
    cases = [n for n, line in enumerate(tree) if CASE_LINE in line]
    first = tree[: cases[SHOWN_CASES]] if len(cases) > SHOWN_CASES else tree
    return [line for line in first if " UID: " not in line and not line.strip().startswith(LEFT_OUT)]


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM and SIGINT alike, a background job's too, whose shell has SIGINT ignored: node and folder go."""
    raise KeyboardInterrupt


def run(*, keep_serving: bool) -> None:
    """The whole demo."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    configure_logging("warning", libraries=False)  # pydicom warns of the odd values of its own test files
    with tempfile.TemporaryDirectory(prefix="dicomnode-demo-") as tmp:
        work = Path(tmp)
        with Pacs(folder=work / "pacs") as pacs:
            node = RunningNode(work / "node", pacs, quiet_s=2, objects=("sr", "contact-sheet"))
            try:
                with step("starting a node (receivers, worker, web)"):
                    node.start()
                study = fill(node, work)
                status = node.json("index", "status")
                say(
                    f"repository: {json.dumps({k: status[k] for k in ('studies', 'patients', 'instances', 'vectors')})}"
                )
                show(node, *ask(node, pacs, study))
                if keep_serving:
                    say(f"the node goes on serving, its page is {node.url}/v/ ; Ctrl-C ends it")
                    while True:
                        time.sleep(1)
            except KeyboardInterrupt:
                say("stopped")
            finally:
                node.stop()
    if not keep_serving:
        say("the demo's node has stopped, its link leads nowhere now; to keep node and page: make demo KEEP=1")


if __name__ == "__main__":
    run(keep_serving=KEEP in sys.argv[1:] or (sys.stdin.isatty() and sys.stdout.isatty()))
