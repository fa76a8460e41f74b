"""Whole studies to vectors, on real studies where the shared data is there."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from dicomnode.domain import ModelId
from dicomnode.models.preprocess import UnusableImage
from dicomnode.models.series import NoSearch
from dicomnode.models.study import embed_image, embed_images, embed_study

SHARED = Path(os.environ.get("DICOMNODE_SHARED", Path(__file__).resolve().parents[3] / "shared" / "data"))


class Thumbnails:
    """An embedder that only shrinks: studies can be followed without a network."""

    model_id = ModelId("sha256:thumbnails")
    dim = 49

    def embed(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32
        assert images.shape[1:] == (224, 224)
        small = images.reshape(-1, 7, 32, 7, 32).mean((2, 4)).reshape(-1, 49) + 1e-6
        return np.asarray(small / np.linalg.norm(small, axis=1, keepdims=True), dtype=np.float32)


def real_study(name: str, tmp_path: Path) -> list[Path]:
    archive = SHARED / "dicom" / f"{name}.tar.xz"
    if not archive.is_file():
        pytest.skip(f"the shared data is not at {SHARED} (set DICOMNODE_SHARED)")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    return list(tmp_path.rglob("*.dcm"))


def volume(tmp_path: Path, n: int) -> list[Path]:
    """A series of n slices made from pydicom's CT_small."""
    ds = dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    paths = []
    for i in range(n):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.ImagePositionPatient = [0, 0, 5.0 * i]
        ds.InstanceNumber = i + 1
        ds.save_as(tmp_path / f"{i:03d}.dcm")
        paths.append(tmp_path / f"{i:03d}.dcm")
    return paths


def test_a_row_of_vectors_belongs_to_each_slice(tmp_path: Path) -> None:
    out = embed_study(volume(tmp_path, 40), Thumbnails())
    assert out.vectors.shape == (24, 49)
    assert len(out.slices) == 24
    assert out.not_searchable is None
    assert [s.z for s in out.slices] == sorted(s.z for s in out.slices)
    assert {s.series_uid for s in out.slices} == {c.series_uid for c in out.choices}


def test_an_undecodable_slice_is_passed_over_and_recorded(tmp_path: Path) -> None:
    paths = volume(tmp_path, 5)
    data = paths[2].read_bytes()
    paths[2].write_bytes(data[: len(data) - 20_000])
    out = embed_study(paths, Thumbnails())
    assert len(out.slices) == 4
    assert [s.reason for s in out.skipped] == ["undecodable"]


def test_a_study_of_which_nothing_can_be_decoded_is_not_searchable() -> None:
    path = Path(str(get_testdata_file("JPEG-lossy.dcm", download=False)))
    out = embed_study([path], Thumbnails())
    assert out.vectors.shape == (0, 49)
    assert out.not_searchable is NoSearch.UNREADABLE
    assert "cannot be decoded" in out.why_not


def test_reports_alone_are_not_searchable() -> None:
    path = Path(str(get_testdata_file("reportsi.dcm", download=False)))
    out = embed_study([path], Thumbnails())
    assert out.not_searchable is NoSearch.NO_IMAGES
    assert out.choices == ()


def test_every_frame_of_an_enhanced_object_can_be_a_key_slice() -> None:
    path = Path(str(get_testdata_file("emri_small.dcm", download=False)))
    out = embed_study([path], Thumbnails())
    assert sorted(s.frame for s in out.slices) == list(range(10))


def test_pictures_and_dicom_files_embed_alike(tmp_path: Path) -> None:
    Image.fromarray((np.random.default_rng(0).random((90, 120)) * 255).astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    ct = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    assert embed_image(tmp_path / "a.png", Thumbnails()).shape == (49,)
    vectors, bad = embed_images([tmp_path / "a.png", tmp_path / "b.png", ct], Thumbnails())
    assert vectors.shape == (2, 49)
    assert [p.name for p, _ in bad] == ["b.png"]
    with pytest.raises(UnusableImage):
        embed_image(tmp_path / "b.png", Thumbnails())


def test_a_real_chest_ct_gives_24_slices_from_abdomen_to_neck(tmp_path: Path) -> None:
    out = embed_study(real_study("ct-chest-rider-64", tmp_path), Thumbnails())
    assert len(out.slices) == 24
    assert out.choices[0].reason == "axial-original"
    assert out.choices[0].n_instances == 64
    assert out.skipped == ()


def test_a_real_lung_kernel_is_recognised(tmp_path: Path) -> None:
    out = embed_study(real_study("ct-lungbases-cptac-pda", tmp_path), Thumbnails())
    assert out.choices[0].reason == "axial-original-lung"


def test_a_real_coronal_mr_is_taken_and_named(tmp_path: Path) -> None:
    out = embed_study(real_study("mr-liver-tcga-lihc", tmp_path), Thumbnails())
    assert out.choices[0].reason == "other-plane"
    assert len(out.slices) == 24


def test_real_studies_with_reformats_give_their_axial_originals(tmp_path: Path) -> None:
    studies: dict[str, list[Path]] = {}
    for path in real_study("tcia-covid-ny-sbu", tmp_path):
        studies.setdefault(str(dcmread(path, stop_before_pixels=True).StudyInstanceUID), []).append(path)
    assert len(studies) == 20
    reasons = [embed_study(paths, Thumbnails()).choices[0].reason for paths in studies.values()]
    assert reasons.count("axial-original") + reasons.count("axial-original-lung") == 19
    assert reasons.count("reformat") == 1
