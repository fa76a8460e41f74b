"""``doctor``: checks what a node stands on, and says how to mend each thing that is wrong.

Each check is a function ``check(node) -> Finding`` under a stable name. Nothing is changed, nothing of a patient is
printed. Works beside a running node and before a first start.
"""

from __future__ import annotations

import errno
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.config import LOOPBACK, Settings
from dicomnode.errors import DicomnodeError
from dicomnode.node import Node
from dicomnode.telemetry.heartbeat import read_beats

MIN_FREE_BYTES = 2 << 30  # some large studies
WARN_FREE_BYTES = 20 << 30
EARLIEST = 1_735_689_600  # 2025-01-01 UTC: a clock before it was never set
CODECS = (
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
)


class State(StrEnum):
    """Outcome of a check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a check found: one line, and what to do about it."""

    check: str
    state: State
    line: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        return {"check": self.check, "state": self.state.value, "line": self.line, "advice": self.advice}


Check = Callable[[Node], Iterator[Diagnosis]]


def check_data_dir(node: Node) -> Iterator[Diagnosis]:
    """The data folder can be written."""
    folder = node.data_dir
    parent = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):  # asks the file system itself: it may be mounted read-only
            pass
    except OSError as exc:
        advice = f"chown or chmod {parent} for this user, or set [node] data_dir"
        yield Diagnosis("data_dir", State.FAIL, f"{parent} cannot be written: {exc.strerror}", advice)
        return
    yield Diagnosis("data_dir", State.OK, str(folder.resolve()))


def settings_warnings(settings: Settings) -> Iterator[Diagnosis]:
    """Settings that are allowed and will hardly do what was meant."""
    folder, dicom, web = settings.node.data_dir, settings.dicom, settings.web
    if not folder.is_absolute():
        yield _warn(
            f"[node] data_dir {str(folder)!r} is relative: here it is {folder.absolute()}",
            "give an absolute path: a command run in another folder makes a second, empty repository and vault",
        )
    away = [p for p in dicom.peers if not _is_loopback(p.host)]
    if away and _is_loopback(dicom.host):
        names = ", ".join(p.name for p in away)
        yield _warn(
            f"[dicom] host {dicom.host} is this machine's alone: {names} can never reach the node",
            "set [dicom] host to this machine's address, or 0.0.0.0 for all",
        )
    takers = ", ".join(p.name for p in away if p.results)
    link_host = urlsplit(web.public_url).hostname or "" if web.public_url else web.host
    if takers and _is_loopback(link_host):
        yield _warn(
            f"the link in reports for {takers} would lead to {link_host}, which is each reader's own machine",
            "set [web] public_url to the address that readers' browsers reach",
        )
    by_title: dict[str, list[str]] = {}
    for peer in dicom.peers:
        by_title.setdefault(peer.ae_title.strip(), []).append(peer.name)
    for title, names_of in by_title.items():
        if len(names_of) > 1:
            yield _warn(
                f"peers {', '.join(names_of)} have the same AE title {title}: they share their services and results",
                "give each [[dicom.peers]] its own ae_title",
            )


def results_warnings(settings: Settings) -> Iterator[Diagnosis]:
    """A node whose answers go nowhere. Apart from the others: the doctor tells it among the peers."""
    if not any(p.results for p in settings.dicom.peers):
        yield Diagnosis("peers", State.WARN, "no peer takes results", "set results = true for a [[dicom.peers]]")


def check_settings(node: Node) -> Iterator[Diagnosis]:
    """The settings say what they will hardly mean otherwise."""
    found = list(settings_warnings(node.settings))
    yield from found or [Diagnosis("settings", State.OK, "nothing contradicts")]


def check_running(node: Node) -> Iterator[Diagnosis]:
    """Whether a node runs on this data folder; either is right."""
    parts = sorted(name for name, beat in read_beats(node.runtime).items() if beat.alive)
    if parts:
        yield Diagnosis("node", State.OK, f"running on {node.data_dir}: {', '.join(parts)}")
    else:
        yield Diagnosis("node", State.OK, f"no node is running on {node.data_dir}")


