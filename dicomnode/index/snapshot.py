"""Snapshots on disk: an MRPT index and a manifest that binds it to the vectors it was built over.

``snapshots/current`` names the snapshot in force, the one before is kept. A snapshot is a cache: whatever is wrong with
one (checksum, model, CPU, removed vectors) means that it is not used. Never loads an index file; ``open_checked`` and
``check_rows`` are the gate before that: MRPT loads over other data or from a truncated file without a word, or crashes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from dicomnode.domain import ModelId
from dicomnode.durable import sync_folder
from dicomnode.errors import Busy, IndexCorrupt
from dicomnode.index import segments as files
from dicomnode.index.segments import Vectors

log = structlog.get_logger(__name__)

FORMAT = 2
CURRENT = "current"
IDS, HELD_OUT, INDEX, MANIFEST = "ids.npy", "held-out.npy", "index.mrpt", "manifest.json"
ADVICE = "searching exactly; run 'dicomnode index rebuild'"


@dataclass(frozen=True)
class Manifest:
    """What a snapshot was made of and what was measured on it; ``manifest.json``.

    ``n`` vectors are found through it; ``held_out`` more lie among its rows, copies of others stood in for them when it
    was built. ``recall`` is the mean over held-out queries of the share of the true ``k`` nearest that were found, the
    query's own patient excluded; ``recall_lower`` its one-sided 95 % lower bound.
    """

    format: int
    n: int
    dim: int
    model_id: str
    segments: list[str]
    removals: int
    held_out: int
    last_id: int
    rows_sha256: str
    ids_sha256: str
    held_out_sha256: str
    index_sha256: str
    target_recall: float
    recall: float
    recall_lower: float
    test_queries: int
    test_patients: int
    k: int
    wide_k: int
    parameters: dict[str, Any]
    mrpt: str
    cpu: str
    created: float

    def public(self) -> dict[str, Any]:
        """The snapshot object of ``index status --json``."""
        keys = ("target_recall", "recall", "recall_lower", "n", "held_out", "test_queries", "test_patients", "created")
        return {key: getattr(self, key) for key in keys} | {"trees": self.parameters.get("n_trees")}


@dataclass(frozen=True)
class Snapshot:
    """A snapshot whose files passed every check.

    Attributes
    ----------
    ids : int64 [rows]
        The vector id of each row, ascending: the first ``rows`` vectors of the repository.
    held_out : int64 [n]
        Rows that are not found through it.
    """

    folder: Path
    manifest: Manifest
    ids: NDArray[np.int64]
    held_out: NDArray[np.int64]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def rows(self) -> int:
        """Rows that MRPT maps, held-out ones among them."""
        return len(self.ids)


def cpu_id() -> str:
    """Names the machine type and its instruction sets: mrpt is compiled for the CPU it is installed on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:16]}"


def current_token(folder: Path) -> str:
    """Contents of the pointer file: changes with every swap. Empty: there is no snapshot."""
    try:
        return (folder / CURRENT).read_text()
    except FileNotFoundError:
        return ""


def publish(folder: Path, built: Path, manifest: Manifest) -> None:
    """Bind ``built`` (a finished folder) into force; its model's previous snapshot stays, older ones go.

    Of another model that has vectors here the newest stays too, so that going back to it finds its snapshot.
    """
    files.write_file(built / MANIFEST, json.dumps(asdict(manifest), indent=1, sort_keys=True).encode())
    final = built.with_suffix("")
    built.rename(final)
    sync_folder(folder)
    kept = [final.name]
    models: set[str | None] = set()
    for name in names(folder):
        if (model := _model_of(folder / name)) not in models:
            models.add(model)
            kept.append(name)
    files.write_file(folder / CURRENT, "".join(f"{name}\n" for name in kept).encode())
    for path in folder.iterdir():
        if path.is_dir() and path.suffix != files.PART and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def names(folder: Path, model_id: ModelId | None = None, token: str | None = None) -> list[str]:
    """Names of the snapshots, newest first: of a model the one in force and the one before, as far as there are any.

    ``token`` is a ``current_token`` read before. One whose manifest cannot be read is named with every model.
    """
    token = current_token(folder) if token is None else token
    there = [name for name in token.split("\n") if name and (folder / name).is_dir()]
    return [n for n in there if model_id is None or _model_of(folder / n) in (model_id, None)]


def _model_of(path: Path) -> str | None:
    try:
        return read_manifest(path).model_id
    except IndexCorrupt:
        return None


def read_manifest(path: Path) -> Manifest:
    """The manifest of the snapshot folder ``path``.

    Raises
    ------
    IndexCorrupt
    """
    try:
        written = json.loads((path / MANIFEST).read_bytes())
        if isinstance(written, dict) and written.get("format") != FORMAT:
            raise IndexCorrupt(f"snapshot {path.name} is for another format", advice=ADVICE)
        return Manifest(**written)
    except (OSError, ValueError, TypeError) as fault:
        raise IndexCorrupt(f"snapshot {path.name} has no readable manifest", advice=ADVICE) from fault


