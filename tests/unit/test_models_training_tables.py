"""A site's own tables: what is wrong with one is told in a line each, and nothing is written."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_samples import command, picture, slices, write_csv, write_pictures

from dicomnode.errors import InputError
from dicomnode.models.training import unet as unet_module
from dicomnode.models.training.data import SegmentationData
from dicomnode.models.training.splits import (
    joined,
    near_twins,
    units_of,
    validation_rows,
    validation_volumes,
    volumes_apart,
)
from dicomnode.models.training.tables import DataProblems, load_labels, load_scans, load_slices, read_upright
from dicomnode.models.training.unet import UnetOptions
from dicomnode.testing import sample_study

COLUMNS = ("path", "label", "patient", "split")


def table(folder: Path, rows: list[tuple[object, ...]], columns: tuple[str, ...] = COLUMNS) -> Path:
    return write_csv(folder / "LABELS.csv", columns, rows)


def good(folder: Path, n: int = 8) -> list[tuple[object, ...]]:
    """Two classes, four patients of two images each, the last patients in another split."""
    names = write_pictures(folder, n)
    return [(name, ("a", "b")[i // 2 % 2], f"P{i // 2}", "train" if i < 6 else "val") for i, name in enumerate(names)]


def lines(folder: Path, rows: list[tuple[object, ...]], columns: tuple[str, ...] = COLUMNS) -> str:
    with pytest.raises(DataProblems) as e:
        load_labels(table(folder, rows, columns))
    assert "nothing was written" in e.value.line
    return "\n".join(e.value.problems)


class TestLabels:
    def test_a_good_table_is_read_with_its_classes_patients_and_splits(self, tmp_path: Path) -> None:
        data = load_labels(table(tmp_path, good(tmp_path)))
        assert data.images.shape == (8, 224, 224)
        assert data.classes == ("a", "b")
        assert data.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
        assert data.train.tolist() == [True] * 6 + [False] * 2
        assert len(set(data.groups)) == 4

    def test_without_patients_and_splits_each_row_is_somebody_and_all_train(self, tmp_path: Path) -> None:
        names = write_pictures(tmp_path, 4)
        data = load_labels(table(tmp_path, [(n, i % 2) for i, n in enumerate(names)], ("path", "label")))
        assert len(set(data.groups)) == 4
        assert data.train.all()

    @pytest.mark.parametrize(
        ("columns", "line"),
        [
            (("path", "patient", "split"), "column 'label' is missing"),
            (("path", "label", "pateint"), "column 'pateint' is unknown"),
        ],
    )
    def test_columns(self, tmp_path: Path, columns: tuple[str, ...], line: str) -> None:
        assert line in lines(tmp_path, [tuple("x" for _ in columns)], columns)

    def test_no_rows(self, tmp_path: Path) -> None:
        assert "has no rows" in lines(tmp_path, [])

    def test_a_file_that_is_no_table(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00path")
        with pytest.raises(InputError, match="not a readable CSV"):
            load_labels(tmp_path / "x.csv")

    def test_every_bad_row_has_its_line(self, tmp_path: Path) -> None:
        rows = good(tmp_path)
        (tmp_path / "empty.png").touch()
        (tmp_path / "noise.png").write_bytes(b"this is no picture")
        whole = (tmp_path / "0.png").read_bytes()
        (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
        Image.new("L", (1, 1)).save(tmp_path / "one.png")
        bad = ["gone.png", "empty.png", "noise.png", "cut.png", "one.png", "0.png", ""]
        found = lines(tmp_path, [*rows, *[(name, "a", "P9", "train") for name in bad], ("5.png", "", "P8", "")])
        for line in (
            "row 10: gone.png: is missing",
            "row 11: empty.png: is empty (0 bytes)",
            "row 12: noise.png: is not an image that can be read",
            "row 13: cut.png: is not an image that can be read",
            "row 14: one.png: every pixel has the same value",
            "row 15: 0.png: is already in row 2",
            "row 16: path is empty",
            "row 17: label is empty",
            "row 17: split is empty",
        ):
            assert line in found

    def test_a_picture_of_400_million_pixels_is_not_decoded(self, tmp_path: Path) -> None:
        rows = good(tmp_path)
        Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
        assert "large.png: has more than 100 million pixels" in lines(
            tmp_path, [*rows, ("large.png", "a", "P9", "train")]
        )

    def test_one_class(self, tmp_path: Path) -> None:
        rows = [(r[0], "a", *r[2:]) for r in good(tmp_path)]
        assert "all training rows have one label, 'a'" in lines(tmp_path, rows)

    def test_a_class_that_is_never_trained_on(self, tmp_path: Path) -> None:
        rows = good(tmp_path)
        rows[-1] = (rows[-1][0], "c", *rows[-1][2:])
        assert "label 'c' is in no training row" in lines(tmp_path, rows)

    def test_a_patient_in_two_splits_is_told_without_the_patient(self, tmp_path: Path) -> None:
        rows = good(tmp_path)
        rows[0] = (*rows[0][:2], "Mustermann", "train")
        rows[7] = (*rows[7][:2], "Mustermann", "val")
        found = lines(tmp_path, rows)
        assert "rows 2 and 9 are of one patient in the splits 'train' and 'val'" in found
        assert "Mustermann" not in found

    def test_near_copies_in_two_splits(self, tmp_path: Path) -> None:
        rows = good(tmp_path)
        again = Image.open(tmp_path / "0.png").resize((300, 200))
        again.save(tmp_path / "7.png")
        assert "rows 2 and 9 are near-copies in the splits 'train' and 'val'" in lines(tmp_path, rows)

    def test_no_training_row(self, tmp_path: Path) -> None:
        assert "no row has the split 'train'" in lines(tmp_path, [(*r[:3], "test") for r in good(tmp_path)])


class TestImages:
    def test_modes_of_one_picture_come_out_alike(self, tmp_path: Path) -> None:
        grey = Image.fromarray(picture(3))
        grey.save(tmp_path / "grey.png")
        grey.convert("RGBA").save(tmp_path / "rgba.png")
        grey.convert("P").save(tmp_path / "palette.png")
        wide = np.asarray(grey, dtype=np.float64)
        wide = (wide - wide.min()) / np.ptp(wide)
        Image.fromarray((wide * 65535).astype(np.uint16)).save(tmp_path / "sixteen.png")
        plain = read_upright(tmp_path / "grey.png").astype(float)
        for name in ("rgba", "palette"):
            assert abs(read_upright(tmp_path / f"{name}.png") - plain).max() <= 1
        stretched = (plain - plain.min()) / np.ptp(plain) * 255
        assert abs(read_upright(tmp_path / "sixteen.png") - stretched).max() <= 3

    def test_a_picture_turned_by_exif_is_upright(self, tmp_path: Path) -> None:
        upright = Image.fromarray(picture(4, (90, 60)))
        upright.save(tmp_path / "upright.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # shown a quarter turn clockwise
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
        assert np.array_equal(read_upright(tmp_path / "turned.png"), read_upright(tmp_path / "upright.png"))

    def test_transparent_parts_are_black(self, tmp_path: Path) -> None:
        rgba = np.full((40, 40, 4), 255, dtype=np.uint8)
        rgba[:, :20, 3] = 0
        Image.fromarray(rgba).save(tmp_path / "half.png")
        found = read_upright(tmp_path / "half.png")
        assert (found[:, 10], found[:, -10]) == (pytest.approx(0), pytest.approx(255))

    def test_a_dicom_slice_is_taken(self, tmp_path: Path) -> None:
        for dataset in sample_study(slices=1):
            dataset.save_as(tmp_path / "slice.dcm", enforce_file_format=True)
        assert read_upright(tmp_path / "slice.dcm").shape == (224, 224)


class TestSlices:
    COLUMNS = ("path", "lung_mask", "infection_mask", "volume")

    def rows(self, folder: Path) -> list[tuple[object, ...]]:
        names = write_pictures(folder, 4)
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[10:30, 20:40] = 1
        Image.fromarray(mask * 255).save(folder / "bright.png")
        Image.fromarray(mask).save(folder / "ones.png")
        return [
            (names[0], "bright.png", "ones.png", "A"),
            (names[1], "bright.png", "", "A"),
            (names[2], "", "", "B"),
            (names[3], "ones.png", "ones.png", "C"),
        ]

    def test_masks_that_nobody_drew_are_unknown(self, tmp_path: Path) -> None:
        data = load_slices(write_csv(tmp_path / "s.csv", self.COLUMNS, self.rows(tmp_path)))
        assert data.known.tolist() == [[True, True], [True, False], [False, False], [True, True]]
        assert data.volumes.tolist() == [0, 0, 1, 2]
        assert not data.held_out.any()
        assert np.array_equal(data.masks[0, 0], data.masks[0, 1])  # of 255 and of 1
        assert data.masks[0, 0].mean() == pytest.approx(20 * 20 / (48 * 64), abs=0.01)
        assert not data.masks[2].any()

    @pytest.mark.parametrize(
        ("row", "line"),
        [
            (("0.png", "gone.png", "", "A"), "lung_mask gone.png: is missing"),
            (("0.png", "small.png", "", "A"), "lung_mask small.png: is 32x32, its image 64x48"),
            (("0.png", "", "zero.png", "A"), "infection_mask zero.png: is empty (0 bytes)"),
            (("0.png", "bright.png", "", ""), "volume is empty"),
        ],
    )
    def test_bad_rows(self, tmp_path: Path, row: tuple[str, ...], line: str) -> None:
        rest = self.rows(tmp_path)[1:]
        Image.new("L", (32, 32)).save(tmp_path / "small.png")
        (tmp_path / "zero.png").touch()
        with pytest.raises(DataProblems, match=f"row 2: {line.replace('(', '.').replace(')', '.')}"):
            load_slices(write_csv(tmp_path / "s.csv", self.COLUMNS, [row, *rest]))

    def test_no_mask_at_all(self, tmp_path: Path) -> None:
        rows = [(r[0], "", "", r[3]) for r in self.rows(tmp_path)]
        with pytest.raises(DataProblems, match="no row has a mask"):
            load_slices(write_csv(tmp_path / "s.csv", self.COLUMNS, rows))

    def test_a_volume_in_two_splits(self, tmp_path: Path) -> None:
        rows = [(*r, s) for r, s in zip(self.rows(tmp_path), ("train", "val", "train", "val"), strict=True)]
        with pytest.raises(DataProblems, match="rows 2 and 3 are of one volume in the splits"):
            load_slices(write_csv(tmp_path / "s.csv", (*self.COLUMNS, "split"), rows))

    def test_other_splits_are_held_out(self, tmp_path: Path) -> None:
        rows = [(*r, "val" if r[3] == "C" else "train") for r in self.rows(tmp_path)]
        data = load_slices(write_csv(tmp_path / "s.csv", (*self.COLUMNS, "split"), rows))
        assert data.held_out.tolist() == [False, False, False, True]

    PATIENTS = (*COLUMNS, "patient", "split")

    def leaks(self, folder: Path, patients: str, splits: str, volumes: str = "AABC") -> list[str]:
        """What is wrong with four rows, of each the patient, the split (t: train, v: val) and the volume."""
        words = {"t": "train", "v": "val"}
        rows = [
            (*r[:3], volume, f"Mustermann {p}" if p != " " else "", words[s])
            for r, p, s, volume in zip(self.rows(folder), patients, splits, volumes, strict=True)
        ]
        with pytest.raises(DataProblems) as e:
            load_slices(write_csv(folder / "s.csv", self.PATIENTS, rows))
        assert "Mustermann" not in "".join(e.value.problems)
        return list(e.value.problems)

    def test_a_patient_in_two_splits_is_told_without_the_patient(self, tmp_path: Path) -> None:
        line = "rows 2 and 5 are of one patient in the splits 'train' and 'val'"
        assert self.leaks(tmp_path, "1121", "tttv") == [line]

    def test_a_volume_in_two_splits_is_told_once(self, tmp_path: Path) -> None:
        line = "rows 2 and 3 are of one volume in the splits 'train' and 'val'"
        assert self.leaks(tmp_path, "1123", "tvtt") == [line]

    def test_a_volume_of_two_patients(self, tmp_path: Path) -> None:
        line = "row 3: has another patient than row 2 of the same volume"
        assert self.leaks(tmp_path, "1234", "tttt") == [line]

    def test_patients_are_read_where_they_are_told(self, tmp_path: Path) -> None:
        columns, rows = (*self.COLUMNS, "patient"), self.rows(tmp_path)
        without = load_slices(write_csv(tmp_path / "s.csv", self.COLUMNS, rows))
        assert without.patients is None
        told = [(*r, p) for r, p in zip(rows, ("X", "", "Y", "X"), strict=True)]
        data = load_slices(write_csv(tmp_path / "s.csv", columns, told))
        assert data.patients is not None
        assert data.patients.tolist() == ["X", "", "Y", "X"]
        empty = load_slices(write_csv(tmp_path / "s.csv", columns, [(*r, "") for r in rows]))
        other = [(*r, {"X": "Z"}.get(p, p)) for r, p in zip(rows, ("X", "", "Y", "X"), strict=True)]
        again = load_slices(write_csv(tmp_path / "s.csv", columns, other))
        assert data.fingerprint == again.fingerprint != without.fingerprint == empty.fingerprint

    def test_a_mask_of_a_dicom_image_is_cut_to_the_body_with_it(self, tmp_path: Path) -> None:
        (dataset,) = sample_study(slices=1)
        dataset.save_as(tmp_path / "slice.dcm", enforce_file_format=True)
        hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        body = hounsfield > -300
        Image.fromarray((body * 255).astype(np.uint8)).save(tmp_path / "body.png")
        rows = [("slice.dcm", "body.png", "", "A"), *self.rows(tmp_path)[1:]]
        data = load_slices(write_csv(tmp_path / "s.csv", self.COLUMNS, rows))
        shown = data.images[0] > (-300 - -1350) / 1500 * 255  # the lung window, -1350 to 150 HU
        assert data.masks[0, 0].any()
        assert (data.masks[0, 0] == shown).mean() > 0.98
        rows[0] = ("slice.dcm", "bright.png", "", "A")
        with pytest.raises(DataProblems, match=r"lung_mask bright\.png: is 64x48, its image 256x256"):
            load_slices(write_csv(tmp_path / "s.csv", self.COLUMNS, rows))


def test_rows_of_a_scan_agree(tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 4)
    columns = ("path", "scan", "label")
    data = load_scans(
        write_csv(tmp_path / "a.csv", columns, [(n, i // 2, ("x", "y")[i // 2]) for i, n in enumerate(names)])
    )
    assert data.scans.tolist() == [0, 0, 1, 1]
    assert len(set(data.labelled.groups)) == 2
    with pytest.raises(DataProblems, match="row 3: has another label than row 2 of the same scan"):
        load_scans(write_csv(tmp_path / "b.csv", columns, [(n, "s", "xyxy"[i]) for i, n in enumerate(names[:2])]))


class TestSplits:
    def test_validation_takes_whole_patients_of_each_class_and_repeats_itself(self) -> None:
        labels = np.repeat([0, 1], 40)
        groups = np.array([f"p{i // 4}" for i in range(80)])
        first = validation_rows(labels, groups, 0.25, 3, ("a", "b"))
        assert not set(groups[first]) & set(groups[~first])
        assert (first[:40].sum(), first[40:].sum()) == (12, 12)
        assert np.array_equal(first, validation_rows(labels, groups, 0.25, 3, ("a", "b")))
        others = [validation_rows(labels, groups, 0.25, s, ("a", "b")) for s in range(4, 8)]
        assert any(not np.array_equal(first, o) for o in others)

    def test_a_class_of_one_patient_cannot_validate(self) -> None:
        with pytest.raises(InputError, match="class 'b' has images of fewer than two patients"):
            validation_rows(np.array([0, 0, 1, 1]), np.array(["p", "q", "r", "r"]), 0.2, 0, ("a", "b"))

    def test_volumes_are_whole_and_never_all(self) -> None:
        volumes = np.repeat([4, 7, 9], 10)
        chosen = validation_volumes(volumes, 0.2, 0)
        assert len(chosen) == 1
        assert len(validation_volumes(volumes, 0.5, 0)) == 2
        with pytest.raises(InputError, match="one volume only"):
            validation_volumes(np.zeros(5, dtype=int), 0.2, 0)

    def test_volumes_of_one_unit_are_on_one_side(self) -> None:
        volumes = np.repeat(np.arange(6), 4)
        units = np.array([0, 1, 0, 3, 4, 3])[volumes]
        for seed in range(12):
            chosen = set(validation_volumes(volumes, 0.2, seed, units=units))
            assert chosen & {0, 2} in (set(), {0, 2})
            assert chosen & {3, 5} in (set(), {3, 5})
            assert 0 < len(chosen) < 6
        alone = [validation_volumes(volumes, 0.2, seed) for seed in range(12)]
        assert alone == [validation_volumes(volumes, 0.2, seed, units=volumes) for seed in range(12)]
        with pytest.raises(InputError, match="one patient, or near-copies of each other"):
            validation_volumes(volumes, 0.2, 0, units=np.zeros_like(volumes))

    def test_a_volume_without_what_counts_goes_with_its_unit(self) -> None:
        volumes, counted = np.repeat(np.arange(4), 2), np.array([True] * 4 + [False] * 2 + [True] * 2)
        units = np.array([0, 1, 1, 3])[volumes]
        seen = {validation_volumes(volumes, 0.3, seed, units=units, counted=counted) for seed in range(20)}
        assert seen == {(0,), (1, 2), (3,)}

    def test_units_are_volumes_that_share_a_near_copy_or_a_patient(self) -> None:
        images = np.stack([picture(s, (224, 224)) for s in range(10)])
        images[7] = images[2] // 2 + 40  # volumes 1 and 3
        volumes, held = np.repeat([7, 1, 5, 3, 9], 2), (9,)
        masks = np.zeros((10, 2, 1, 1), dtype=bool)
        data = SegmentationData(images, masks, volumes, held)
        patients = np.array(["X", "", "", "", "", "X", "Y", "Y", "X", "Z"])
        assert units_of(data).tolist() == [7, 7, 1, 1, 5, 5, 1, 1, 9, 9]
        told = replace(data, patients=patients)
        assert units_of(told).tolist() == [5, 5, 1, 1, 5, 5, 1, 1, 9, 9]
        for seed in range(8):
            chosen = set(volumes_apart(told, np.ones(10, dtype=bool), 0.2, seed))
            assert chosen in ({5, 7}, {1, 3})
        assert volumes_apart(told, np.ones(10, dtype=bool), 0, 0) == ()

    @pytest.mark.parametrize("of", ["patient", "copy"])
    def test_no_training_sees_a_patient_or_a_copy_of_what_validates(self, tmp_path: Path, of: str) -> None:
        data = replace(slices(8, (0, 0, 1, 1, 2, 2, 3, 3)), held=())
        patients = np.array(["P", "P", "Q", "Q", "R", "R", "P", "P"])
        if of == "patient":
            data = replace(data, patients=patients)
        else:
            data.images[6] = data.images[1]
        drawn = np.ones((8, 2), dtype=bool)
        drawn[6:] = False  # the second stage of unet-me takes it nonetheless
        data = replace(data, drawn=drawn)
        for seed in range(6):
            options = UnetOptions(tmp_path, tmp_path, batch=2, seed=seed, validate=0.2)
            parts = unet_module._parts(options, data, None)
            trained = {*patients[parts.train], *patients[parts.unlabelled]}
            assert not trained & set(patients[parts.validation])

    def test_near_copies_join_the_groups_that_hold_them(self) -> None:
        images = np.stack([picture(s, (224, 224)) for s in (1, 2, 3)])
        images = np.concatenate([images, images[:1] // 2 + 40])
        pairs = near_twins(images)
        assert pairs.tolist() == [[0, 3]]
        groups = joined(np.array(["a", "b", "c", "d"]), pairs)
        assert groups[0] == groups[3]
        assert len(set(groups)) == 3


def test_the_command_tells_each_line_and_writes_nothing(tmp_path: Path) -> None:
    path = table(tmp_path, [("gone.png", "a", "P", "train"), ("lost.png", "b", "Q", "train")])
    done = command("train", "head", "--data", path, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "row 2: gone.png: is missing" in done.stderr
    assert "row 3: lost.png: is missing" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run").exists()


def shared() -> Path:
    root = Path(os.environ.get("DICOMNODE_SHARED", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not (root / "covid-ct" / "labels.csv").is_file():
        pytest.skip(f"the shared data is not at {root} (set DICOMNODE_SHARED)")
    return root


def test_the_official_table_passes_the_checks() -> None:
    data = load_labels(shared() / "covid-ct" / "labels.csv")
    assert data.classes == ("COVID", "NonCOVID")
    assert (data.train.sum(), (~data.train).sum()) == (425, 118)


def test_the_official_table_with_a_patient_moved_does_not(tmp_path: Path) -> None:
    folder = shared() / "covid-ct"
    text = (folder / "labels.csv").read_text().replace("images/", f"{folder}/images/").splitlines()
    patient = text[1].split(",")[2]
    mine = [i for i, line in enumerate(text) if f",{patient}," in line]
    text.append(text[1].replace(",train,", ",val,"))
    copied = tmp_path / "copy.webp"
    shutil.copy(text[1].split(",")[0], copied)
    text[-1] = text[-1].replace(text[1].split(",")[0], str(copied))
    (tmp_path / "labels.csv").write_text("\n".join(text))
    with pytest.raises(DataProblems, match=f"rows {mine[0] + 1} and {len(text)} are of one patient"):
        load_labels(tmp_path / "labels.csv")
