"""Images from which a face may be recognised: told by header and geometry, said truthfully, held where asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom.sr._concepts_dict as concepts
import pytest
from planted import UID_ROOT
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr._snomed_dict import mapping
from pydicom.uid import ExplicitVRLittleEndian
from test_deid_pixels import OPTIONS, SUBJECT

from dicomnode.deid import table
from dicomnode.deid.by_hand import ByHand
from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.faces import Face, judge, spoken_of, statement
from dicomnode.deid.pixel_policy import PixelPolicy
from dicomnode.deid.recipe import compile_recipe
from dicomnode.deid.source import open_source
from dicomnode.errors import QuarantineError

KEY = b"k" * 32
AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]
THICK = {"SliceThickness": "8.0", "SpacingBetweenSlices": "8.0"}
SIZE = 128


def hounsfield(width_mm: float, spacing: float, centre: float = 0.5) -> np.ndarray:
    """A slice through a body of that width: tissue in air."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    radius = width_mm / spacing / 2
    return np.where(np.hypot(y - SIZE * centre, x - SIZE / 2) < radius, 40, -1000).astype("<i2")


def head_ct(values: np.ndarray | None = None, **changes: Any) -> Dataset:
    """A slice of 230 mm with a head of 160 mm, unless something else is said."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{UID_ROOT}9"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{UID_ROOT}1", f"{UID_ROOT}2"
    ds.PatientName, ds.PatientID, ds.Modality = "Kowalski^Johanna", "40817263", "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.BodyPartExamined, ds.SliceThickness, ds.PixelSpacing = "HEAD", "1.0", ["1.8", "1.8"]
    ds.ImageOrientationPatient = AXIAL
    ds.Rows = ds.Columns = SIZE
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = "1", "0"
    for keyword, value in changes.items():
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)
    spacing = float(ds.PixelSpacing[0]) if "PixelSpacing" in ds else 1.8
    ds.PixelData = (hounsfield(160, spacing) if values is None else values).tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def face_of(folder: Path, ds: Dataset) -> Face:
    path = folder / "in.dcm"
    dcmwrite(path, ds, enforce_file_format=True)
    source = open_source(path)
    try:
        return judge(source)
    finally:
        source.stream.close()


def item(**values: Any) -> Sequence:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return Sequence([ds])


def coded(value: str, scheme: str, meaning: str = "") -> Sequence:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


class TestTheHeader:
    @pytest.mark.parametrize(
        "changes",
        [
            {"BodyPartExamined": "HEAD"},
            {"BodyPartExamined": "Brain"},
            {"BodyPartExamined": "NECK"},
            {"BodyPartExamined": "SKULL"},
            {"BodyPartExamined": "FACE"},
            {"BodyPartExamined": None, "SeriesDescription": "Head 1.0 J30s"},
            {"BodyPartExamined": None, "ProtocolName": "05_HeadRoutine/Brain"},
            {"BodyPartExamined": None, "StudyDescription": "TC DE CRÁNEO SIN CONTRASTE"},
            {"BodyPartExamined": None, "StudyDescription": "RM cerebral"},
            {"BodyPartExamined": None, "ProtocolName": "Macizo facial"},
            {"BodyPartExamined": None, "SeriesDescription": "SENOS PARANASALES 0.6"},
            {"BodyPartExamined": None, "SeriesDescription": "hipófisis sag T1"},
            {"BodyPartExamined": None, "RequestedProcedureDescription": "PET-CT cuerpo entero"},
            {"BodyPartExamined": None, "AnatomicRegionSequence": coded("69536005", "SCT")},
            {"BodyPartExamined": None, "AnatomicRegionSequence": coded("T-A0100", "SRT")},
        ],
    )
    def test_words_and_codes_of_the_head(self, tmp_path: Path, changes: dict[str, Any]):
        assert face_of(tmp_path, head_ct(**changes)) is Face.LIKELY

    @pytest.mark.parametrize(
        "changes",
        [
            {"BodyPartExamined": "CHEST"},
            {"BodyPartExamined": None, "StudyDescription": "TC de abdomen y pelvis"},
            {"BodyPartExamined": "KNEE", "SeriesDescription": "pd sag"},
            {"BodyPartExamined": None, "AnatomicRegionSequence": coded("51185008", "SCT", "Chest")},
        ],
    )
    def test_other_parts_of_the_body_are_not_flagged(self, tmp_path: Path, changes: dict[str, Any]):
        assert face_of(tmp_path, head_ct(**changes)) is Face.NONE

    @pytest.mark.parametrize(
        "changes",
        [
            {"BodyPartExamined": "CHEST", "StudyDescription": "CT head and chest"},
            {"BodyPartExamined": None, "SeriesDescription": "PET skull to thigh, cadera"},
            {"BodyPartExamined": None},
            {"BodyPartExamined": "ROUTINE7"},
        ],
    )
    def test_in_doubt_it_is_possible(self, tmp_path: Path, changes: dict[str, Any]):
        assert face_of(tmp_path, head_ct(**changes)) is Face.POSSIBLE

    def test_a_word_is_not_found_within_another_one(self):
        ds = Dataset()
        ds.SeriesDescription = "overhead forehead surface preface heard"
        assert spoken_of(ds) == (False, False)

    @pytest.mark.parametrize("modality", ["CR", "US", "XA", "SEG"])
    def test_it_is_about_volumes(self, tmp_path: Path, modality: str):
        assert face_of(tmp_path, head_ct(Modality=modality)) is Face.NONE
        assert face_of(tmp_path, head_ct(Modality="PT")) is Face.LIKELY
        assert face_of(tmp_path, head_ct(Modality="XC", BodyPartExamined=None)) is Face.POSSIBLE  # a photograph

    def test_every_code_is_the_one_that_pydicom_has(self):
        lines = [line.split() for line in table.data_lines("head-regions.txt") if line.startswith("code:")]
        assert len(lines) == 30
        known = {code for meanings in concepts.concepts["SCT"].values() for code in meanings}
        for _, scheme, code, older, identifier in lines:
            assert (scheme, older) == ("SCT", "SRT")
            assert code in known
            assert mapping["SCT"][code] == identifier


class TestTheGeometry:
    @pytest.mark.parametrize(
        ("changes", "face"),
        [
            ({"SliceThickness": "5.0"}, Face.LIKELY),
            ({"SliceThickness": "8.0", "SpacingBetweenSlices": "8.0"}, Face.NONE),
            ({"SliceThickness": "10.0"}, Face.LIKELY),  # slices may overlap
            ({"SliceThickness": "10.0", "SpacingBetweenSlices": ""}, Face.LIKELY),
            ({"SliceThickness": "10.0", "SpacingBetweenSlices": "0"}, Face.LIKELY),
            ({"SliceThickness": None, "SpacingBetweenSlices": "8.0"}, Face.LIKELY),
            (THICK | {"ImageOrientationPatient": None}, Face.LIKELY),  # perhaps a profile
            ({"SliceThickness": "5.0", "SpacingBetweenSlices": "6.5"}, Face.LIKELY),
            ({"SliceThickness": "8.0", "SpacingBetweenSlices": "4.0"}, Face.LIKELY),
            ({"SliceThickness": "6.0", "SpacingBetweenSlices": "-7.0"}, Face.NONE),
            ({"SliceThickness": None}, Face.LIKELY),
            ({"SliceThickness": ""}, Face.LIKELY),
            (THICK | {"ImageOrientationPatient": SAGITTAL}, Face.LIKELY),  # a profile
            (THICK | {"ImageOrientationPatient": CORONAL}, Face.NONE),
            ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": CORONAL}, Face.NONE),
            ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": SAGITTAL}, Face.LIKELY),
            ({"PixelSpacing": None}, Face.LIKELY),
        ],
    )
    def test_slices_that_give_no_surface_are_not_flagged(self, tmp_path: Path, changes: dict[str, Any], face: Face):
        assert face_of(tmp_path, head_ct(**changes)) is face

    def test_a_small_field_of_view_is_looked_at_for_skin_against_air(self, tmp_path: Path):
        inside = np.full((SIZE, SIZE), 40, "<i2")
        inside[60:70, 60:70] = -1000  # a sinus: air, but not around the body
        sinus = hounsfield(160, 1.2, centre=0.75)  # the front of a face
        small = ["1.2", "1.2"]
        assert face_of(tmp_path, head_ct(inside, PixelSpacing=small)) is Face.NONE
        assert face_of(tmp_path, head_ct(sinus, PixelSpacing=small)) is Face.LIKELY
        mr = {"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None, "PixelSpacing": small}
        assert face_of(tmp_path, head_ct((sinus + 1010).astype("<i2"), **mr)) is Face.LIKELY
        assert face_of(tmp_path, head_ct((inside + 1010).astype("<i2"), **mr)) is Face.NONE

    def test_a_round_reconstruction_is_not_taken_for_skin(self, tmp_path: Path):
        y, x = np.mgrid[0:SIZE, 0:SIZE]
        round_ = np.where(np.hypot(y - SIZE / 2, x - SIZE / 2) < SIZE / 2, 40, -2000).astype("<i2")
        assert face_of(tmp_path, head_ct(round_, PixelSpacing=["1.0", "1.0"])) is Face.NONE

    def test_pixels_that_cannot_be_decoded_leave_it_open(self, tmp_path: Path):
        ds = head_ct(PixelSpacing=["1.0", "1.0"])
        ds.BitsAllocated = 13
        assert face_of(tmp_path, ds) is Face.LIKELY

    def test_where_no_part_is_named_a_body_wider_than_any_head_is_none(self, tmp_path: Path):
        chest = hounsfield(380, 3.5)
        assert face_of(tmp_path, head_ct(chest, BodyPartExamined=None, PixelSpacing=["3.5", "3.5"])) is Face.NONE

    def test_functional_groups_are_read(self, tmp_path: Path):
        ds = head_ct(BodyPartExamined=None, SliceThickness=None, PixelSpacing=None, ImageOrientationPatient=None)
        shared = Dataset()
        shared.PixelMeasuresSequence = item(
            SliceThickness="8.0", SpacingBetweenSlices="8.0", PixelSpacing=["1.8", "1.8"]
        )
        shared.PlaneOrientationSequence = item(ImageOrientationPatient=AXIAL)
        shared.FrameAnatomySequence = item(AnatomicRegionSequence=item(CodeValue="69536005", CodeMeaning="Head"))
        ds.SharedFunctionalGroupsSequence = Sequence([shared])
        assert face_of(tmp_path, ds) is Face.NONE
        shared.PixelMeasuresSequence[0].SliceThickness = "1.0"
        assert face_of(tmp_path, ds) is Face.LIKELY


class TestWhatTheObjectSays:
    def out(self, folder: Path, ds: Dataset, faces: Any = "flag", by_hand: ByHand = ByHand()) -> tuple[Any, Dataset]:  # noqa: B008 (frozen)
        dcmwrite(folder / "in.dcm", ds, enforce_file_format=True)
        policy = PixelPolicy(faces=faces)
        engine = Deidentifier(compile_recipe("basic", OPTIONS), KEY, fsync=False, pixels=policy)
        return engine.deidentify(folder / "in.dcm", folder / "out.dcm", SUBJECT, by_hand), dcmread(folder / "out.dcm")

    @pytest.mark.parametrize(
        ("changes", "face", "said"),
        [
            ({}, Face.LIKELY, "YES"),
            ({"RecognizableVisualFeatures": "NO"}, Face.LIKELY, "YES"),  # a bare NO is nobody's proof
            ({"BodyPartExamined": "CHEST", "RecognizableVisualFeatures": "YES"}, Face.LIKELY, "YES"),
            ({"BodyPartExamined": None}, Face.POSSIBLE, None),
            ({"BodyPartExamined": None, "RecognizableVisualFeatures": "NO"}, Face.POSSIBLE, None),
            ({"BodyPartExamined": "CHEST"}, Face.NONE, None),
            ({"BodyPartExamined": "CHEST", "RecognizableVisualFeatures": "NO"}, Face.NONE, "NO"),
            (
                {"RecognizableVisualFeatures": "NO", "DeidentificationMethodCodeSequence": coded("113102", "DCM")},
                Face.NONE,
                "NO",
            ),
        ],
    )
    def test_is_what_is_known(self, tmp_path: Path, changes: dict[str, Any], face: Face, said: str | None):
        result, ds = self.out(tmp_path, head_ct(**changes))
        assert (result.face, ds.get("RecognizableVisualFeatures")) == (face, said)
        assert "113102" not in [code.CodeValue for code in ds.DeidentificationMethodCodeSequence]
        assert ds.PixelData == dcmread(tmp_path / "in.dcm").PixelData

    @pytest.mark.parametrize("changes", [{}, {"BodyPartExamined": None}, {"RecognizableVisualFeatures": "YES"}])
    def test_where_asked_for_it_is_held_until_a_person_says_that_there_is_none(
        self, tmp_path: Path, changes: dict[str, Any]
    ):
        with pytest.raises(QuarantineError) as refused:
            self.out(tmp_path, head_ct(**changes), "quarantine")
        assert refused.value.reason == "recognizable-face"
        assert not (tmp_path / "out.dcm").exists()
        result, ds = self.out(tmp_path, head_ct(**changes), "quarantine", ByHand(no_face=True))
        assert (result.face, ds.RecognizableVisualFeatures) == (Face.NONE, "NO")

    def test_images_of_other_parts_pass_then_too(self, tmp_path: Path):
        self.out(tmp_path, head_ct(BodyPartExamined="CHEST"), "quarantine")

    def test_a_no_that_nobody_said_is_found_by_the_audit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("dicomnode.deid.faces.statement", lambda *_, **__: "NO")
        with pytest.raises(QuarantineError, match="nobody has said") as refused:
            self.out(tmp_path, head_ct())
        assert (refused.value.reason, refused.value.place) == ("audit", "(0028,0302)")

    def test_nothing_is_said_where_nothing_is_known(self):
        assert statement(Face.POSSIBLE, "", no_face=False) == ""
        assert statement(Face.NONE, "", no_face=False) == ""
