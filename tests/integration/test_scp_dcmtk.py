"""The receivers against DCMTK's programs, strace, kill -9, a full disk and TLS."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from dicomnode.config import AETitle, Dicom, Peer, Tls
from dicomnode.errors import PeerError
from dicomnode.scp.receiver import ReceiverOptions
from dicomnode.scp.server import FIRST_PDU_S, bind_listener
from dicomnode.scp.spool import Spool
from dicomnode.scp.supervisor import ChildSpec, Supervisor, python_module
from dicomnode.scu.send import Timeouts, send_files
from dicomnode.telemetry.heartbeat import read_beats

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("storescu") is None, reason="needs the Debian package dcmtk"),
]
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}  # without it DCMTK waits 40 ms an object


def write_image(path: Path, study: str, *, uid: str | None = None, megabytes: float = 0.02) -> str:
    ds = Dataset()
    large = megabytes > 1
    ds.SOPClassUID = EnhancedCTImageStorage if large else CTImageStorage
    ds.SOPInstanceUID = uid or generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, study + ".1"
    ds.PatientID = "SECRET-ID"
    ds.Rows = ds.Columns = 100
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 7, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.NumberOfFrames = int(megabytes * 100)
    ds.PixelData = bytes(int(megabytes * 100) * 10_000)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return str(ds.SOPInstanceUID)


class Node:
    """Receivers under a supervisor on a free port."""

    def __init__(self, base: Path, port: int, supervisor: Supervisor, identified: Path) -> None:
        self.port = port
        self.identified = identified
        self.runtime = base / "runtime"
        self.supervisor = supervisor

    def pids(self) -> list[int]:
        return list(self.supervisor.pids().values())

    def storescu(self, *arguments: str, called: str = "DICOMNODE", calling: str = "STORESCU", check: bool = True):
        command = [
            "storescu",
            "-aec",
            called,
            "-aet",
            calling,
            *arguments[:-1],
            "127.0.0.1",
            str(self.port),
            arguments[-1],
        ]
        return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=check, timeout=120)

    def wait_ready(self, count: int) -> None:
        wait_until(lambda: sum(b.live_and_ready for b in read_beats(self.runtime).values()) == count)

    def spool(self) -> Spool:
        return Spool.open(self.identified)


def wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


@contextmanager
def running(
    base: Path, *, receivers: int = 1, identified: Path | None = None, reserve: int = 0, tls: Tls | None = None, wrap=()
) -> Iterator[Node]:
    dicom = Dicom(
        receivers=receivers,
        ae_titles=(AETitle(title="DICOMNODE"), AETitle(title="ASK", role="query")),
        peers=(Peer(name="ct", ae_title="STORESCU"), Peer(name="probe", ae_title="ECHOSCU", services=("echo",))),
        tls=tls or Tls(),
    )
    identified = identified or base / "identified"
    listener = bind_listener("127.0.0.1", 0)
    specs = []
    for number in range(receivers):
        options = ReceiverOptions(f"receiver-{number}", identified, base / "runtime", dicom, (), reserve, 5.0)
        argv = python_module("dicomnode.scp.receiver", "--fd", str(listener.fileno()), "--options", options.to_json())
        specs.append(ChildSpec(options.name, [*wrap, *argv], pass_fds=[listener.fileno()]))
    supervisor = Supervisor(specs, grace_s=15)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    node = Node(base, listener.getsockname()[1], supervisor, identified)
    try:
        node.wait_ready(receivers)
        yield node
    finally:
        supervisor.request_stop()
        thread.join(30)
        listener.close()


def test_echoscu_and_storescu_are_served_and_strangers_are_not(tmp_path):
    write_image(tmp_path / "a.dcm", "1.2.3")
    with running(tmp_path) as node:

        def echo(calling: str, called: str) -> int:
            command = ["echoscu", "-aet", calling, "-aec", called, "127.0.0.1", str(node.port)]
            return subprocess.run(command, capture_output=True, timeout=30).returncode

        assert echo("ECHOSCU", "DICOMNODE") == 0
        assert echo("STRANGER", "DICOMNODE") != 0
        assert echo("ECHOSCU", "OTHER") != 0
        assert node.storescu(str(tmp_path / "a.dcm")).returncode == 0
        assert node.storescu(str(tmp_path / "a.dcm"), called="ASK").returncode == 0
        refused = node.storescu("-v", str(tmp_path / "a.dcm"), calling="ECHOSCU", check=False)
        assert "0x124" in refused.stderr
        assert node.storescu(str(tmp_path / "a.dcm"), calling="STRANGER", check=False).returncode != 0
        spool = node.spool()
        assert len(spool.pending()) == 2  # one a role
        spool.close()


def test_what_the_peer_gets_back_from_us_is_what_we_hold(tmp_path):
    """Our SCU against DCMTK's storescp, which writes the data set as it came."""
    write_image(tmp_path / "a.dcm", "1.2.3")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "out").mkdir()
    process = subprocess.Popen(["storescp", "-aet", "PACS", "+B", "-od", str(tmp_path / "out"), str(port)])
    try:
        peer = Peer(name="pacs", ae_title="PACS", port=port)
        wait_until(lambda: listening(port))
        send_files([tmp_path / "a.dcm", (tmp_path / "a.dcm").read_bytes()], peer, "DICOMNODE")
    finally:
        process.terminate()
        process.wait()
    (kept,) = (tmp_path / "out").iterdir()
    assert dcmread(kept) == dcmread(tmp_path / "a.dcm")
    with pytest.raises(PeerError, match="pacs"):
        send_files([tmp_path / "a.dcm"], peer, "DICOMNODE", Timeouts(connect=2))


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs the Debian package strace")
def test_file_folder_and_journal_are_synced_in_this_order_before_the_response_leaves(tmp_path):
    trace = tmp_path / "trace"
    write_image(tmp_path / "a.dcm", "1.2.3")
    calls = "trace=fsync,fdatasync,sendto,sendmsg"
    with running(tmp_path, wrap=["strace", "-D", "-f", "-y", "-tt", "-o", str(trace), "-e", calls]) as node:
        assert node.storescu(str(tmp_path / "a.dcm")).returncode == 0  # the first store creates the journal
        trace_before = len(trace.read_text().splitlines())
        write_image(tmp_path / "b.dcm", "1.2.3")
        assert node.storescu(str(tmp_path / "b.dcm")).returncode == 0
        wait_until(lambda: len(sends(trace.read_text().splitlines()[trace_before:])) >= 3)  # AC, response, release
    lines = trace.read_text().splitlines()[trace_before:]
    # Of what is sent on the socket, the second is the C-STORE response: P-DATA-TF is PDU type 04 (PS3.8 9.3.5).
    response = next(i for i, line in enumerate(lines) if re.search(r'send(to|msg)\(\d+<(TCP|socket).*"\\4\\0', line))
    order = []
    for line in lines[:response]:
        if found := re.search(r"f(data)?sync\(\d+<([^>]+)>", line):
            target = Path(found.group(2))
            order.append("file" if target.suffix == ".dcm" else target.name)
    assert order == ["file", "spool", "spool.sqlite3-wal"]
    unfinished = [line for line in lines[:response] if "sync" in line and "unfinished" in line]
    resumed = [line for line in lines[:response] if "sync resumed" in line]
    assert len(unfinished) == len(resumed)  # each had returned before the response was sent


