"""Bad input to a running node: what happens, one clear line, nothing lost, and the node still answers afterwards."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from loop import HOST, cases, held, opened, reports, send_raw, settled, wait_for, walk
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage, generate_uid

from dicomnode.archive.quarantine import Item
from dicomnode.errors import PeerRefused
from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study

pytestmark = pytest.mark.integration

MANY = 2000


@pytest.fixture(scope="module")
def pacs() -> Iterator[Pacs]:
    with Pacs() as pacs:
        yield pacs


@pytest.fixture(scope="module")
def empty(pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that has nothing in its repository yet."""
    with RunningNode(tmp_path_factory.mktemp("bad") / "node", pacs, quiet_s=0.5, receivers=1) as node:
        yield node
    assert "Traceback" not in node.log.read_text("utf-8")


@pytest.fixture(scope="module")
def filled(empty: RunningNode, tmp_path_factory: pytest.TempPathFactory) -> RunningNode:
    """The same node with cases."""
    folder = tmp_path_factory.mktemp("repository")
    findings = sample_repository(folder, 4, slices=4, matrix=64)
    done = empty.run("index", "add", folder, "--findings", findings)
    assert done.returncode == 0, done.stderr
    return empty


@pytest.fixture
def node(filled: RunningNode) -> Iterator[RunningNode]:
    """The node; whatever a test has sent, it goes on answering."""
    yield filled
    assert Workstation().echo(HOST, filled.dicom_port) == 0
    assert filled.get("/readyz")[0] == 200


def send(node: RunningNode, study: list[Dataset], called: str = "DICOMNODE") -> str:
    assert Workstation().send(study, HOST, node.dicom_port, called) == [0] * len(study)
    return str(study[0].StudyInstanceUID)


def report_of(pacs: Pacs, study: str, seconds: float = 60) -> Dataset:
    return wait_for("a report", lambda: reports(pacs.received, study), seconds)[-1]


def encoded(ds: Dataset) -> bytes:
    """The data set alone, in its transfer syntax."""
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    raw = buffer.getvalue()
    return raw[144 + int.from_bytes(raw[140:144], "little") :]


def image(seed: int, **attributes: object) -> Dataset:
    return sample_study(1, seed=seed, patient_id=f"BAD-{seed}", matrix=64, **attributes)[0]


def newest(node: RunningNode, reason: str, known: set[int]) -> Item:
    """The item that came after those already known; its line is fit for a person."""

    def items() -> list[Item]:
        return [i for i in opened(node).quarantine.items(state="held") if i.id not in known]

    item = wait_for(f"an item held as {reason}", items)[0]
    assert item.reason == reason
    assert item.line
    assert "\n" not in item.line
    assert item.advice, "it says what to do"
    assert item.job_id is not None
    return item


def known(node: RunningNode) -> set[int]:
    return {i.id for i in opened(node).quarantine.items()}


def kept(node: RunningNode, item: Item) -> int:
    """Originals that an item still holds."""
    assert item.job_id is not None
    return sum(i.path.exists() for i in opened(node).spool.job(item.job_id).instances)


def test_an_empty_repository_is_said_to_be_too_small(empty: RunningNode, pacs: Pacs):
    sr = report_of(pacs, send(empty, sample_study(2, seed=800, matrix=64)))
    assert cases(sr) == []
    assert any("verdict=repository-too-small" in str(i.get("TextValue", "")) for i in walk(sr))


def cut_in_pixels() -> bytes:
    return encoded(image(801))[:-3000]


def cut_in_header() -> bytes:
    return encoded(image(802))[:700]


def no_dicom() -> bytes:
    return b"GIF89a this is no data set of DICOM at all " * 40


def without_study_uid() -> bytes:
    ds = image(803)
    del ds.StudyInstanceUID
    return encoded(ds)


def without_instance_uid() -> bytes:
    ds = image(804)
    del ds.SOPInstanceUID
    return encoded(ds)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (cut_in_pixels, "truncated"),
        (cut_in_header, "truncated"),
        (no_dicom, "truncated"),
        (without_study_uid, "missing-uid"),
        (without_instance_uid, "missing-uid"),
    ],
)
def test_bytes_that_are_no_whole_object_are_acknowledged_and_held(
    node: RunningNode, data: Callable[[], bytes], reason: str
):
    before = known(node)
    assert send_raw(node, CTImageStorage, generate_uid(), data()) == 0
    item = newest(node, reason, before)
    assert kept(node, item) == 1


def no_pixels() -> list[Dataset]:
    ds = image(811)
    del ds.PixelData
    return [ds]


def ultrasound() -> list[Dataset]:
    ds = image(812, Modality="US")
    return [ds]


def capture() -> list[Dataset]:
    ds = image(813)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    return [ds]


def marked() -> list[Dataset]:
    return [image(817, BurnedInAnnotation="YES")]


def mixed() -> list[Dataset]:
    one = sample_study(2, seed=814, matrix=64)
    one[1].PatientID = "SOMEBODY-ELSE"
    return one


def constant() -> list[Dataset]:
    ds = image(815)
    ds.PixelData = b"\0" * len(ds.PixelData)
    return [ds]


