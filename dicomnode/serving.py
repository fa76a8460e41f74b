"""The node's processes: a supervisor, receivers that share the DICOM port, a worker, the web side.

``serve`` is the supervisor; it binds the ports, so that a taken one is found before anything starts, and hands them to
its children, which run this module with their role. Second half of the composition root (``node``).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicomnode.config import Settings, load_settings
from dicomnode.errors import DicomnodeError
from dicomnode.models.threads import wait_passively
from dicomnode.node import Node, make_folder
from dicomnode.scp.supervisor import ChildSpec, Supervisor, python_module, watch_parent
from dicomnode.telemetry.heartbeat import BEAT_S, beat, clear_beat, read_beats
from dicomnode.telemetry.logging import configure_logging

if TYPE_CHECKING:
    from dicomnode.workflow.durable import DurableWorker

log = structlog.get_logger(__name__)

ROLES = ("receiver", "worker", "web")
WEB_BACKLOG = 128
EXPIRE_EVERY_S = 3600.0
SNAPSHOT_EVERY_S = 60.0


def serve(
    settings: Settings,
    settings_file: Path | None,
    role: str = "all",
    *,
    announce: Callable[[dict[str, int]], None] | None = None,
) -> None:
    """Run the node, or one role of it, until SIGTERM or SIGINT.

    Parameters
    ----------
    role : str
        "all", "receiver", "worker" or "web".
    announce : callable, optional
        Called once with the ports that are listened on (``dicom``, ``web``).

    Raises
    ------
    DicomnodeError
        A port is taken, the vault has no key, the data folder is in use or cannot be written.
    """
    roles = ROLES if role == "all" else (role,)
    node = Node(settings)
    node.check()
    with ExitStack() as stack:
        make_folder(node.data_dir)
        for name in roles:
            stack.enter_context(node.lock(name))
        ports, sockets = _bind(settings, roles, stack)
        prepare(node, roles)
        supervisor = Supervisor(_children(settings, settings_file, roles, sockets))
        if announce is not None:
            announce(ports)
        log.info("node_starting", port=ports.get("dicom"), web_port=ports.get("web"))
        supervisor.run_until_signalled()
        log.info("node_stopped")


def _bind(
    settings: Settings, roles: Sequence[str], stack: ExitStack
) -> tuple[dict[str, int], dict[str, socket.socket]]:
    from dicomnode.scp.server import bind_listener
    from dicomnode.web.serve import bind as bind_web

    sockets: dict[str, socket.socket] = {}
    if "receiver" in roles:
        sockets["dicom"] = bind_listener(settings.dicom.host, settings.dicom.port)
    if "web" in roles:
        sockets["web"] = bind_web(settings.web.host, settings.web.port)
    for listener in sockets.values():
        stack.enter_context(listener)
    return {name: listener.getsockname()[1] for name, listener in sockets.items()}, sockets


def prepare(node: Node, roles: Sequence[str]) -> None:
    """What must be right before a process starts: folders, vault, tables, and the spool swept of a former life."""
    from dicomnode.telemetry.metrics import clean_stale

    make_folder(node.settings.identified_dir, private=True)
    _ = node.vault, node.catalogue, node.folders
    if "receiver" in roles:
        make_folder(node.runtime / "metrics")
        clean_stale(node.runtime / "metrics")
        swept = node.spool.sweep()
        if swept.missing:
            log.error("spool_files_missing", missing_files=len(swept.missing))
        node.spool.close()


def _children(
    settings: Settings, settings_file: Path | None, roles: Sequence[str], sockets: dict[str, socket.socket]
) -> list[ChildSpec]:
    common = ["--config", str(settings_file)] if settings_file else []
    specs = []
    if "worker" in roles:  # first: it takes longest to be ready
        specs.append(ChildSpec("worker", python_module("dicomnode.serving", "worker", *common)))
    if "receiver" in roles:
        fd = sockets["dicom"].fileno()
        for n in range(settings.dicom.receivers):
            argv = python_module("dicomnode.serving", "receiver", *common, "--name", f"receiver-{n}", "--fd", str(fd))
            specs.append(ChildSpec(f"receiver-{n}", argv, pass_fds=(fd,)))
    if "web" in roles:
        fd = sockets["web"].fileno()
        argv = python_module("dicomnode.serving", "web", *common, "--fd", str(fd))
        specs.append(ChildSpec("web", argv, pass_fds=(fd,)))
    return specs


def run_receiver(node: Node, stop: threading.Event, name: str, listener: socket.socket) -> None:
    """A receiver process."""
    from dicomnode.report.codes import DEVICE_UID, IMPLEMENTATION_CLASS_UID
    from dicomnode.scp.receiver import ReceiverOptions, receive

    options = ReceiverOptions(
        name=name,
        identified=node.settings.identified_dir,
        runtime=node.runtime,
        dicom=node.settings.dicom,
        own_uids=(IMPLEMENTATION_CLASS_UID, DEVICE_UID),
    )
    node.prepared = True
    try:
        receive(listener, options, stop, services=node.find_services(), counts=node.metrics)
    finally:
        node.close()


def run_worker(node: Node, stop: threading.Event) -> None:
    """A worker process: turns quiet studies into answers and delivers them, until told to stop."""
    from dicomnode.scp.spool import JOB_KEEP_S
    from dicomnode.workflow.durable import DurableWorker
    from dicomnode.workflow.housekeeping import expire, name_held
    from dicomnode.workflow.outbox import Outbox
    from dicomnode.workflow.scheduler import Scheduler

    s = node.settings
    beat(node.runtime, "worker", state="starting", ready=False)
    ctx = node.context
    _ = node.embedder  # loaded before the first study, so that a pack that cannot be is told at once
    worker = DurableWorker(ctx, node.data_dir / "workflow.sqlite3")
    worker.launch()
    name_held(ctx)
    scheduler = Scheduler(ctx.spool, worker, s.dicom.study_quiet_s)
    outbox = Outbox(ctx.answers, ctx.folders, ctx.destinations, node.send, ctx.metrics, lambda: _close(ctx))
    threads = [
        threading.Thread(target=scheduler.run, args=(stop,), name="scheduler"),
        threading.Thread(target=outbox.run, args=(stop,), name="outbox"),
        threading.Thread(target=_keep_snapshot, args=(node, stop), name="snapshot"),
    ]
    for thread in threads:
        thread.start()
    log.info("worker_ready")
    expired = float("-inf")
    try:
        while not stop.is_set():
            alive = all(t.is_alive() for t in threads)
            detail: dict[str, Any] = {"model": _follow_model(node), "index": True, **_counts(node)}
            beat(node.runtime, "worker", state="serving" if alive else "failing", ready=alive, detail=detail)
            if not alive:
                raise DicomnodeError("a thread of the worker ended", place="worker", advice="see the log above")
            _housekeeping(ctx, worker)
            if time.monotonic() - expired > EXPIRE_EVERY_S:
                with _tried_again():
                    expire(ctx, keep_days=s.report.keep_days, result_days=s.retrieval.result_days)
                    ctx.spool.sweep(older_than_s=EXPIRE_EVERY_S)  # what killed receivers left, and jobs long done
                    worker.forget(JOB_KEEP_S)
                expired = time.monotonic()
            stop.wait(BEAT_S)
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=5)
        worker.close()
        node.close()
        clear_beat(node.runtime, "worker")


def _follow_model(node: Node) -> bool:
    """Load the networks of a model that was put in force, before a study waits for them; whether they are there."""
    try:
        _ = node.embedder
    except DicomnodeError as exc:  # each study that meets it is tried again, then told
        log.warning("networks_not_loaded", code=exc.code, line=exc.line)
        return False
    return True


def _keep_snapshot(node: Node, stop: threading.Event) -> None:
    """Build a search snapshot whenever one would pay, and the verdict's reference; answers go on meanwhile."""
    from dicomnode.models.series import KEY_SLICES

    while not stop.wait(SNAPSHOT_EVERY_S):
        with _tried_again("snapshot_failed"):  # the search stays exact
            line = node.index.build_if_due()
            if line:
                log.info("snapshot_built", line=line)
            node.index.warm(KEY_SLICES)