def sends(lines: list[str]) -> list[str]:
    return [line for line in lines if re.search(r"send(to|msg)\(\d+<(TCP|socket)", line)]


def test_every_acknowledged_instance_survives_kill_9_under_load(tmp_path):
    """Ten kills at random moments; a sender notes what was acknowledged; nothing acknowledged may be missing."""
    rng = random.Random(20)
    folder = tmp_path / "in"
    folder.mkdir()
    uids = [write_image(folder / f"{n}.dcm", "1.2.3", megabytes=0.3) for n in range(40)]
    paths = [folder / f"{n}.dcm" for n in range(40)]
    acknowledged: set[str] = set()
    stop = threading.Event()

    def send_for_ever(port: int, offset: int) -> None:
        peer = Peer(name="node", ae_title="DICOMNODE", port=port)
        number = offset
        while not stop.is_set():
            try:
                send_files([paths[number % 40]], peer, "STORESCU", Timeouts(10, 10, 10))
            except PeerError:
                continue  # not acknowledged: sent again
            acknowledged.add(uids[number % 40])
            number += 1

    with running(tmp_path, receivers=2) as node:
        senders = [threading.Thread(target=send_for_ever, args=(node.port, offset)) for offset in (0, 20)]
        for sender in senders:
            sender.start()
        for _ in range(10):
            time.sleep(rng.uniform(0.2, 0.8))
            wait_until(node.pids)
            os.kill(rng.choice(node.pids()), signal.SIGKILL)
        time.sleep(0.5)
        stop.set()
        for sender in senders:
            sender.join(60)
    spool = node.spool()
    swept = spool.sweep()
    assert swept.missing == ()
    (study,) = spool.pending()
    held = {i.sop_uid: i for i in spool.job(spool.claim(study.study_id)).instances}
    assert acknowledged
    assert acknowledged <= set(held)
    for number, uid in enumerate(uids):
        if uid in held:
            assert held[uid].path.read_bytes().endswith(paths[number].read_bytes()[-300_000:])
            assert held[uid].version == 1
    spool.close()


