"""The ledger of experiments: one small JSON for each finished (protocol, method, seed), written once and whole.

An entry holds the figures of every query, so that tables, paired differences and plots are made from the ledger alone,
without images, packs or a GPU. Queries are numbered; labels are words of the data set, patients are numbers. An entry
is written to a new file and renamed; a run that was killed leaves none, and the next run makes it.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

from dicomnode.errors import InputError, StorageFull
from dicomnode.evaluation import metrics
from dicomnode.evaluation.metrics import PerQuery
from dicomnode.evaluation.run import Evaluation, Method

FORMAT = 1
PER_QUERY = ("ap", "precision@1", "precision@5", "precision@10", "precision@50", "ndcg@10", "recall@50")
DECIMALS = 4

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
    return folder / f"{_word(protocol)}--{_word(method)}--seed{seed}.json"


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


def read_ledger(folder: Path) -> list[Entry]:
    """Every entry of a folder, by protocol, kind (packs first), method and seed.

    Raises
    ------
    InputError
        No folder, no entry, or a file that is no entry; it is named.
    """
    if not folder.is_dir():
        raise InputError("no such ledger folder", place=str(folder))
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            entry = json.loads(path.read_text("utf-8"))
            version = entry["format"]
            whole = version == FORMAT and _is_whole(entry)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise InputError("is not an entry of a ledger", place=str(path)) from exc
        if version != FORMAT:
            raise InputError(f"has ledger format {version}; this version reads {FORMAT}", place=str(path))
        if not whole:
            raise InputError("is not a whole entry of a ledger", place=str(path))
        found.append(entry)
    if not found:
        raise InputError("holds no entries", place=str(folder), advice="dicomnode evaluate --protocol ... --ledger DIR")
    return sorted(found, key=lambda e: (e["protocol"], e["kind"] != "pack", e["method"], e["seed"]))


def _is_whole(entry: Entry) -> bool:
    lengths = {len(entry["query"][k]) for k in (*PER_QUERY, "label", "patient")}
    named = all(entry[k] for k in ("protocol", "title", "method", "labels", "curves"))
    return named and lengths == {entry["data"]["n_queries"]} and entry["kind"] in ("pack", "control")