def not_a_number() -> list[Dataset]:
    ds = image(816)
    del ds.PixelData
    for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
        del ds[keyword]
    ds.BitsAllocated = 32
    ds.FloatPixelData = np.full((64, 64), np.nan, "<f4").tobytes()
    return [ds]


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        (no_pixels, "no-pixel-data"),
        (ultrasound, "not-searchable"),
        (capture, "not-searchable"),
        (marked, "burned-in"),
        (mixed, "mixed-patients"),
        (constant, "not-searchable"),
        (not_a_number, "not-searchable"),
    ],
)
def test_a_study_that_cannot_be_answered_is_held_with_its_reason(
    node: RunningNode, pacs: Pacs, study: Callable[[], list[Dataset]], reason: str
):
    before, received = known(node), len(pacs.received)
    images = study()
    send(node, images)
    item = newest(node, reason, before)
    assert kept(node, item) == len(images)
    assert str(images[0].PatientID) not in f"{item.line} {item.advice}"
    settled(node)
    assert len(pacs.received) == received, "nothing was sent"


def monochrome_1() -> list[Dataset]:
    study = sample_study(2, seed=821, patient_id="BAD-821", matrix=64)
    for ds in study:
        ds.PhotometricInterpretation = "MONOCHROME1"
    return study


def without_spacing() -> list[Dataset]:
    return sample_study(
        3, seed=822, patient_id="BAD-822", matrix=64, PixelSpacing=None, SliceThickness=None,
        ImagePositionPatient=None, ImageOrientationPatient=None, SpacingBetweenSlices=None, SliceLocation=None,
    )  # fmt: skip


def colour() -> list[Dataset]:
    ds = image(823, Modality="MR")
    grey = ds.pixel_array.astype(np.float32)
    pixels = np.repeat((grey / grey.max() * 255).astype(np.uint8)[..., None], 3, axis=-1)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelData = pixels.tobytes()
    return [ds]


def one_slice() -> list[Dataset]:
    return [image(824)]


def without_patient_id() -> list[Dataset]:
    return sample_study(2, seed=825, patient_id="", matrix=64)


@pytest.mark.parametrize("study", [monochrome_1, without_spacing, colour, one_slice, without_patient_id])
def test_an_unusual_study_is_answered(node: RunningNode, pacs: Pacs, study: Callable[[], list[Dataset]]):
    sr = report_of(pacs, send(node, study()))
    assert len(cases(sr)) >= 4


def test_a_12_bit_jpeg_extended_study_is_held_as_no_decoder_is_known(node: RunningNode, pacs: Pacs):
    before = known(node)
    path = Path(str(get_testdata_file("JPEG-lossy.dcm")))
    ds = dcmread(path)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage  # the file says screenshot
    ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert ds.file_meta.TransferSyntaxUID.name.startswith("JPEG Extended")
    send(node, [ds])
    item = newest(node, "not-searchable", before)
    assert "JPEG Extended" in item.line
    assert kept(node, item) == 1


def test_a_damaged_image_does_not_cost_the_rest_of_the_study_its_answer(node: RunningNode, pacs: Pacs):
    before = known(node)
    study = sample_study(4, seed=831, patient_id="BAD-831", matrix=64)
    del study[2].PixelData
    sr = report_of(pacs, send(node, study))
    assert len(cases(sr)) >= 4
    item = newest(node, "no-pixel-data", before)
    assert kept(node, item) == 1


def test_the_same_uid_with_other_bytes_is_held_and_the_first_is_used(node: RunningNode, pacs: Pacs):
    before = known(node)
    study = sample_study(3, seed=832, patient_id="BAD-832", matrix=64)
    other = sample_study(3, seed=832, patient_id="BAD-832", matrix=64, SeriesDescription="came again, changed")
    assert other[0].SOPInstanceUID == study[0].SOPInstanceUID
    sr = report_of(pacs, send(node, [*study, other[0]]))
    item = newest(node, "version-conflict", before)
    assert kept(node, item) == 1
    assert sr.StudyInstanceUID == study[0].StudyInstanceUID


@pytest.mark.parametrize(("calling", "called"), [("STRANGER", "DICOMNODE"), ("WORKSTATION", "NOBODY")])
def test_strangers_and_wrong_titles_are_rejected_and_named_in_the_log(node: RunningNode, calling: str, called: str):
    with pytest.raises(PeerRefused):
        Workstation(calling).send(one_slice(), HOST, node.dicom_port, called)
    words = (f'"calling": "{calling}"', f'"called": "{called}"', "calling-ae" if calling == "STRANGER" else "called-ae")

    def told() -> bool:
        return any(all(w in line for w in words) for line in node.log.read_text("utf-8").splitlines())

    wait_for("a line in the log", told, 10)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_of_2000_slices_is_answered(node: RunningNode, pacs: Pacs):
    (slice_,) = sample_study(1, seed=841, patient_id="BAD-841", matrix=32)
    pixels = slice_.pixel_array[8:24, 8:24]
    slice_.Rows = slice_.Columns = 16
    study = []
    for number in range(MANY):
        ds = dcmread_copy(slice_)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.InstanceNumber, ds.ImagePositionPatient = number + 1, [0, 0, -number / 10]
        ds.PixelData = np.roll(pixels, number, axis=number % 2).tobytes()
        study.append(ds)
    sr = report_of(pacs, send(node, study), 500)
    assert len(cases(sr)) >= 4
    settled(node)


def dcmread_copy(ds: Dataset) -> Dataset:
    """An independent data set with the same elements."""
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


def test_what_is_held_is_listed_with_a_line_and_a_command_each(node: RunningNode):
    items = node.json("quarantine", "list")["items"]
    assert {i["reason"] for i in items} >= {"truncated", "burned-in", "mixed-patients", "not-searchable", "missing-uid"}
    assert all(i["state"] == "held" for i in items)
    assert held(node, "truncated", 3)