def test_a_full_disk_answers_a700_keeps_nothing_half_and_recovers(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        write_image(tmp_path / "big.dcm", "1.2.3", megabytes=20)
        write_image(tmp_path / "small.dcm", "1.2.3")
        with running(tmp_path, identified=mount / "identified") as node:
            result = node.storescu("-v", str(tmp_path / "big.dcm"), check=False)
            assert (
                "a700" in (result.stdout + result.stderr).lower() or "OutOfResources" in result.stdout + result.stderr
            )
            objects = mount / "identified" / "spool"
            assert list(objects.iterdir()) == []
            assert node.storescu(str(tmp_path / "small.dcm")).returncode == 0
            ballast = mount / "ballast"  # to the last byte: not even the database has room
            with pytest.raises(OSError, match="space"), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            for number in range(3):
                write_image(tmp_path / "more.dcm", f"1.2.4.{number}")
                result = node.storescu("-v", str(tmp_path / "more.dcm"), check=False)
                assert "Success" not in [line[-7:] for line in result.stderr.splitlines() if "Response" in line]
            ballast.unlink()
            assert node.storescu(str(tmp_path / "more.dcm")).returncode == 0
            spool = node.spool()
            assert len(list(objects.iterdir())) == sum(s.images for s in spool.pending()) == 2
            spool.close()
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_large_object_does_not_raise_the_memory_of_the_receiver(tmp_path):
    write_image(tmp_path / "large.dcm", "1.2.3", megabytes=120)
    write_image(tmp_path / "small.dcm", "1.2.3")
    with running(tmp_path) as node:
        node.storescu(str(tmp_path / "small.dcm"))
        process = psutil.Process(node.pids()[0])
        before = highest = process.memory_info().rss
        sender = subprocess.Popen(
            ["storescu", "-aec", "DICOMNODE", "-R", "127.0.0.1", str(node.port), str(tmp_path / "large.dcm")],
            env=ENVIRONMENT,
        )
        while sender.poll() is None:
            highest = max(highest, process.memory_info().rss)
            time.sleep(0.01)
        assert sender.returncode == 0
        assert highest - before < 20_000_000
        spool = node.spool()
        (study,) = spool.pending()
        assert max(i.bytes for i in spool.job(spool.claim(study.study_id)).instances) > 120_000_000
        spool.close()


def test_a_receiver_that_is_told_to_stop_finishes_the_object_it_is_receiving(tmp_path):
    write_image(tmp_path / "large.dcm", "1.2.3", megabytes=60)
    with running(tmp_path) as node:
        sender = subprocess.Popen(
            ["storescu", "-aec", "DICOMNODE", "127.0.0.1", str(node.port), str(tmp_path / "large.dcm")], env=ENVIRONMENT
        )
        wait_until(lambda: any((node.identified / "spool").iterdir()))
        node.supervisor.request_stop()
        assert sender.wait(30) == 0
    spool = node.spool()
    assert len(spool.pending()) == 1
    spool.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        subprocess.run(
            (
                "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
                "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 "
                f"-keyout {name}.key -out {name}.pem"
            ).split(),
            cwd=folder,
            check=True,
            capture_output=True,
        )
    return folder


def tls_echo(node: Node, context: ssl.SSLContext) -> bool:
    ae = AE(ae_title="ECHOSCU")
    ae.acse_timeout = ae.dimse_timeout = ae.connection_timeout = 10
    ae.add_requested_context(Verification)
    assoc = ae.associate("127.0.0.1", node.port, ae_title="DICOMNODE", tls_args=(context, "localhost"))
    if not assoc.is_established:
        return False
    status = assoc.send_c_echo()
    if assoc.is_established:
        assoc.release()
    return status.get("Status") == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_tls_is_served_and_a_silent_client_does_not_hold_up_the_next(tmp_path, certificates):
    tls = Tls(cert=str(certificates / "server.pem"), key=str(certificates / "server.key"))
    context = ssl.create_default_context(cafile=str(certificates / "server.pem"))
    write_image(tmp_path / "a.dcm", "1.2.3")
    with running(tmp_path, tls=tls) as node:
        silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(5)]
        start = time.monotonic()
        assert tls_echo(node, context)
        assert time.monotonic() - start < FIRST_PDU_S  # had it waited for the silent ones to be dropped
        for client in silent:
            client.close()
        command = ["storescu", "-aec", "DICOMNODE", "+tla", "+cf", str(certificates / "server.pem"), "127.0.0.1"]
        stored = subprocess.run(
            [*command, str(node.port), str(tmp_path / "a.dcm")], capture_output=True, env=ENVIRONMENT
        )
        assert stored.returncode == 0
        assert node.storescu(str(tmp_path / "a.dcm"), check=False).returncode != 0  # plain TCP on a TLS port


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_client_without_a_certificate_is_refused_where_one_is_required(tmp_path, certificates):
    tls = Tls(
        cert=str(certificates / "server.pem"),
        key=str(certificates / "server.key"),
        ca=str(certificates / "client.pem"),
        require_client_cert=True,
    )
    without = ssl.create_default_context(cafile=str(certificates / "server.pem"))
    with_one = ssl.create_default_context(cafile=str(certificates / "server.pem"))
    with_one.load_cert_chain(str(certificates / "client.pem"), str(certificates / "client.key"))
    with running(tmp_path, tls=tls) as node:
        assert not tls_echo(node, without)
        assert tls_echo(node, with_one)


def test_the_benchmark_runs(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "receive.py"
    arguments = ["--files", "8", "--rounds", "1", "--many", "0", "--large-mb", "2", "--receivers", "1"]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = ["dicomnode", "storescp --fork", *(["Orthanc"] if shutil.which("Orthanc") else [])]
    for name in names:
        for associations in (1, 4):
            assert re.search(rf"^\| {name} \| {associations} \| \*\*\d+\*\*", done.stdout, re.MULTILINE)
    assert "files/s written and fdatasynced" in done.stdout
    assert "| one object of 2 MB |" in done.stdout
