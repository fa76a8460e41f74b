"""Series and key slices are chosen from headers alone: axial originals, lung kernel first, ordered by geometry."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from dicomnode.models.series import KEY_SLICES, NoSearch, choose, pick

AXIAL = [1, 0, 0, 0, 1, 0]
CORONAL = [1, 0, 0, 0, 0, -1]


@pytest.fixture
def series(tmp_path: Path) -> Callable[..., str]:
    """Writes a series of headers (there are no pixels at all) and returns its UID."""
    written = 0

    def write(n: int, /, *, spacing: float = 5.0, along: int = 2, **attributes: object) -> str:
        nonlocal written
        uid = generate_uid()
        for i in range(n):
            ds = Dataset()
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = CTImageStorage, generate_uid(), uid
            ds.Modality, ds.Rows, ds.Columns, ds.InstanceNumber = "CT", 512, 512, n - i
            ds.ImageType, ds.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "AXIAL"], AXIAL
            position = [0.0, 0.0, 0.0]
            position[along] = i * spacing
            ds.ImagePositionPatient = position
            for keyword, value in attributes.items():
                if value is None:
                    delattr(ds, keyword)
                else:
                    setattr(ds, keyword, value)
            ds.save_as(tmp_path / f"{written:05d}.dcm", enforce_file_format=True)
            written += 1
        return str(uid)

    return write


def test_a_whole_study_gives_its_axial_originals_lung_kernel_first(series: Callable[..., str], tmp_path: Path) -> None:
    series(2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    soft = series(40, ConvolutionKernel="B31f", SeriesDescription="Thorax 5.0")
    lung = series(40, ConvolutionKernel="B70f", SeriesDescription="Thorax 5.0 hr")
    series(60, ImageType=["DERIVED", "SECONDARY", "MPR"], ImageOrientationPatient=CORONAL, along=1)
    series(20, ImageType=["DERIVED", "SECONDARY", "MIP"])
    series(1, SOPClassUID=SecondaryCaptureImageStorage, ImageType=["DERIVED", "SECONDARY"])
    series(1, Modality="SR", Rows=None, Columns=None)
    chosen = choose(tmp_path.iterdir())
    assert [c.series_uid for c in chosen.choices] == [lung, soft]
    assert [c.reason for c in chosen.choices] == ["axial-original-lung", "axial-original"]
    assert "lung kernel" in chosen.choices[0].why
    assert {p.reason for p in chosen.passed} == {
        "localizer",
        "reformat",
        "secondary-capture",
        "not-an-image",
    }
    assert chosen.not_searchable is None


@pytest.mark.parametrize("kernel", ["B60f", "B80s", "Bl57d", "I50f", "LUNG", "BONEPLUS", "FC51", "L"])
def test_lung_kernels_of_four_makers_are_known(series: Callable[..., str], tmp_path: Path, kernel: str) -> None:
    series(30, ConvolutionKernel="STANDARD")
    lung = series(30, ConvolutionKernel=kernel)
    assert choose(tmp_path.iterdir()).choices[0].series_uid == lung


def test_a_short_lung_slab_does_not_come_before_the_whole_chest(series: Callable[..., str], tmp_path: Path) -> None:
    series(3, ConvolutionKernel="B70f")
    whole = series(60, ConvolutionKernel="B31f")
    assert choose(tmp_path.iterdir()).choices[0].series_uid == whole


def test_a_repeat_of_the_same_kernel_is_not_the_second_series(series: Callable[..., str], tmp_path: Path) -> None:
    series(50, ConvolutionKernel="B31f", SeriesDescription="chest")
    series(49, ConvolutionKernel="B31f", SeriesDescription="chest")
    other = series(30, ConvolutionKernel="B20f", SeriesDescription="chest smooth")
    assert choose(tmp_path.iterdir()).choices[1].series_uid == other


def test_slices_are_ordered_by_position_not_by_number(series: Callable[..., str], tmp_path: Path) -> None:
    series(10)  # instance numbers run downwards
    key = choose(tmp_path.iterdir()).choices[0].key
    assert [k.path.name for k in key] == [f"{i:05d}.dcm" for i in range(10)]
    assert [k.z for k in key] == pytest.approx([i / 9 for i in range(10)])


def test_z_grows_towards_the_head_for_prone_patients_too(series: Callable[..., str], tmp_path: Path) -> None:
    series(10, ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    key = choose(tmp_path.iterdir()).choices[0].key
    assert key[0].path.name == "00000.dcm"


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (5, 5), (24, 24), (25, 24), (300, 24)])
def test_a_series_gives_at_most_24_key_slices(
    series: Callable[..., str], tmp_path: Path, n: int, expected: int
) -> None:
    series(n)
    choice = choose(tmp_path.iterdir()).choices[0]
    assert len(choice.key) == expected
    assert choice.n_instances == n
    assert len({k.instance_uid for k in choice.key}) == expected


def test_a_single_slice_lies_in_the_middle(series: Callable[..., str], tmp_path: Path) -> None:
    series(1)
    assert choose(tmp_path.iterdir()).choices[0].key[0].z == 0.5


def test_two_thousand_slices_are_picked_evenly_within_the_central_range() -> None:
    z = [i / 1999 for i in range(2000)]
    rows = pick(z, KEY_SLICES)
    assert len(set(rows)) == KEY_SLICES
    assert z[rows[0]] == pytest.approx(0.05, abs=0.001)
    assert z[rows[-1]] == pytest.approx(0.95, abs=0.001)
    steps = [b - a for a, b in itertools.pairwise(rows)]
    assert max(steps) - min(steps) <= 1


def test_picks_are_even_in_space_not_in_number() -> None:
    dense = [i / 1000 for i in range(500)]  # half a volume ten times as finely sliced
    sparse = [0.5 + i / 100 for i in range(51)]
    rows = pick(dense + sparse, 24)
    z = [(dense + sparse)[i] for i in rows]
    assert sum(v < 0.5 for v in z) == 12


def test_phases_at_one_position_give_one_slice_each(series: Callable[..., str], tmp_path: Path) -> None:
    uid = series(8)
    series(8, SeriesInstanceUID=uid, AcquisitionNumber=2)
    choice = choose(tmp_path.iterdir()).choices[0]
    assert len(choice.key) == 8
    assert {k.path.name for k in choice.key} == {f"{i:05d}.dcm" for i in range(8)}


def test_missing_positions_fall_back_to_instance_number_and_say_so(series: Callable[..., str], tmp_path: Path) -> None:
    series(6, Modality="MR", ImagePositionPatient=None)
    choice = choose(tmp_path.iterdir()).choices[0]
    assert choice.reason == "no-geometry"
    assert "instance number" in choice.why
    assert [k.path.name for k in choice.key] == [f"{i:05d}.dcm" for i in reversed(range(6))]


def test_only_reformats_are_taken_and_named_as_such(series: Callable[..., str], tmp_path: Path) -> None:
    series(30, ImageType=["DERIVED", "SECONDARY", "MPR"], ImageOrientationPatient=CORONAL, along=1)
    choice = choose(tmp_path.iterdir()).choices[0]
    assert choice.reason == "reformat"
    assert "no originals" in choice.why


def test_radiographs_are_refused_but_stay_where_the_repository_has_them(
    series: Callable[..., str], tmp_path: Path
) -> None:
    series(
        2,
        Modality="CR",
        SOPClassUID=ComputedRadiographyImageStorage,
        ImageOrientationPatient=None,
        ImagePositionPatient=None,
    )
    refused = choose(tmp_path.iterdir())
    assert refused.not_searchable is NoSearch.UNSUPPORTED_KIND
    assert refused.passed[0].why == "CR objects hold no CT or MR slices"
    assert choose(tmp_path.iterdir(), gated=False).choices[0].reason == "projection"
    taught = choose(tmp_path.iterdir(), taught={"CR"}).choices[0]
    assert (taught.reason, taught.modality) == ("projection", "CR")
    assert choose(tmp_path.iterdir(), taught={"DX"}).not_searchable is NoSearch.UNSUPPORTED_KIND


@pytest.mark.parametrize("modality", ["US", "DX", "PT", "NM", "OT", "XC", "RTIMAGE"])
def test_other_modalities_are_never_taken(series: Callable[..., str], tmp_path: Path, modality: str) -> None:
    series(3, Modality=modality)
    ct = series(3)
    chosen = choose(tmp_path.iterdir())
    assert [c.series_uid for c in chosen.choices] == [ct]
    assert [(p.reason, p.n_instances) for p in chosen.passed] == [("unsupported-kind", 3)]


def test_what_stands_for_a_modality_is_not_repeated_where_it_is_none(
    series: Callable[..., str], tmp_path: Path
) -> None:
    series(1, Modality="DOE JANE")
    chosen = choose(tmp_path.iterdir())
    assert chosen.not_searchable is NoSearch.UNSUPPORTED_KIND
    assert "DOE" not in repr(chosen.passed) + chosen.why_not


def test_an_absent_modality_is_left_to_the_pixels(series: Callable[..., str], tmp_path: Path) -> None:
    series(3, Modality=None)
    assert choose(tmp_path.iterdir()).not_searchable is None


@pytest.mark.parametrize(
    "attributes", [{"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, {"SeriesDescription": "Topogram 0.6"}]
)
def test_localizers_alone_are_refused_but_stay_where_the_repository_has_them(
    series: Callable[..., str], tmp_path: Path, attributes: dict[str, object]
) -> None:
    series(2, **attributes)
    refused = choose(tmp_path.iterdir())
    assert refused.not_searchable is NoSearch.UNSUPPORTED_KIND
    assert "localizers" in refused.why_not
    assert [(p.reason, p.n_instances) for p in refused.passed] == [("localizer", 2)]
    assert choose(tmp_path.iterdir(), gated=False).choices[0].reason == "localizer-only"


@pytest.mark.parametrize("modality", ["CT", "MR", "OT"])
def test_captured_report_pages_are_refused(series: Callable[..., str], tmp_path: Path, modality: str) -> None:
    series(2, Modality=modality, SOPClassUID=SecondaryCaptureImageStorage, ImageType=["DERIVED", "SECONDARY"])
    assert choose(tmp_path.iterdir()).not_searchable is NoSearch.UNSUPPORTED_KIND


def test_a_study_of_reports_holds_no_images(series: Callable[..., str], tmp_path: Path) -> None:
    series(1, Modality="SR", Rows=None, Columns=None)
    chosen = choose(tmp_path.iterdir())
    assert chosen.choices == ()
    assert chosen.not_searchable is NoSearch.NO_IMAGES


def test_a_study_of_dose_screens_is_of_an_unsupported_kind(series: Callable[..., str], tmp_path: Path) -> None:
    series(
        1,
        SOPClassUID=SecondaryCaptureImageStorage,
        SeriesDescription="Dose Report",
        ImageType=["DERIVED", "SECONDARY"],
    )
    assert choose(tmp_path.iterdir()).not_searchable is NoSearch.UNSUPPORTED_KIND


@pytest.mark.parametrize("types", [["DERIVED", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "REFORMATTED"]])
@pytest.mark.parametrize("description", ["LUNG LOW DOSE", "Low-dose chest 1.0", "ULDCT dose modulated"])
def test_a_screening_ct_of_low_dose_is_no_dose_screen(
    series: Callable[..., str], tmp_path: Path, description: str, types: list[str]
) -> None:
    series(20, SeriesDescription=description, ImageType=types)
    assert len(choose(tmp_path.iterdir()).choices) == 1


@pytest.mark.parametrize("description", ["Dose Report", "DOSE RECORD", "Patient Protocol", "Exam Summary", "dose_info"])
def test_a_page_of_dose_data_in_ct_storage_is_one(series: Callable[..., str], tmp_path: Path, description: str) -> None:
    series(1, SeriesDescription=description, ImageType=["DERIVED", "SECONDARY", "OTHER"])
    assert choose(tmp_path.iterdir()).not_searchable is NoSearch.UNSUPPORTED_KIND


def test_files_that_are_no_dicom_are_unreadable_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"nothing")
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x10")
    assert choose(tmp_path.iterdir()).not_searchable in {NoSearch.UNREADABLE, NoSearch.NO_IMAGES}


def test_an_empty_study_holds_no_images() -> None:
    assert choose([]).not_searchable is NoSearch.NO_IMAGES


def test_the_choice_does_not_depend_on_the_order_of_files(series: Callable[..., str], tmp_path: Path) -> None:
    series(30, ConvolutionKernel="B31f")
    series(30, ConvolutionKernel="B70f")
    paths = sorted(tmp_path.iterdir())
    assert choose(paths) == choose(reversed(paths))


@pytest.mark.parametrize("n", [0, 15, 33])
def test_key_slices_outside_16_to_32_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="16 to 32"):
        choose([], n)