def _warn(line: str, advice: str) -> Diagnosis:
    return Diagnosis("settings", State.WARN, line, advice)


def _is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


def check_permissions(node: Node) -> Iterator[Diagnosis]:
    """The identified zone and the vault key are this user's alone."""
    key = Path(node.settings.vault.key_file or node.data_dir / "vault.key").absolute()
    for path, wanted in ((node.settings.identified_dir, 0o700), (key, 0o600)):
        if not path.exists():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield Diagnosis("permissions", State.FAIL, f"{path} has mode {mode:04o}", f"chmod {wanted:o} {path}")
            return
    yield Diagnosis("permissions", State.OK, "identified zone and key are private")


def check_disk(node: Node) -> Iterator[Diagnosis]:
    """There is room for studies."""
    folder = next(p for p in (node.data_dir, *node.data_dir.resolve().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    line = f"{free / (1 << 30):.1f} GiB free"
    if free < MIN_FREE_BYTES:
        yield Diagnosis("disk", State.FAIL, line, "free space or move [node] data_dir: C-STORE will answer A700")
    elif free < WARN_FREE_BYTES:
        yield Diagnosis("disk", State.WARN, line, "plan more space")
    else:
        yield Diagnosis("disk", State.OK, line)


def check_clock(node: Node) -> Iterator[Diagnosis]:
    """The clock is set, and not behind what this node has written."""
    now = time.time()
    newest = max((p.stat().st_mtime for p in node.data_dir.glob("*.sqlite3*")), default=0.0)
    if now < EARLIEST:
        yield Diagnosis("clock", State.FAIL, "the clock was never set", "set the time (timedatectl set-ntp true)")
    elif newest > now + 60:
        ahead = newest - now
        yield Diagnosis(
            "clock", State.FAIL, f"the clock is {ahead:.0f} s behind the node's own files", "correct the time (NTP)"
        )
    else:
        yield Diagnosis("clock", State.OK, time.strftime("%Y-%m-%d %H:%M:%S %z"))


def check_vault(node: Node) -> Iterator[Diagnosis]:
    """The vault and its key belong together."""
    vault = node.settings.identified_dir / "vault.sqlite3"
    if not vault.exists() and not (node.data_dir / "vault.key").exists():
        yield Diagnosis("vault", State.OK, "none yet: the first start makes it")
        return
    try:
        status = node.vault.status()
    except DicomnodeError as exc:
        yield Diagnosis("vault", State.FAIL, _told(exc), exc.advice or "restore the key from its backup")
        return
    yield Diagnosis("vault", State.OK, f"{status.patients} patients")


def check_decoders(_node: Node) -> Iterator[Diagnosis]:
    """Every usual transfer syntax can be decoded."""
    missing = []
    for syntax in CODECS:
        decoder = get_decoder(UID(syntax))
        if not decoder.is_available:
            missing.append(UID(syntax).name)
    if missing:
        yield Diagnosis(
            "decoders", State.FAIL, f"no decoder for {', '.join(missing)}", "pip install --force-reinstall dicomnode"
        )
    else:
        yield Diagnosis("decoders", State.OK, f"{len(CODECS)} transfer syntaxes; 12-bit JPEG Extended is not decodable")


def check_recognition(node: Node) -> Iterator[Diagnosis]:
    """Text in pixels can be looked for, where the settings ask for it."""
    from dicomnode.deid import pixel_text

    if node.settings.deid.pixels == "quarantine":
        yield Diagnosis("recognition", State.OK, "not used: images that may show text are quarantined")
        return
    try:
        pixel_text.load()
    except DicomnodeError as exc:
        yield Diagnosis("recognition", State.FAIL, exc.line, exc.advice)
    else:
        yield Diagnosis("recognition", State.OK, "text in pixels can be found")


def check_model(node: Node) -> Iterator[Diagnosis]:
    """The active pack is whole and reproduces its golden vectors."""
    try:
        embedder = node.embedder
    except DicomnodeError as exc:
        advice = exc.advice or "dicomnode models list, then set [models] pack or install the wheel again"
        yield Diagnosis("model", State.FAIL, _told(exc), advice)
        return
    yield Diagnosis("model", State.OK, f"{node.pack_dir.name} on {embedder.device}")


def check_index(node: Node) -> Iterator[Diagnosis]:
    """Vectors and snapshot match their checksums."""
    try:
        problems = node.index.verify()
    except DicomnodeError as exc:
        yield Diagnosis("index", State.FAIL, _told(exc), exc.advice or "dicomnode index rebuild")
        return
    if problems:
        folder = node.pack_dir
        called = folder.name if folder.parent in node.pack_folders else folder
        strange = node.index.store.strangers()  # the pack was replaced under the repository
        advice = f"dicomnode models activate {called}" if strange else "dicomnode index rebuild"
        yield Diagnosis("index", State.FAIL, problems[0], advice)
    else:
        yield Diagnosis("index", State.OK, f"{node.index.store.count()} vectors")


def check_ports(node: Node) -> Iterator[Diagnosis]:
    """The ports are free, or this node has them."""
    serving = any(b.live_and_ready for b in read_beats(node.runtime).values())
    for name, host, port in (
        ("[dicom] port", node.settings.dicom.host, node.settings.dicom.port),
        ("[web] port", node.settings.web.host, node.settings.web.port),
    ):
        if port == 0 or serving:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as exc:
                advice = f"stop the other program or set {name}"
                if exc.errno != errno.EADDRINUSE:
                    advice = f"set {name.replace('port', 'host')} to an address of this machine"
                yield Diagnosis("ports", State.FAIL, f"{name} {port}: {exc.strerror}", advice)
                return
    yield Diagnosis("ports", State.OK, "this node serves them" if serving else "free")


def check_users(node: Node) -> Iterator[Diagnosis]:
    """Somebody can sign in, where the web side asks for it; links are not in clear on a network."""
    web = node.settings.web
    if not web.auth.method:
        yield Diagnosis("sign-in", State.OK, "none: the web side is this machine's alone")
        return
    try:
        nobody = is_fresh(node) or node.users.none_yet()
    except DicomnodeError as exc:
        yield Diagnosis("sign-in", State.FAIL, _told(exc), exc.advice)
        return
    if nobody:
        yield Diagnosis("sign-in", State.WARN, "there is no user yet", "dicomnode user add NAME --admin")
    elif web.host not in LOOPBACK and not web.public_url.startswith("https://"):
        advice = "put a proxy with TLS in front and set [web] public_url to its https address"
        yield Diagnosis("sign-in", State.WARN, "passwords cross the network in clear", advice)
    else:
        yield Diagnosis("sign-in", State.OK, f"local users; links: {web.auth.links}")


def check_peers(node: Node) -> Iterator[Diagnosis]:
    """Every peer that takes results answers C-ECHO."""
    from dicomnode.scu.send import echo

    calling = node.settings.dicom.ae_titles[0].title
    for peer in node.destinations:
        try:
            seconds = echo(peer, calling)
        except DicomnodeError as exc:
            state = State.FAIL if peer.results else State.WARN
            advice = exc.advice or f"check host, port and AE title of peer {peer.name}"
            yield Diagnosis("peers", state, exc.line, f"{advice}; our AE title is {calling}, its {peer.ae_title}")
        else:
            yield Diagnosis("peers", State.OK, f"{peer.name} answers C-ECHO in {seconds * 1000:.0f} ms")
    yield from results_warnings(node.settings)


def is_fresh(node: Node) -> bool:
    """Whether there is no catalogue yet; to ask it would make one."""
    return not node.settings.database.url and not (node.data_dir / "catalogue.sqlite3").exists()


def _told(exc: DicomnodeError) -> str:
    """The line with its place; the advice stands beside it."""
    return f"{exc.place}: {exc.line}" if exc.place else exc.line


CHECKS: tuple[tuple[str, Check], ...] = (
    ("settings", check_settings),
    ("node", check_running),
    ("data_dir", check_data_dir),
    ("permissions", check_permissions),
    ("disk", check_disk),
    ("clock", check_clock),
    ("vault", check_vault),
    ("decoders", check_decoders),
    ("recognition", check_recognition),
    ("model", check_model),
    ("index", check_index),
    ("ports", check_ports),
    ("sign-in", check_users),
    ("peers", check_peers),
)


def examine(node: Node, only: str = "") -> Iterator[Diagnosis]:
    """Run all checks, or one by name."""
    for name, check in CHECKS:
        if only in ("", name):
            try:
                yield from check(node)
            except OSError as exc:
                yield Diagnosis(name, State.FAIL, f"cannot be examined: {exc.strerror}", "check the file system")


def route(node: Node, file: Path) -> Iterator[Diagnosis]:
    """What would happen to a file sent to the node."""
    from dicomnode.deid.gate import check
    from dicomnode.deid.pixel_mask import PixelCleaner
    from dicomnode.deid.pixel_policy import PixelPolicy
    from dicomnode.deid.source import open_source
    from dicomnode.models.preprocess import prepare_dicom

    try:
        source = open_source(file)
        try:
            check(source)
            with tempfile.TemporaryDirectory() as folder:
                pixels = PixelCleaner(PixelPolicy(node.settings.deid.pixels)).clean(source, Path(folder))
                pixels.close()
        finally:
            source.stream.close()
    except DicomnodeError as exc:
        yield Diagnosis("route", State.FAIL, f"would be held in quarantine: {exc.line}", exc.advice)
        return
    masked = ", with text masked in its pixels" if pixels.masked else ""
    yield Diagnosis("route", State.OK, f"would be de-identified{masked}")
    try:
        why = _why_no_case(node, file)
    except DicomnodeError as exc:
        yield Diagnosis("route", State.FAIL, _told(exc), exc.advice or "dicomnode models list")
        return
    if why:
        yield from _not_searchable(node, why)
        return
    try:
        prepare_dicom(file)
    except DicomnodeError as exc:
        yield Diagnosis("route", State.WARN, f"could not be searched with: {exc.line}", exc.advice)
        yield from _not_searchable(node, "none of its slices could be used")
        return
    yield Diagnosis("route", State.OK, "could be searched with")
    for title in node.settings.dicom.ae_titles:
        kept = "kept in the repository" if title.role.keeps else "not kept"
        answered = "answered" if title.role.answers else "not answered"
        yield Diagnosis("route", State.OK, f"sent to {title.title} it would be {kept} and {answered}")


def _why_no_case(node: Node, file: Path) -> str:
    """Why a study of nothing but such images is not searched, by its headers; no network is loaded."""
    from dicomnode.models.headers import beyond_slices
    from dicomnode.models.manifest import find_pack, read_manifest
    from dicomnode.models.series import choose

    pack = find_pack(node.settings.models.pack, node.pack_folders) if is_fresh(node) else node.pack_dir
    found = choose([file], taught=beyond_slices(read_manifest(pack).taught))
    if found.not_searchable is None:
        return ""
    return (found.passed[0].why if found.passed else found.why_not).rstrip(".")


def _not_searchable(node: Node, why: str) -> Iterator[Diagnosis]:
    """What a title does with a study that cannot be searched: the sender is told, or a person finds it held."""
    for title in node.settings.dicom.ae_titles:
        answers, tells = title.role.answers, node.settings.retrieval.answer_rejected
        state, done = (State.WARN, "answered") if answers and tells else (State.FAIL, "held")
        kept = "; its de-identified copy would stay in the repository" if title.role.keeps else ""
        line = f"sent to {title.title}, a study of such images alone would be {done} as not-searchable: {why}{kept}"
        advice = "route no such images to the node"
        if answers and not tells:
            advice += ", or set [retrieval] answer_rejected to report it to the sender"
        yield Diagnosis("route", state, line, advice)