def mismatch(manifest: Manifest, model_id: ModelId, dim: int) -> str:
    """In what a snapshot is not for this index and this machine; empty: it is."""
    expected = {
        "model": (manifest.model_id, model_id),
        "dimension": (manifest.dim, dim),
        "mrpt version": (manifest.mrpt, mrpt_version()),
        "CPU": (manifest.cpu, cpu_id()),
    }
    return next((what for what, (found, wanted) in expected.items() if found != wanted), "")


def open_checked(path: Path, model_id: ModelId, dim: int) -> Snapshot:
    """A snapshot whose files are those of its manifest, for this model, this mrpt and this CPU.

    Raises
    ------
    IndexCorrupt
        With one line that says what differs.
    """
    manifest = read_manifest(path)
    if what := mismatch(manifest, model_id, dim):
        raise IndexCorrupt(f"snapshot {path.name} is for another {what}", advice=ADVICE)
    digests = {IDS: manifest.ids_sha256, HELD_OUT: manifest.held_out_sha256, INDEX: manifest.index_sha256}
    for name, digest in digests.items():
        try:
            found = files.file_sha256(path / name)
        except OSError as fault:
            raise IndexCorrupt(f"snapshot {path.name}: {name} cannot be read", advice=ADVICE) from fault
        if found != digest:
            raise IndexCorrupt(f"snapshot {path.name}: {name} does not match its checksum", advice=ADVICE)
    ids = np.load(path / IDS, allow_pickle=False)
    held_out = np.load(path / HELD_OUT, allow_pickle=False)
    if ids.shape != (manifest.n + manifest.held_out,) or held_out.shape != (manifest.held_out,):
        raise IndexCorrupt(f"snapshot {path.name}: its files are not of the recorded size", advice=ADVICE)
    return Snapshot(path, manifest, ids, held_out)


def check_rows(held: Snapshot, ids: NDArray[np.int64], matrix: Vectors) -> None:
    """Whether the first vectors of the repository, int64 [n] and float32 [n, dim], are those it was built over.

    Raises
    ------
    IndexCorrupt
    """
    if not begins_with(held, ids) or rows_sha256(matrix[: held.rows]) != held.manifest.rows_sha256:
        raise IndexCorrupt(f"snapshot {held.name} is for other vectors", advice=ADVICE)


def begins_with(held: Snapshot, ids: NDArray[np.int64]) -> bool:
    """Whether the rows of the snapshot are the first of ``ids``."""
    return np.array_equal(ids[: held.rows], held.ids)


def rows_sha256(matrix: Vectors) -> str:
    """SHA-256 over the bytes of C-contiguous ``matrix``, float32 [n, dim]."""
    return hashlib.sha256(matrix.data.cast("B")).hexdigest()


def newest(folder: Path, token: str, model_id: ModelId, ids: NDArray[np.int64], matrix: Vectors) -> Snapshot | None:
    """The newest snapshot named by ``token`` that passes every check for these vectors; each refusal is logged."""
    for name in names(folder, model_id, token):
        try:
            found = open_checked(folder / name, model_id, matrix.shape[1])
            check_rows(found, ids, matrix)
            return found
        except IndexCorrupt as fault:
            log.warning("snapshot_refused", snapshot=name, line=str(fault))
    return None


def mrpt_version() -> str:
    """Version of the mrpt package, read without importing it."""
    try:
        return metadata.version("mrpt")
    except metadata.PackageNotFoundError:
        return "not installed"


def drop_containing(folder: Path, ids: NDArray[np.int64]) -> int:
    """Delete every snapshot that holds one of ``ids``: what is removed goes from the disk too. How many went."""
    return _drop(folder, lambda held: bool(np.isin(held, ids).any()))


def drop_stale(folder: Path, removals: int, live: NDArray[np.int64]) -> int:
    """Delete snapshots that hold vectors removed since they were built, and unfinished builds nobody works on."""
    gone = _drop(folder, lambda held: not np.isin(held, live).all(), unless_removals=removals)
    try:
        with files.exclusive(build_lock(folder), timeout_s=0.0):
            for path in folder.glob("*" + files.PART):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
                gone += 1
    except Busy:
        return gone  # a build is under way: its folder is its own
    return gone


def build_lock(folder: Path) -> Path:
    """The lock file of builds."""
    return folder / "build.lock"


def _drop(folder: Path, condemned: Any, unless_removals: int | None = None) -> int:
    gone = 0
    for path in [p for p in folder.iterdir() if p.is_dir() and p.suffix != files.PART]:
        try:
            if unless_removals is not None and read_manifest(path).removals == unless_removals:
                continue
            held = np.load(path / IDS, allow_pickle=False)
        except (IndexCorrupt, OSError, ValueError):
            held = None  # unreadable: nobody can use it, and it may hold what was removed
        if held is None or condemned(held):
            shutil.rmtree(path, ignore_errors=True)
            gone += 1
            log.info("snapshot_dropped", snapshot=path.name)
    return gone
