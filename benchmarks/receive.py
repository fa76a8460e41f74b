"""How fast the receivers take objects, beside other receivers and the disk itself: python benchmarks/receive.py

Sends the same generated CT images of 0.5 MB with DCMTK's storescu to the node, to Orthanc and to ``storescp --fork``,
over one and over four associations, in rounds that take turns; then one large object and many in a row, for memory.
The node syncs every object, its folder and its row before it acknowledges. Prints markdown. Needs the Debian packages
dcmtk and orthanc (without orthanc its rows are left out).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from dicomnode.config import AETitle, Dicom, Peer
from dicomnode.scp.receiver import ReceiverOptions
from dicomnode.scp.server import bind_listener
from dicomnode.scp.spool import Spool
from dicomnode.scp.supervisor import python_module
from dicomnode.telemetry.heartbeat import read_beats

MB = 1_000_000
PDU = 131072  # the largest that DCMTK sends
STORESCU = ("storescu", "-aec", "DICOMNODE", "-R", "--max-send-pdu", str(PDU))
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}  # without it DCMTK waits 40 ms an object, on either side
START_S = 30.0
NODE, ORTHANC, STORESCP = "dicomnode", "Orthanc", "storescp --fork"
ORTHANC_LARGE = "Orthanc, PDUs of 128 KB"


def write_ct(path: Path, study: str, series: str, number: int) -> None:
    """One CT image of 512 x 512 x 16 bit."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.InstanceNumber = study, series, number
    ds.PatientID, ds.PatientName, ds.Modality = "BENCH", "BENCH^RECEIVE", "CT"
    ds.Rows = ds.Columns = 512
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = np.random.default_rng(number).integers(0, 4096, (512, 512), np.uint16).tobytes()
    _save(ds, path)


def write_large(path: Path, megabytes: int) -> None:
    """One multi-frame object of about ``megabytes`` MB."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.PatientID, ds.Modality = "BENCH", "CT"
    ds.NumberOfFrames = megabytes * 2
    ds.Rows = ds.Columns = 512
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = bytes(megabytes * MB)
    _save(ds, path)


def _save(ds: Dataset, path: Path) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)


class Receivers:
    """Receiver processes on a free port, and what they used."""

    def __init__(self, port: int, processes: list[subprocess.Popen[bytes]]) -> None:
        self.port = port
        self._processes = [psutil.Process(p.pid) for p in processes]

    def cpu_s(self) -> float:
        """CPU seconds so far of all receivers and of the children they started, ended ones too."""
        total = 0.0
        for process in (p for parent in self._processes for p in (parent, *parent.children(recursive=True))):
            with contextlib.suppress(psutil.NoSuchProcess):  # a fork that ended since: its parent counts it
                t = process.cpu_times()
                total += t.user + t.system + t.children_user + t.children_system
        return total

    def rss(self) -> float:
        """MB of the largest receiver now."""
        return max(p.memory_info().rss for p in self._processes) / MB


@contextmanager
def receivers(folder: Path, count: int) -> Iterator[Receivers]:
    """``count`` receivers that share a port, with their spool in ``folder``."""
    dicom = Dicom(
        receivers=count,
        ae_titles=(AETitle(title="DICOMNODE"),),
        peers=(Peer(name="bench", ae_title="STORESCU"),),
    )
    Spool.open(folder / "identified").close()  # as the node does before its receivers start
    listener = bind_listener("127.0.0.1", 0)
    processes = []
    for number in range(count):
        options = ReceiverOptions(f"receiver-{number}", folder / "identified", folder / "runtime", dicom)
        argv = python_module("dicomnode.scp.receiver", "--fd", str(listener.fileno()), "--options", options.to_json())
        processes.append(subprocess.Popen(argv, pass_fds=[listener.fileno()], stdout=subprocess.DEVNULL))
    try:
        while sum(b.live_and_ready for b in read_beats(folder / "runtime").values()) < count:
            if any(p.poll() is not None for p in processes):
                raise SystemExit("a receiver did not start")
            time.sleep(0.1)
        yield Receivers(listener.getsockname()[1], processes)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(30)
        listener.close()


@contextmanager
def node(folder: Path, count: int) -> Iterator[Receivers]:
    """The node's receivers."""
    with receivers(folder, count) as running:
        yield running


