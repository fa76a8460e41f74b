"""Metrics are summed over processes, carry closed sets of labels only, and each is documented."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dicomnode.deid.result import PIXELS
from dicomnode.telemetry import audit, logging
from dicomnode.telemetry.metrics import (
    FILE_BYTES,
    METRICS,
    OTHER,
    QUARANTINE_REASONS,
    STEPS,
    Metrics,
    as_markdown,
    clean_stale,
    render,
)

ROOT = Path(__file__).parents[2]


def samples(text: bytes) -> dict[tuple, float]:
    return {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }


@pytest.fixture
def metrics(tmp_path):
    return Metrics(tmp_path / "metrics")


def test_every_series_is_there_from_the_start(metrics):
    found = samples(metrics.render())
    for row in METRICS:
        for known in row.labels.values():
            name = f"{row.name}_count" if row.kind == "histogram" else row.name
            assert {(name, value) for value in known} <= set(found)
    assert found["dicomnode_verdicts_total", "repository-too-small"] == 0


def test_each_method_counts_in_its_own_metric(metrics):
    metrics.received("stored", 100)
    metrics.received("duplicate")
    metrics.association()
    metrics.rejected_association("calling-ae")
    metrics.study("answered")
    metrics.deidentified("masked", 3)
    metrics.step("embed", 2.0)
    metrics.quarantined("burned-in")
    metrics.result("delivered")
    metrics.outbox_pending(3)
    metrics.index_vectors(12)
    metrics.index_vectors(11)
    metrics.query("web")
    metrics.verdict("none")
    found = {k: v for k, v in samples(metrics.render()).items() if v and "_bucket" not in k[0]}
    assert found == {
        ("dicomnode_received_instances_total", "stored"): 1,
        ("dicomnode_received_instances_total", "duplicate"): 1,
        ("dicomnode_received_bytes_total",): 100,
        ("dicomnode_associations_total",): 1,
        ("dicomnode_rejected_associations_total", "calling-ae"): 1,
        ("dicomnode_studies_total", "answered"): 1,
        ("dicomnode_deidentified_images_total", "masked"): 3,
        ("dicomnode_step_seconds_count", "embed"): 1,
        ("dicomnode_step_seconds_sum", "embed"): 2,
        ("dicomnode_quarantined_total", "burned-in"): 1,
        ("dicomnode_results_total", "delivered"): 1,
        ("dicomnode_outbox_pending",): 3,
        ("dicomnode_index_vectors",): 11,
        ("dicomnode_queries_total", "web"): 1,
        ("dicomnode_verdicts_total", "none"): 1,
    }


def test_what_becomes_of_pixels_is_counted_by_the_words_of_the_engine():
    (row,) = [r for r in METRICS if r.name == "dicomnode_deidentified_images_total"]
    assert row.labels["pixels"] == PIXELS


def test_a_label_outside_its_set_is_counted_as_other(metrics):
    metrics.quarantined("DOE^JANE")
    metrics.step("DOE^JANE", 1)
    text = metrics.render()
    assert b"DOE" not in text
    assert samples(text)["dicomnode_quarantined_total", OTHER] == 1


def test_a_block_is_timed_also_when_it_raises(metrics):
    with pytest.raises(OSError), metrics.timed("archive"):
        raise OSError
    assert samples(metrics.render())["dicomnode_step_seconds_count", "archive"] == 1


def _count_in_a_process(folder: Path) -> None:
    Metrics(folder).received("stored", 10)


def test_processes_are_added_up(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count_in_a_process, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert samples(render(tmp_path))["dicomnode_received_instances_total", "stored"] == 2


def test_files_of_processes_that_are_gone_are_cleaned_and_others_stay(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    Metrics(tmp_path).association()
    mine = set(tmp_path.glob(f"*_{os.getpid()}.db"))
    (tmp_path / f"counter_{gone.pid}.db").write_bytes(b"")
    assert mine
    assert clean_stale(tmp_path) == 1
    assert set(tmp_path.glob("*.db")) == mine


def test_a_page_documents_every_metric_key_and_audit_event():
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    for table in (as_markdown(), logging.as_markdown(), audit.as_markdown()):
        for line in table.splitlines():
            assert line in page, "run: python -m dicomnode.telemetry > docs/metrics.md"
    assert set(audit.EVENTS) == set(audit.AuditEvent)


def test_every_reason_and_step_that_the_node_has_is_a_label_of_its_own():
    from dicomnode.workflow import process_study  # heavy: only here

    documented = re.findall(r"^\| `([a-z-]+)`", (ROOT / "docs" / "quarantine.md").read_text("utf-8"), re.MULTILINE)
    assert set(documented) <= set(QUARANTINE_REASONS)
    assert {name for name, _ in process_study.STEPS} <= set(STEPS)


def test_all_series_fit_into_the_room_that_is_taken_before_they_are_mapped(tmp_path):
    """A file that has to grow while the disk is full would end the process."""
    process = multiprocessing.get_context("spawn").Process(target=_count_in_a_process, args=(tmp_path,))
    process.start()
    process.join()
    files = list(tmp_path.glob("*.db"))
    assert len(files) == 3
    for file in files:
        assert file.stat().st_size == FILE_BYTES
        assert 2 * int.from_bytes(file.read_bytes()[:4], "little") < FILE_BYTES
