"""Figures of the node for Prometheus, summed over its processes.

Every metric stands in ``METRICS`` with all values that its labels can take, so no label can carry what identifies a
patient, a study or a peer; a value outside its set is counted as "other". Processes write memory-mapped files in one
folder (prometheus_client's multiprocess mode), which ``render`` adds up.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from dicomnode.domain import VerdictKind

log = structlog.get_logger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of ``render``, the Prometheus text format
OTHER = "other"
ENVIRONMENT = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client whenever it opens a process's file
GAUGE_MODE: Literal["mostrecent"] = "mostrecent"
FILES = ("counter", f"gauge_{GAUGE_MODE}", "histogram")  # of a process, as prometheus_client names them
FILE_BYTES = 64 * 1024  # more than twice what all series take, which a test holds

# From a step that finds nothing to do, to the embedding of a large study on a CPU.
STEP_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

STEPS = ("deid", "archive", "embed", "index", "retrieve", "report", "clinical", "deliver")
QUARANTINE_REASONS = (
    "archive-bomb", "audit", "burned-in", "damaged-archive", "deid", "deid-failed", "encrypted", "failed", "input",
    "link", "missing-uid", "mixed-patients", "no-pixel-data", "not-dicom", "not-image", "not-searchable",
    "recognizable-face", "truncated", "unsupported", "version-conflict",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table: type, name, help, and for each label the closed set of its values."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


METRICS: tuple[Metric, ...] = (
    Metric(
        "counter",
        "dicomnode_received_instances_total",
        "Instances sent to the node by C-STORE, by what became of them.",
        {"outcome": ("stored", "duplicate", "version", "ignored", "refused", "failed")},
    ),
    Metric("counter", "dicomnode_received_bytes_total", "Bytes of instances stored."),
    Metric(
        "counter",
        "dicomnode_find_requests_total",
        "C-FIND requests, by how they ended.",
        {"outcome": ("answered", "cancelled", "too-many", "refused", "failed", "aborted")},
    ),
    Metric("counter", "dicomnode_associations_total", "Associations accepted."),
    Metric(
        "counter",
        "dicomnode_rejected_associations_total",
        "Associations rejected, by why.",
        {"reason": ("calling-ae", "called-ae", "limit", "protocol", "tls")},
    ),
    Metric(
        "counter",
        "dicomnode_studies_total",
        "Studies that left the workflow, by outcome.",
        {"outcome": ("answered", "indexed", "quarantined", "failed")},
    ),
    Metric(
        "counter",
        "dicomnode_deidentified_images_total",
        "Images that passed de-identification, by what became of text in their pixels.",
        {"pixels": ("masked", "examined", "not-examined")},
    ),
    Metric("histogram", "dicomnode_step_seconds", "Seconds that a step of the workflow took.", {"step": STEPS}),
    Metric(
        "counter",
        "dicomnode_quarantined_total",
        "Items put in quarantine, by reason.",
        {"reason": QUARANTINE_REASONS},
    ),
    Metric(
        "counter",
        "dicomnode_results_total",
        "Results for peers, by what became of the try to deliver.",
        {"state": ("delivered", "retried", "failed", "resent")},
    ),
    Metric("gauge", "dicomnode_outbox_pending", "Results that wait for delivery."),
    Metric("gauge", "dicomnode_index_vectors", "Vectors in the index, tail included."),
    Metric(
        "counter",
        "dicomnode_queries_total",
        "Questions for similar cases, by where they came from.",
        {"source": ("dicom", "find", "web", "command")},
    ),
    Metric(
        "counter",
        "dicomnode_verdicts_total",
        "Answers, by verdict.",
        {"verdict": tuple(v.value for v in VerdictKind)},
    ),
)


class Metrics:
    """Counts of this process. One object a process; every series exists from the start, at zero.

    Parameters
    ----------
    folder : Path
        ``data_dir/runtime/metrics``, shared by all processes of the node; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        os.environ[ENVIRONMENT] = str(folder)
        if _take_room(folder):
            values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]  # chosen at import otherwise
        else:
            values.ValueClass = values.MutexValue  # counts for itself, until it starts anew
            log.warning("metrics_without_room")
        self._registry = CollectorRegistry()
        self._metrics = {row.name: _make(row, self._registry) for row in METRICS}
        self._rows = {row.name: row for row in METRICS}

    def received(self, outcome: str, size: int = 0) -> None:
        """An instance came by C-STORE; ``size`` in bytes where it was stored."""
        self._count("dicomnode_received_instances_total", outcome)
        if size:
            self._count("dicomnode_received_bytes_total", by=size)

    def find(self, outcome: str) -> None:
        """A C-FIND request ended."""
        self._count("dicomnode_find_requests_total", outcome)

    def association(self) -> None:
        """An association was accepted."""
        self._count("dicomnode_associations_total")

    def rejected_association(self, reason: str) -> None:
        """An association was rejected."""
        self._count("dicomnode_rejected_associations_total", reason)

    def study(self, outcome: str) -> None:
        """A study left the workflow."""
        self._count("dicomnode_studies_total", outcome)

    def deidentified(self, pixels: str, images: int = 1) -> None:
        """Images passed de-identification; ``pixels`` is a word of ``deid.result.PIXELS``."""
        self._count("dicomnode_deidentified_images_total", pixels, by=images)

    def step(self, name: str, seconds: float) -> None:
        """A step of the workflow took ``seconds``."""
        metric = self._metrics["dicomnode_step_seconds"]
        assert isinstance(metric, Histogram)
        metric.labels(self._closed("dicomnode_step_seconds", name)).observe(seconds)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time the block as a step, also when it raises."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.step(name, time.monotonic() - began)

    def quarantined(self, reason: str) -> None:
        """An item was put in quarantine."""
        self._count("dicomnode_quarantined_total", reason)

    def result(self, state: str) -> None:
        """A try to deliver a result ended."""
        self._count("dicomnode_results_total", state)

    def outbox_pending(self, n: int) -> None:
        """Results that wait for delivery now."""
        self._set("dicomnode_outbox_pending", n)

    def index_vectors(self, n: int) -> None:
        """Vectors in the index now."""
        self._set("dicomnode_index_vectors", n)

    def query(self, source: str) -> None:
        """Somebody asked for similar cases."""
        self._count("dicomnode_queries_total", source)

    def verdict(self, verdict: str) -> None:
        """An answer was given."""
        self._count("dicomnode_verdicts_total", verdict)

    def render(self) -> bytes:
        """The figures of all processes in the Prometheus text format."""
        return render(self.folder)

    def _count(self, name: str, label: str | None = None, by: float = 1) -> None:
        metric = self._metrics[name]
        assert isinstance(metric, Counter)
        (metric if label is None else metric.labels(self._closed(name, label))).inc(by)

    def _set(self, name: str, value: float) -> None:
        metric = self._metrics[name]
        assert isinstance(metric, Gauge)
        metric.set(value)

    def _closed(self, name: str, label: str) -> str:
        (known,) = self._rows[name].labels.values()
        return label if label in known else OTHER


