"""The ledger of experiments: one small JSON for each finished (protocol, method, seed), written once and whole.

An entry holds the figures of every query, so that tables, paired differences and plots are made from the ledger alone,
without images, packs or a GPU. ``curves`` is empty where queries were taken out afterwards. Queries are numbered;
labels are words of the data set, patients are numbers. An entry is written to a new file and renamed; a run that was
killed leaves none, and the next run makes it.

A control that a pack takes part in stands under the control's name, whichever pack it was: ``add_entries`` never puts
those of one pack in the place of another's, nor beside them. ``write_entry`` does not ask.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dicomnode.errors import InputError, StorageFull
from dicomnode.evaluation import metrics
from dicomnode.evaluation.metrics import PerQuery
from dicomnode.evaluation.run import BORDER, MASKED, PERMUTED, RANDOM, Evaluation, Method

FORMAT = 1
PER_QUERY = ("ap", "precision@1", "precision@5", "precision@10", "precision@50", "ndcg@10", "recall@50")
DECIMALS = 4

# Controls that a pack takes part in, and what stands before and after its name in their notes (evaluation.run)
_AROUND_PACK = {
    f"control: {MASKED}": ("", "; lungs found by "),
    f"control: {BORDER}": ("", "; only the outer "),
    f"control: {RANDOM}": ("architecture of ", ", statistics of the index images"),
    f"control: {PERMUTED}": ("the ranking of ", "; relevance of the index rows"),
}

Entry = dict[str, Any]


def entries_of(evaluation: Evaluation) -> list[Entry]:
    """Entries of every method and seed of an evaluation."""
    return [
        _entry(evaluation, method, table, seed)
        for method in evaluation.methods
        for table, seed in zip(method.tables, method.seeds, strict=True)
    ]


def _entry(evaluation: Evaluation, method: Method, table: PerQuery, seed: int) -> Entry:
    _, patients = np.unique(table.clusters, return_inverse=True)
    labels, label = np.unique(table.classes, return_inverse=True)
    values = {name: [_rounded(v) for v in table.column(name)] for name in PER_QUERY}
    return {
        "format": FORMAT,
        "protocol": evaluation.name,
        "title": evaluation.title,
        "method": method.name,
        "kind": method.kind,
        "seed": seed,
        "note": method.note,
        "recipe": dict(method.recipe),
        "data": {
            "n_index": evaluation.n_index,
            "index_patients": evaluation.index_patients,
            "index_classes": dict(evaluation.classes),
            "n_queries": len(table.ap),
            "near_pairs": evaluation.near_pairs,
            "near_queries": evaluation.near_queries,
            "near_closed": evaluation.rules.close_near,
            "graded": evaluation.rules.graded,
            "skipped": evaluation.checks.failed,
        },
        "seconds": round(evaluation.seconds, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "labels": labels.tolist(),
        "query": {"label": label.tolist(), "patient": patients.tolist(), **values},
        "curves": metrics.curves_of(table),
    }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DECIMALS)


def file_of(folder: Path, protocol: str, method: str, seed: int) -> Path:
    """Where an entry stands."""
    return folder / f"{_of_method(protocol, method)}{seed}.json"


def _of_method(protocol: str, method: str) -> str:
    """How the names of its files begin, up to the seed."""
    return f"{_word(protocol)}--{_word(method)}--seed"


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9.+-]+", "-", text.lower()).strip("-")


def write_entry(folder: Path, entry: Entry) -> Path:
    """Write an entry whole; one of the same protocol, method and seed is replaced.

    Raises
    ------
    StorageFull
        It cannot be written.
    """
    path = file_of(folder, entry["protocol"], entry["method"], entry["seed"])
    new = path.with_suffix(".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new.open("w", encoding="utf-8") as f:
            json.dump(entry, f, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            f.write("\n")
            f.flush()
            os.fsync(f.fileno())
        new.replace(path)
    except OSError as exc:
        raise StorageFull(f"the entry cannot be written: {exc.strerror}", place=str(path)) from exc
    return path


def pack_of_control(entry: Entry) -> str | None:
    """The pack that took part in a control, as its note tells (the whole note, where it tells none); else None."""
    around = _AROUND_PACK.get(entry["method"])
    if around is None:
        return None
    before, after = around
    return str(entry["note"]).removeprefix(before).partition(after)[0]


def add_entries(folder: Path, entries: Iterable[Entry]) -> list[Entry]:
    """Write entries, but no control of a pack where the ledger holds that control of another pack.

    Returns
    -------
    list of Entry
        Those of other packs that stay for this reason, as the ledger has them.

    Raises
    ------
    InputError
        The ledger's entry of such a control cannot be read; it is named and stays.
    StorageFull
        An entry cannot be written.
    """
    kept = []
    for entry in entries:
        other = _of_another_pack(folder, entry)
        if other is None:
            write_entry(folder, entry)
        else:
            kept.append(other)
    return kept


def _of_another_pack(folder: Path, entry: Entry) -> Entry | None:
    """What forbids to write a control: the entry in its place, else one of another seed, as a line is all its seeds."""
    pack = pack_of_control(entry)
    if pack is None:
        return None
    path = file_of(folder, entry["protocol"], entry["method"], entry["seed"])
    seeds = f"{_of_method(entry['protocol'], entry['method'])}*.json"
    held = [path] if path.is_file() else sorted(folder.glob(seeds))
    return next((e for e in map(_read, held) if pack_of_control(e) != pack), None)


def read_ledger(folder: Path) -> list[Entry]:
    """Every entry of a folder, by protocol, kind (packs first), method and seed.

    Raises
    ------
    InputError
        No folder, no entry, or a file that is no entry; it is named.
    """
    if not folder.is_dir():
        raise InputError("no such ledger folder", place=str(folder))
    found = [_read(path) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise InputError("holds no entries", place=str(folder), advice="dicomnode evaluate --protocol ... --ledger DIR")
    return sorted(found, key=lambda e: (e["protocol"], e["kind"] != "pack", e["method"], e["seed"]))


def _read(path: Path) -> Entry:
    try:
        entry: Entry = json.loads(path.read_text("utf-8"))
        version = entry["format"]
        whole = version == FORMAT and _is_whole(entry)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError("is not an entry of a ledger", place=str(path)) from exc
    if version != FORMAT:
        raise InputError(f"has ledger format {version}; this version reads {FORMAT}", place=str(path))
    if not whole:
        raise InputError("is not a whole entry of a ledger", place=str(path))
    return entry


def _is_whole(entry: Entry) -> bool:
    lengths = {len(entry["query"][k]) for k in (*PER_QUERY, "label", "patient")}
    named = all(entry[k] for k in ("protocol", "title", "method", "labels")) and isinstance(entry["curves"], dict)
    return named and lengths == {entry["data"]["n_queries"]} and entry["kind"] in ("pack", "control")
