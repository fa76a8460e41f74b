"""A marker in every attribute of Table E.1-1, sent to a node at log level debug, is nowhere but in the identified zone.

The identified zone (``data_dir/identified``) may hold it: the spool until delivery, the outbox while objects are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import planted
import pytest
from loop import HOST, dataset_bytes, opened, reports, send_raw, settled, spooled
from pydicom.dataset import Dataset

from dicomnode.deid.recipe import Action
from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study

pytestmark = pytest.mark.integration

NAME = "Ñandú^Gómez Íñiguez"
PATIENT_ID = "HOSPITAL-4711-0815"
ACCESSION = "ACC-2024-998877"
SENT_ROOT, ADDED_ROOT = f"{planted.UID_ROOT}888881", f"{planted.UID_ROOT}888882"
IMAGE = (
    "Rows",
    "Columns",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "PixelData",
)
LOOKED_THROUGH = (
    r"archive/.*\.dcm",
    r"catalogue\.sqlite3$",
    r"workflow\.sqlite3$",
    r"index/segments/",
    r"results/.*\.dcm",
    r"runtime/metrics/",
    r"audit/",
    r"^node\.log$",
    r"/metrics",
    r"page of result",
)


@dataclass
class Sent:
    """A node after it has answered the planted study and a sample study, and what was planted."""

    node: RunningNode
    pacs: Pacs
    planted: planted.Planted
    sample: list[Dataset]


def plant_study(path: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> planted.Planted:
    """A planted file of a study of its own that can be searched: ``planted.base_ct`` with a slice of the phantom."""
    ds = planted.base_ct()
    image = sample_study(1, seed=5, matrix=64)[0]
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{root}.1", f"{root}.2", f"{root}.3"
    for keyword in IMAGE:
        ds[keyword] = image[keyword]
    monkeypatch.setattr(planted, "base_ct", lambda: ds)
    path.parent.mkdir(exist_ok=True)
    return planted.plant(path)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    base = tmp_path_factory.mktemp("planted")
    findings = sample_repository(base / "repository", 3, slices=4, matrix=64)
    with pytest.MonkeyPatch.context() as patch:
        by_network = plant_study(base / "sent" / "in.dcm", SENT_ROOT, patch)
    with pytest.MonkeyPatch.context() as patch:  # file meta and preamble do not travel by C-STORE, but by this command
        plant_study(base / "added" / "in.dcm", ADDED_ROOT, patch)
    sample = sample_study(4, patient_id=PATIENT_ID, name=NAME, seed=77, matrix=64, AccessionNumber=ACCESSION)
    with (
        Pacs() as pacs,
        RunningNode(
            base / "node", pacs, quiet_s=0.5, receivers=1, log_level="debug", objects=("sr", "contact-sheet")
        ) as node,
    ):
        added = node.run("index", "add", base / "repository", base / "added", "--findings", findings)
        assert "added 4 studies" in added.stdout, added.stdout + added.stderr
        assert b"PHIX" not in (added.stdout + added.stderr).encode()
        assert send_raw(node, planted.CT, f"{SENT_ROOT}.1", dataset_bytes(by_network.path)) == 0
        assert Workstation().send(sample, HOST, node.dicom_port) == [0] * 4
        pacs.wait_for(4, 120)
        settled(node)
        node.run("query", by_network.path)
        yield Sent(node, pacs, by_network, sample)


def elsewhere(sent: Sent) -> dict[str, bytes]:
    """Everything the node has written outside the identified zone, and everything it tells, by where it is."""
    node = sent.node
    told = {"/metrics": node.get("/metrics")[1]}
    for command in (("results", "list"), ("quarantine", "list"), ("index", "status")):
        told[" ".join(command)] = json.dumps(node.json(*command), ensure_ascii=False).encode()
    for result in node.json("results", "list")["results"]:
        shown = node.json("results", "show", str(result["id"]))
        told[f"results show {result['id']}"] = json.dumps(shown, ensure_ascii=False).encode()
        status, told[f"page of result {result['id']}"] = node.get(f"/v/r/{shown['link'].rsplit('/', 1)[1]}/plain")
        assert status == 200
    identified = node.var / "identified"
    files = [p for p in node.folder.rglob("*") if p.is_file() and identified not in p.parents]  # after what they tell
    told |= {str(p.relative_to(node.folder)): p.read_bytes() for p in files}
    return told | {f"name of {p}": str(p).encode() for p in files}


@pytest.fixture(scope="module")
def told(sent: Sent) -> dict[str, bytes]:
    return elsewhere(sent)


def forms(text: str) -> list[bytes]:
    """A text as it may lie in a file: in the usual encodings, and escaped as JSON and HTML do."""
    escaped = json.dumps(text)[1:-1]
    return list({text.encode(e) for e in ("utf-8", "latin-1", "utf-16-le", "utf-16-be")} | {escaped.encode()})


def places(needles: list[bytes], told: dict[str, bytes]) -> list[str]:
    return [where for where, data in told.items() if any(n in data for n in needles)]


def test_the_node_wrote_and_tells_what_this_file_looks_through(told: dict[str, bytes]):
    for needed in LOOKED_THROUGH:
        assert any(re.search(needed, name) and data for name, data in told.items()), needed


def planted_words(data: bytes) -> set[bytes]:
    """What in ``data`` may be a marker. Numbers count as whole ones: seven digits occur by chance in longer ones."""
    words = set(re.findall(rb"PHIX[0-9A-Z-]*|(?<![0-9.])[0-9][0-9.]{6,63}", data))
    starts = (b"PHIX", planted.UID_ROOT.encode(), planted.DATE.encode())
    return {w for w in words if w.startswith(starts) or re.fullmatch(rb"77[0-9]{5}", w)}


def markers_in(words: set[bytes], markers: dict[int, bytes]) -> set[str]:
    """Tags of the attributes whose marker is among the words."""
    cores = {tag: marker.strip(b"/!").rpartition(b"/")[2] for tag, marker in markers.items()}
    return {f"{tag:08X}" for tag, core in cores.items() if any(core in word for word in words)}


def test_no_planted_marker_is_outside_the_identified_zone(sent: Sent, told: dict[str, bytes]):
    recipe = opened(sent.node).recipe
    kept = {tag for tag in recipe.rules if recipe.action(tag, planted.CT) is Action.KEEP}
    markers = {tag: m for tag, m in sent.planted.markers.items() if tag not in kept}
    assert len(markers) > 600
    assert len(markers_in(planted_words(sent.planted.path.read_bytes()), markers)) == len(markers), "the scan finds all"
    found = {where: hits for where, data in told.items() if (hits := markers_in(planted_words(data), markers))}
    assert found == {}


@pytest.mark.parametrize("word", ["PHIX-", "PHIXSQ", "PHIX0", planted.UID_ROOT])
def test_no_trace_of_what_all_markers_share(sent: Sent, told: dict[str, bytes], word: str):
    recipe = opened(sent.node).recipe
    data = dict(told)
    for tag in recipe.rules:  # what an option in force keeps
        if recipe.action(tag, planted.CT) is Action.KEEP and (marker := planted.marker_of(tag)):
            data = {where: d.replace(marker, b"") for where, d in data.items()}
    assert places(forms(word), data) == []


def identifying(sample: list[Dataset]) -> list[str]:
    uids = {str(ds[k].value) for ds in sample for k in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")}
    frame = {str(ds.FrameOfReferenceUID) for ds in sample}
    return sorted([PATIENT_ID, ACCESSION, "Ñandú", "Gómez", "Íñiguez", *uids, *frame])


def test_nothing_that_identifies_the_sample_study_is_outside_the_identified_zone(sent: Sent, told: dict[str, bytes]):
    found = {text: where for text in identifying(sent.sample) if (where := places(forms(text), told))}
    assert found == {}


def test_the_spool_is_empty_after_delivery(sent: Sent):
    assert spooled(sent.node) == []
    work = [p for p in (sent.node.var / "work").rglob("*") if p.is_file()]
    assert work == [], "nor does a work folder stay"


def test_the_spool_s_database_forgets_the_objects(sent: Sent):
    assert all(not job.instances for job in opened(sent.node).spool.jobs())


def test_the_report_itself_carries_the_identity_that_the_pacs_needs(sent: Sent):
    (sr,) = reports(sent.pacs.received, sent.sample[0].StudyInstanceUID)
    assert (sr.PatientID, sr.AccessionNumber, str(sr.PatientName)) == (PATIENT_ID, ACCESSION, NAME)


def test_only_its_owner_can_read_the_identified_zone(sent: Sent):
    assert (sent.node.var / "identified").stat().st_mode & 0o077 == 0
    assert (sent.node.var / "vault.key").stat().st_mode & 0o077 == 0
