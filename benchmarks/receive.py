"""How fast the receivers take objects, and how much memory they need: python benchmarks/receive.py

Sends generated CT images of 0.5 MB with DCMTK's storescu (TCP_NODELAY=1, without which it waits 40 ms an object),
over one and over four associations, then one large multi-frame object and many instances in a row. Every object is
synced and has its row before it is acknowledged. Prints a markdown table. Needs the Debian package dcmtk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from dicomnode.config import AETitle, Dicom, Peer
from dicomnode.scp.receiver import ReceiverOptions
from dicomnode.scp.server import bind_listener
from dicomnode.scp.supervisor import python_module
from dicomnode.telemetry.heartbeat import read_beats

MB = 1_000_000
STORESCU = ("storescu", "-aec", "DICOMNODE", "-R", "--max-send-pdu", "131072")


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
        """CPU seconds of all receivers so far."""
        return sum(t.user + t.system for t in (p.cpu_times() for p in self._processes))

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


def send(port: int, folders: list[Path]) -> float:
    """Seconds that one storescu a folder, all at once, needs."""
    environment = {**os.environ, "TCP_NODELAY": "1"}
    start = time.perf_counter()
    senders = [
        subprocess.Popen(
            [*STORESCU, "+sd", "127.0.0.1", str(port), str(f)],
            env=environment,
        )
        for f in folders
    ]
    codes = [sender.wait() for sender in senders]
    if any(codes):
        raise SystemExit(f"storescu failed: {codes}")
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300, help="objects a run (default 300)")
    parser.add_argument("--many", type=int, default=2000, help="instances of the memory run, 0 to leave it out")
    parser.add_argument("--large-mb", type=int, default=500, help="size of the large object, 0 to leave it out")
    parser.add_argument("--receivers", type=int, default=2, help="receiver processes (default 2)")
    arguments = parser.parse_args()
    if shutil.which("storescu") is None:
        print("storescu is missing: apt-get install dcmtk", file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory(prefix="receive-") as name:
        base = Path(name)
        rows += [rate(base / f"rate-{n}", arguments.files, n, arguments.receivers) for n in (1, 4)]
        if arguments.many:
            rows.append(rate(base / "many", arguments.many, 2, arguments.receivers))
        if arguments.large_mb:
            rows.append(large(base / "large", arguments.large_mb))
    print("| run | files/s | MB/s | CPU ms/file | RSS before, MB | RSS after, MB |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


def rate(base: Path, files: int, associations: int, count: int) -> str:
    """A row for ``files`` objects over ``associations`` at once."""
    folders = [base / f"in-{a}" for a in range(associations)]
    each = files // associations
    for folder in folders:
        folder.mkdir(parents=True)
        study, series = generate_uid(), generate_uid()
        for number in range(each):
            write_ct(folder / f"{number}.dcm", study, series, number)
    warm = base / "warm"
    warm.mkdir()
    for number in range(20):
        write_ct(warm / f"{number}.dcm", generate_uid(), generate_uid(), number)
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
            env={**os.environ, "TCP_NODELAY": "1"},
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
