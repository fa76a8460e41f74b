"""What the whole-node tests share: DCMTK's programs, raw C-STORE, waiting, and reading a report's content tree."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE

from dicomnode.archive.quarantine import Item
from dicomnode.config import load_settings
from dicomnode.node import Node
from dicomnode.scp.schema import JobState
from dicomnode.testing import RunningNode, free_port

HOST = "127.0.0.1"
ANSWER_S = 60.0
SETTLED_S = 300.0  # thousands of images on a slow machine
# Without TCP_NODELAY DCMTK waits 40 ms an object; its own character sets are not ours.
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], seconds: float = ANSWER_S) -> T:
    """The first true value of ``condition``; fails with ``what`` where none comes in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"did not happen in {seconds:.0f} s: {what}"
        time.sleep(0.1)
    return value


def storescu(node: RunningNode, *paths: Path, called: str = "DICOMNODE", calling: str = "STORESCU") -> None:
    """Send files with DCMTK; any status but 0000 fails."""
    addressing = ["-aec", called, "-aet", calling, HOST, str(node.dicom_port)]
    done = subprocess.run(
        ["storescu", *addressing, *map(str, paths)], capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 0, done.stderr


class Storescp:
    """DCMTK's storage SCP. ``RunningNode`` takes it as a PACS.

    It writes what it receives bit by bit, and moves each object into ``folder`` once it is whole: half a report can be
    read, too, and lacks cases.
    """

    def __init__(self, folder: Path, ae_title: str = "PACS") -> None:
        self.folder = folder
        self.ae_title = ae_title
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        coming = self.folder.with_name(f"{self.folder.name}-coming")
        for folder in (self.folder, coming):
            folder.mkdir(parents=True, exist_ok=True)
        moved = ["-xcr", f"mv #p/#f {self.folder}", "-xs"]
        self._process = subprocess.Popen(
            ["storescp", "-aet", self.ae_title, "-od", str(coming), "+B", *moved, str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)

    def of_study(self, study_uid: str) -> list[Path]:
        """Objects of one study received so far, oldest first."""
        found = []
        for path in sorted(self.folder.iterdir(), key=lambda p: p.stat().st_mtime):
            ds = dcmread(path, stop_before_pixels=True)
            if ds.get("StudyInstanceUID") == study_uid and "ContentSequence" in ds:
                found.append(path)
        return found


def send_raw(
    node: RunningNode, sop_class: str, sop_uid: str, data: bytes, *, syntax: str = ExplicitVRLittleEndian
) -> int:
    """C-STORE of bytes as they are, DICOM or not; returns the status."""
    ae = AE(ae_title="WORKSTATION")
    ae.add_requested_context(sop_class, syntax)
    assoc = ae.associate(HOST, node.dicom_port, ae_title="DICOMNODE")
    assert assoc.is_established
    request = C_STORE()
    request.MessageID, request.Priority = 1, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, sop_uid
    request.DataSet = BytesIO(data)
    assoc._reactor_checkpoint.clear()  # as pynetdicom's own send_c_store, which encodes data sets only
    while not assoc._is_paused:
        time.sleep(0.001)
    assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
    _, response = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    assoc.release()
    assert response is not None, "no answer to C-STORE"
    return int(response.Status)


def dataset_bytes(path: Path) -> bytes:
    """The encoded data set of a file, without preamble and file meta information."""
    raw = path.read_bytes()
    group_length = int.from_bytes(raw[140:144], "little")
    return raw[144 + group_length :]


def opened(node: RunningNode) -> Node:
    """The parts of a node over its folder, as a command beside it would open them."""
    return Node(load_settings(node.settings))


def held(node: RunningNode, reason: str, count: int = 1) -> list[Item]:
    """Wait until ``count`` items are held for a reason."""
    quarantine = opened(node).quarantine

    def items() -> list[Item]:
        found = [i for i in quarantine.items(state="held") if i.reason == reason]
        return found if len(found) >= count else []

    return wait_for(f"{count} held as {reason}", items)


def settled(node: RunningNode) -> None:
    """Wait until nothing is on its way: no study, no job, no result."""
    parts = opened(node)
    moving = (JobState.QUEUED, JobState.RUNNING, JobState.ANSWERED)
    wait_for(
        "everything settled",
        lambda: not parts.spool.pending() and not parts.spool.job_ids(*moving) and parts.answers.count_pending() == 0,
        SETTLED_S,
    )


def spooled(node: RunningNode) -> list[Path]:
    """Originals in the spool."""
    return sorted((node.var / "identified" / "spool").iterdir())


def reports(paths: Iterable[Path], study_uid: str) -> list[Dataset]:
    """The Structured Reports of one study among received files."""
    read = [dcmread(p) for p in paths]
    return [ds for ds in read if ds.StudyInstanceUID == study_uid and "ContentSequence" in ds]


def concept(item: Dataset) -> str:
    """Code value of an item's concept name."""
    return str(item.ConceptNameCodeSequence[0].CodeValue) if "ConceptNameCodeSequence" in item else ""


def children(item: Dataset, code: str) -> list[Dataset]:
    """Direct content items with a concept."""
    return [c for c in item.get("ContentSequence", []) if concept(c) == code]


def walk(item: Dataset) -> Iterator[Dataset]:
    """The item and every content item below it."""
    yield item
    for child in item.get("ContentSequence", []):
        yield from walk(child)


def cases(sr: Dataset) -> list[Dataset]:
    """The case containers of a report (DN-001), in order."""
    return children(sr, "DN-001")


def subjects(sr: Dataset) -> list[str]:
    """Pseudonyms of the cases (DCM 121030 Subject ID), in order."""
    return [str(c.TextValue) for case in cases(sr) for c in children(case, "121030")]


def finding_codes(sr: Dataset) -> set[tuple[str, str]]:
    """(scheme, code) of every coded finding (DN-004)."""
    coded = [c.ConceptCodeSequence[0] for case in cases(sr) for c in children(case, "DN-004") if c.ValueType == "CODE"]
    return {(str(c.CodingSchemeDesignator), str(c.get("CodeValue") or c.get("LongCodeValue"))) for c in coded}


def peer(name: str, ae_title: str, port: int, *, results: bool = True, objects: Sequence[str] = ()) -> str:
    """One more ``[[dicom.peers]]`` for a node's settings."""
    listed = "[" + ", ".join(f'"{o}"' for o in objects) + "]"
    return (
        f'[[dicom.peers]]\nname = "{name}"\nae_title = "{ae_title}"\nport = {port}\n'
        f"results = {str(results).lower()}\nobjects = {listed}\n"
    )


def json_keys(value: Any, *keys: str) -> bool:
    """Whether an object has all the keys."""
    return isinstance(value, dict) and set(keys) <= set(value)
