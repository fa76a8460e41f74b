"""A held image on its way through a real node: looked at, masked by hand, and then a case like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loop import HOST, cases, held, opened, reports, settled, wait_for
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.domain import OriginalUid
from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study
from dicomnode.testing.burned_in import stamp

pytestmark = pytest.mark.integration

SETTINGS = '[deid]\npixels = "quarantine"\nfaces = "quarantine"\n'
NAME = "OKAFOR CHIDI"
TOP, LEFT = 6, 8


@pytest.fixture(scope="module")
def pacs() -> Iterator[Pacs]:
    with Pacs() as pacs:
        yield pacs


@pytest.fixture(scope="module")
def node(pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("by-hand")
    with RunningNode(folder / "node", pacs, quiet_s=0.5, receivers=1, sections=SETTINGS) as node:
        findings = sample_repository(folder / "repository", 4, slices=4, matrix=64)
        done = node.run("index", "add", folder / "repository", "--findings", findings)
        assert done.returncode == 0, done.stderr
        yield node
    assert "Traceback" not in node.log.read_text("utf-8")


def burned_in(seed: int) -> tuple[list[Dataset], tuple[int, int]]:
    """Two slices with a name in the upper left corner, and the height and width of its strokes."""
    alpha = stamp(NAME, "DejaVuSans.ttf", 16)
    study = sample_study(2, seed=seed, patient_id=f"HAND-{seed}", matrix=256)
    for ds in study:
        ds.PatientName, ds.BurnedInAnnotation = "Okafor^Chidi", "YES"
        pixels = ds.pixel_array.copy()
        window = pixels[TOP : TOP + alpha.shape[0], LEFT : LEFT + alpha.shape[1]]
        window[alpha > 0.5] = pixels.max()
        ds.PixelData = pixels.tobytes()
    return study, alpha.shape


def stored(node: RunningNode, study: list[Dataset]) -> dict[str, Path]:
    """The repository's objects of a study, by the pseudonymous UID of the instance."""
    parts = opened(node)
    uid = parts.vault.uid(OriginalUid(study[0].StudyInstanceUID))
    return {str(k.uid): parts.objects.path(k.path) for k in parts.catalogue.known_instances(uid)}


def test_a_name_in_the_picture_is_held_seen_masked_and_then_a_case(node: RunningNode, pacs: Pacs, tmp_path: Path):
    study, (height, width) = burned_in(900)
    assert Workstation().send(study, HOST, node.dicom_port) == [0, 0]
    (item,) = held(node, "burned-in")
    assert not stored(node, study)

    look = tmp_path / "look.png"
    assert node.run("quarantine", "show", str(item.id), "--picture", look).returncode == 0
    with Image.open(look) as image:
        seen = np.asarray(image)
    assert seen.shape == (256, 256)
    assert seen[TOP : TOP + height, LEFT : LEFT + width].max() == seen.max()

    place = (LEFT - 2, TOP - 2, width + 4, height + 4)
    release = ["quarantine", "release", str(item.id), "--instance", "1-2", "--mask", ",".join(map(str, place))]
    too_large = [*release, "--mask", "200,200,57,10", "--reason", "name in the corner"]
    done = node.run(*too_large)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "256 columns" in done.stderr
    done = node.run(*release, "--reason", "name in the corner")
    assert done.returncode == 0, done.stderr

    found = wait_for("both in the repository", lambda: len(there := stored(node, study)) == 2 and there)
    parts = opened(node)
    inside = np.zeros((256, 256), bool)
    inside[place[1] : place[1] + place[3], place[0] : place[0] + place[2]] = True
    for original in study:
        kept = dcmread(found[str(parts.vault.uid(OriginalUid(original.SOPInstanceUID)))])
        before, after = original.pixel_array, kept.pixel_array
        assert np.array_equal(before[~inside], after[~inside])
        assert len(np.unique(after[inside])) == 1
        assert len(np.unique(before[inside])) > 1
        assert kept.BurnedInAnnotation == "NO"
        assert "113101" in [code.CodeValue for code in kept.DeidentificationMethodCodeSequence]
        assert kept.PatientName != original.PatientName
    (sr,) = wait_for("a report", lambda: reports(pacs.received, str(study[0].StudyInstanceUID)))
    assert cases(sr)
    settled(node)

    assert parts.quarantine.item(item.id).state == "released"
    (entry,) = [e for e in parts.audit.entries() if e["event"] == "quarantine-released" and e["row"] == item.id]
    assert entry["reason"] == "name in the corner"
    assert entry["detail"] == f"objects 1,2 of 2; mask {','.join(map(str, place))}"
    assert parts.audit.verify() >= 2
    uid = parts.vault.uid(OriginalUid(study[0].StudyInstanceUID))
    assert ("released-by-hand", {"instances": 2}) in provenance(node, uid)
    logged = node.log.read_text("utf-8")
    assert not any(word in logged for word in ("Okafor", "OKAFOR", "HAND-900", str(study[0].StudyInstanceUID)))


def provenance(node: RunningNode, uid: str) -> list[tuple[str, dict[str, object]]]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(node.var / "catalogue.sqlite3")) as db:
        rows = db.execute("SELECT event, detail FROM provenance WHERE study_uid = ?", (uid,)).fetchall()
    return [(event, json.loads(detail)) for event, detail in rows]


def test_a_mask_that_leaves_the_name_readable_brings_the_image_back_into_quarantine_or_masks_it_too(
    node: RunningNode,
):
    """The wrong corner: whatever becomes of the image, the name is in no pixel of the repository."""
    study, (height, width) = burned_in(901)
    assert Workstation().send(study[:1], HOST, node.dicom_port) == [0]
    (item,) = held(node, "burned-in")
    done = node.run("quarantine", "release", str(item.id), "--mask", "200,200,40,10", "--reason", "wrong corner")
    assert done.returncode == 0, done.stderr
    settled(node)
    for path in stored(node, study).values():
        window = dcmread(path).pixel_array[TOP : TOP + height, LEFT : LEFT + width]
        assert len(np.unique(window)) == 1


def test_a_head_is_held_and_released_by_a_person_who_says_that_it_shows_no_face(node: RunningNode):
    study = sample_study(
        2, seed=902, patient_id="HAND-902", matrix=64, BodyPartExamined="HEAD", StudyDescription="TC de cráneo"
    )
    for ds in study:
        ds.SpecificCharacterSet = "ISO_IR 192"
    assert Workstation().send(study, HOST, node.dicom_port) == [0, 0]
    (item,) = held(node, "recognizable-face")
    assert not stored(node, study)
    plain = node.run("quarantine", "release", str(item.id))
    assert plain.returncode == 0, plain.stderr
    (again,) = held(node, "recognizable-face")
    assert again.id != item.id
    done = node.run("quarantine", "release", str(again.id), "--instance", "1-2", "--clean", "--reason", "a phantom")
    assert done.returncode == 0, done.stderr
    found = wait_for("both in the repository", lambda: len(there := stored(node, study)) == 2 and there)
    assert {dcmread(path).RecognizableVisualFeatures for path in found.values()} == {"NO"}
    settled(node)