def _housekeeping(ctx: Any, worker: DurableWorker) -> None:
    with _tried_again():
        worker.look_after()
    _close(ctx)


def _close(ctx: Any) -> None:
    from dicomnode.workflow.housekeeping import close_jobs

    with _tried_again():
        close_jobs(ctx)


@contextlib.contextmanager
def _tried_again(failed: str = "housekeeping_failed") -> Iterator[None]:
    """What fails in here is told and tried again at its next round: a full disk must not end the worker."""
    try:
        yield
    except DicomnodeError as exc:
        log.warning(failed, code=exc.code, line=exc.line)
    except (OSError, SQLAlchemyError) as exc:  # its text may name files and parameters
        log.warning(failed, kind=type(exc).__name__)


def _counts(node: Node) -> dict[str, int]:
    pending, vectors = node.answers.count_pending(), node.index.store.count()
    node.metrics.outbox_pending(pending)
    node.metrics.index_vectors(vectors)
    return {"vectors": vectors, "outbox": pending}


def readiness(settings: Settings) -> dict[str, dict[str, Any]]:
    """What ``/readyz`` tells: receiver, worker, index and model, by the signs of life of the processes."""
    beats = read_beats(settings.node.data_dir / "runtime")
    receivers = [b for name, b in beats.items() if name.startswith("receiver-")]
    serving = sum(b.live_and_ready for b in receivers)
    worker = beats.get("worker")
    working = worker is not None and worker.live_and_ready
    detail = dict(worker.detail) if worker is not None and working else {}
    state = worker.state if worker is not None and worker.alive else "not running"
    return {
        "receiver": {"ready": serving > 0, "detail": f"{serving} of {settings.dicom.receivers} receivers serve"},
        "worker": {"ready": working, "detail": state},
        "index": {"ready": detail.get("index") is True, "detail": f"{detail.get('vectors', 0)} vectors"},
        "model": {"ready": detail.get("model") is True, "detail": "loaded" if detail.get("model") else "not loaded"},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m dicomnode.serving receiver|worker|web``: a child of the supervisor."""
    parser = argparse.ArgumentParser(prog="dicomnode.serving", description="A process of the node.")
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("--fd", type=int, default=-1)
    parser.add_argument("--parent-fd", type=int, default=-1)
    arguments = parser.parse_args(argv)
    wait_passively()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    settings = load_settings(arguments.config)
    configure_logging(settings.node.log_level)
    if arguments.parent_fd >= 0:
        watch_parent(arguments.parent_fd)
    node = Node(settings)
    try:
        if arguments.role == "worker":
            run_worker(node, stop)
            return 0
        listener = socket.socket(fileno=arguments.fd)
        if arguments.role == "receiver":
            run_receiver(node, stop, arguments.name, listener)
        else:
            run_web(node, stop, listener)
    except DicomnodeError as exc:
        log.error("process_failed", code=exc.code, line=str(exc))  # noqa: TRY400 - a traceback may quote data
        beat(node.runtime, arguments.name or arguments.role, state="failed", ready=False)
        return exc.exit_code
    return 0


def run_web(node: Node, stop: threading.Event, listener: socket.socket) -> None:
    """The web process."""
    from dicomnode.web.app import create_app
    from dicomnode.web.options import WebOptions
    from dicomnode.web.serve import serve as serve_web
    from dicomnode.webside.services import WebSide

    w = node.settings.web
    options = WebOptions(
        host=w.host, port=w.port, public_url=w.public_url, auth=w.auth, language=node.settings.node.language
    )
    warnings.simplefilter("ignore")  # pydicom quotes values in its warnings
    side = WebSide(node, lambda: readiness(node.settings))
    try:
        app = create_app(side, options, node.sign_in, results=side.results, queries=side.queries)
        beat(node.runtime, "web", state="serving", ready=True)
        serve_web(app, listener, stop)
    finally:
        side.close()


if __name__ == "__main__":
    os.umask(0o077)  # whatever a process of the node writes is its own user's
    sys.exit(main())