@contextmanager
def orthanc(folder: Path, pdu: int | None = None) -> Iterator[Receivers]:
    """Orthanc with its defaults, without its web side; it syncs each file too (SyncStorageArea).

    ``pdu`` is the length of PDUs that it takes; else its default, 16 KB.
    """
    port, settings = _free_port(), folder / "orthanc.json"
    folder.mkdir(parents=True)
    values = {
        "Name": "BENCH",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpServerEnabled": False,
        "DicomAet": "DICOMNODE",
        "DicomPort": port,
        "DicomAlwaysAllowStore": True,
        "DicomCheckModalityHost": False,
        "Plugins": [],
    } | ({} if pdu is None else {"MaximumPduLength": pdu})
    settings.write_text(json.dumps(values))
    with _program(["Orthanc", str(settings)], port) as running:
        yield running


@contextmanager
def storescp(folder: Path) -> Iterator[Receivers]:
    """DCMTK's receiver, a process for each association; it syncs nothing and keeps no index."""
    port = _free_port()
    folder.mkdir(parents=True)
    command = ["storescp", "--fork", "-aet", "DICOMNODE", "-od", str(folder), "--max-pdu", str(PDU), str(port)]
    with _program(command, port) as running:
        yield running


@contextmanager
def _program(command: list[str], port: int) -> Iterator[Receivers]:
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command[0]} did not start")
            time.sleep(0.05)
        yield Receivers(port, [process])
    finally:
        process.terminate()
        process.wait(START_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def send(port: int, folders: list[Path]) -> float:
    """Seconds that one storescu a folder, all at once, needs."""
    start = time.perf_counter()
    senders = [subprocess.Popen([*STORESCU, "+sd", "127.0.0.1", str(port), str(f)], env=ENVIRONMENT) for f in folders]
    codes = [sender.wait() for sender in senders]
    if any(codes):
        raise SystemExit(f"storescu failed: {codes}")
    return time.perf_counter() - start


@dataclass(slots=True)
class Rounds:
    """What was measured of one receiver with one number of associations."""

    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def disk_rate(folder: Path, source: Path, files: int) -> float:
    """Files a second that one writer can write and fdatasync, one after another: the ceiling of one association."""
    data = source.read_bytes()
    folder.mkdir(parents=True)
    start = time.perf_counter()
    for number in range(files):
        fd = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, data)
        os.fdatasync(fd)
        os.close(fd)
    rate = files / (time.perf_counter() - start)
    shutil.rmtree(folder)
    return rate


Start = Callable[[Path], AbstractContextManager[Receivers]]


def compared(base: Path, files: int, rounds: int, count: int) -> Iterator[str]:
    """The lines of the comparison: medians over rounds in which the receivers take turns."""
    contenders: dict[str, Start] = {NODE: partial(node, count=count), STORESCP: storescp}
    if shutil.which("Orthanc"):
        contenders |= {ORTHANC: orthanc, ORTHANC_LARGE: partial(orthanc, pdu=PDU)}
    inputs = {1: write_folders(base / "in-1", files, 1)}
    inputs[4] = write_folders(base / "in-4", files, 4)
    warm = write_folders(base / "warm", 40, 2)
    found = {(name, n): Rounds() for name in contenders for n in inputs}
    disk, loads = [], []
    for turn in range(rounds):
        disk.append(disk_rate(base / "disk", next(inputs[1][0].iterdir()), min(files, 100)))
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for associations, folders in inputs.items():
                loads.append(os.getloadavg()[0])
                place = (
                    base / f"run-{turn}-{name}-{associations}"
                )  # kept: ext4 creates slowly where much was just deleted
                with contenders[name](place) as running:
                    send(running.port, warm)
                    cpu = running.cpu_s()
                    seconds = send(running.port, folders)
                    sent = sum(len(list(f.iterdir())) for f in folders)
                    measured = found[name, associations]
                    measured.rates.append(sent / seconds)
                    measured.cpu_ms.append((running.cpu_s() - cpu) / sent * 1000)
    load = f"load {min(loads):.1f} to {max(loads):.1f}"
    yield f"{files} CT of 0.5 MB, median of {rounds} rounds in turn (least to most); {load}."
    yield f"The disk alone, one writer: {statistics.median(disk):.0f} files/s written and fdatasynced ({_span(disk)})."
    yield "storescp syncs nothing and keeps no index."
    yield ""
    yield "| receiver | associations | files/s | CPU ms/file | files/s to Orthanc's, a round |"
    yield "|---|---|---|---|---|"
    for associations in inputs:
        for name in contenders:
            of = found[name, associations]
            beside = found[ORTHANC, associations].rates if ORTHANC in contenders else []
            ratios = [mine / theirs for mine, theirs in zip(of.rates, beside, strict=bool(beside))]
            yield (
                f"| {name} | {associations} | **{statistics.median(of.rates):.0f}** ({_span(of.rates)}) "
                f"| {statistics.median(of.cpu_ms):.1f} ({_span(of.cpu_ms, 1)}) "
                f"| {f'{statistics.median(ratios):.2f}' if ratios else '-'} |"
            )