def _make(row: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    made: Counter | Gauge | Histogram
    labels = tuple(row.labels)
    if row.kind == "counter":
        made = Counter(row.name, row.help, labels, registry=registry)
    elif row.kind == "gauge":
        made = Gauge(row.name, row.help, labels, registry=registry, multiprocess_mode=GAUGE_MODE)
    else:
        made = Histogram(row.name, row.help, labels, registry=registry, buckets=STEP_BUCKETS_S)
    for known in row.labels.values():
        for value in (*known, OTHER):
            made.labels(value)
    return made


def _take_room(folder: Path) -> bool:
    """Write this process's files out, as zeros, before they are mapped; whether the disk had room for them.

    prometheus_client maps files with holes, and a page of one that the disk has no room for ends the process (SIGBUS).
    """
    for name in FILES:
        path = folder / f"{name}_{os.getpid()}.db"
        if path.exists():
            continue
        try:
            path.write_bytes(bytes(FILE_BYTES))
        except OSError:
            path.unlink(missing_ok=True)
            return False
    return True


def render(folder: Path) -> bytes:
    """The figures of all processes that wrote into ``folder``, in the Prometheus text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def clean_stale(folder: Path) -> int:
    """Remove the files of processes that are gone; returns how many. For the start of a node, before ``Metrics``.

    During the node's life the files of dead processes stay, or its counters would jump back.
    """
    removed = 0
    for file in sorted(folder.glob("*.db")):
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal() and not _alive(int(pid)):
            file.unlink(missing_ok=True)
            removed += 1
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user, so not ours
        return False
    return True


def as_markdown() -> str:
    """The table of docs/metrics.md."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for row in METRICS:
        labels = "; ".join(f"`{n}`: {', '.join((*known, OTHER))}" for n, known in row.labels.items())
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.help} |")
    return "\n".join(lines) + "\n"