def _span(values: list[float], digits: int = 0) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def write_folders(base: Path, files: int, count: int) -> list[Path]:
    """``files`` CT images in ``count`` folders, each a study."""
    folders = [base / str(number) for number in range(count)]
    for folder in folders:
        folder.mkdir(parents=True)
        study, series = generate_uid(), generate_uid()
        for number in range(files // count):
            write_ct(folder / f"{number}.dcm", study, series, number)
    return folders


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300, help="objects a run (default 300)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the comparison (default 5)")
    parser.add_argument("--many", type=int, default=2000, help="instances of the memory run, 0 to leave it out")
    parser.add_argument("--large-mb", type=int, default=500, help="size of the large object, 0 to leave it out")
    parser.add_argument("--receivers", type=int, default=2, help="receiver processes of the node (default 2)")
    arguments = parser.parse_args()
    if shutil.which("storescu") is None:
        print("storescu is missing: apt-get install dcmtk", file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory(prefix="receive-") as name:
        base = Path(name)
        print(
            "\n".join(compared(base / "compared", arguments.files, arguments.rounds, arguments.receivers)), flush=True
        )
        if arguments.many:
            rows.append(rate(base / "many", arguments.many, 2, arguments.receivers))
        if arguments.large_mb:
            rows.append(large(base / "large", arguments.large_mb))
    if rows:
        print("\n| memory | files/s | MB/s | CPU ms/file | RSS before, MB | RSS after, MB |")
        print("|---|---|---|---|---|---|")
        print("\n".join(rows))
    return 0


def rate(base: Path, files: int, associations: int, count: int) -> str:
    """A row for ``files`` objects over ``associations`` at once."""
    folders = write_folders(base / "in", files, associations)
    each = files // associations
    (warm,) = write_folders(base / "warm", 20, 1)
    with receivers(base / "node", count) as running:
        for _ in range(2):
            send(running.port, [warm] * count)
        before, cpu = running.rss(), running.cpu_s()
        seconds = send(running.port, folders)
        cpu = running.cpu_s() - cpu
        sent = each * associations
        row = (
            f"| {sent} CT, {associations} association(s), {count} receivers | {sent / seconds:.0f} "
            f"| {sent * 0.525 / seconds:.0f} | {cpu / sent * 1000:.1f} | {before:.0f} | {running.rss():.0f} |"
        )
    shutil.rmtree(base)
    return row


def large(base: Path, megabytes: int) -> str:
    """A row for one large object; RSS after is the highest seen while it came in."""
    folder = base / "in"
    folder.mkdir(parents=True)
    write_large(folder / "large.dcm", megabytes)
    warm = base / "warm"
    warm.mkdir()
    write_ct(warm / "warm.dcm", generate_uid(), generate_uid(), 1)
    with receivers(base / "node", 1) as running:
        send(running.port, [warm])
        before, cpu = running.rss(), running.cpu_s()
        start = time.perf_counter()
        sender = subprocess.Popen(
            [*STORESCU, "127.0.0.1", str(running.port), str(folder / "large.dcm")],
            env=ENVIRONMENT,
        )
        highest = before
        while sender.poll() is None:
            highest = max(highest, running.rss())
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if sender.returncode:
            raise SystemExit(f"storescu failed: {sender.returncode}")
        cpu = running.cpu_s() - cpu
        return (
            f"| one object of {megabytes} MB | {1 / seconds:.2f} | {megabytes / seconds:.0f} | {cpu * 1000:.0f} "
            f"| {before:.0f} | {highest:.0f} |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
