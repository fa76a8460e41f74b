"""LABELS.csv for evaluation: one clear line for each thing that is wrong, and every kind of image."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_samples import write_csv
from PIL import Image

from dicomnode.errors import InputError
from dicomnode.evaluation.labels import Checks, check_pair, numbers, prepared, read_rows
from dicomnode.testing import sample_study, write_study


def rows(tmp_path, *records, columns=("path", "label", "patient")):
    checks = Checks()
    return read_rows(write_csv(tmp_path / "l.csv", columns, records), checks), checks


def pair(index, queries):
    checks = Checks()
    check_pair(index, queries, checks)
    return checks.notes


def refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        read_rows(path, Checks())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class TestTheFile:
    def test_a_missing_file(self, tmp_path):
        refused(tmp_path / "absent.csv", "no such labels file")

    def test_a_missing_column_is_named_with_those_that_are_there(self, tmp_path):
        path = write_csv(tmp_path / "l.csv", ["file", "label"], [["a", "b"]])
        refused(path, r"column 'path' is missing \(columns: file, label\)")

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "l.csv").write_bytes(b"")
        refused(tmp_path / "l.csv", "column 'path' is missing")

    @pytest.mark.parametrize("name", ["pateint", "Patient", "patients", "PATIENT"])
    def test_a_column_that_seems_to_mean_the_patient_is_not_passed_over(self, tmp_path, name):
        path = write_csv(tmp_path / "l.csv", ["path", "label", name], [["a", "x", "p1"], ["b", "y", "p1"]])
        refused(path, f"column '{name}' is not known and looks like 'patient'")

    def test_beside_the_patient_such_a_column_is_noted(self, tmp_path):
        _, checks = rows(tmp_path, ["a", "x", "p1", "5"], columns=("path", "label", "patient", "patients"))
        assert "'patients' is not known" in checks.notes[0]

    def test_no_rows(self, tmp_path):
        refused(write_csv(tmp_path / "l.csv", ["path", "label"], []), "holds no rows")

    def test_what_is_no_text(self, tmp_path):
        (tmp_path / "l.csv").write_bytes(b"path,label\n\xff\xfe\x00,\x00\n")
        refused(tmp_path / "l.csv", "not a readable CSV file: row 2 is not UTF-8")

    def test_a_row_without_a_label_is_named_by_its_line(self, tmp_path):
        path = write_csv(tmp_path / "l.csv", ["path", "label"], [["a", "x"], ["b", ""]])
        with pytest.raises(InputError, match=r"l\.csv:3: a row has no path or no label"):
            read_rows(path, Checks())

    def test_a_row_with_more_cells_than_the_header(self, tmp_path):
        path = write_csv(tmp_path / "l.csv", ["path", "label"], [["a", "x"], ["b", "Pneumonia", " viral"]])
        refused(path, "row 3 has 3 cells, the header 2")

    def test_a_column_twice(self, tmp_path):
        path = write_csv(tmp_path / "l.csv", ["path", "label", "label"], [["a", "x", "y"], ["a", "b", "c", "d"]])
        refused(path, r"column 'label' is there twice \(and 1 more\)")

    def test_unknown_columns_are_told_and_not_used(self, tmp_path):
        _, checks = rows(tmp_path, ["a", "x", "shoe"], columns=("path", "label", "size_of_shoe"))
        assert len(checks.notes) == 1
        assert "'size_of_shoe' is not known" in checks.notes[0]

    def test_duplicate_rows_count_once(self, tmp_path):
        found, checks = rows(tmp_path, ["a", "x", "1"], ["a", "x", "1"], ["b", "y", "2"])
        assert [r.label for r in found] == ["x", "y"]
        assert "1 duplicate rows" in checks.notes[0]

    def test_one_image_with_two_labels(self, tmp_path):
        path = write_csv(tmp_path / "l.csv", ["path", "label"], [["a", "x"], ["a", "y"]])
        with pytest.raises(InputError, match=r"l\.csv:3: the same image as in line 2"):
            read_rows(path, Checks())

    def test_paths_are_relative_to_the_file_or_absolute(self, tmp_path):
        found, _ = rows(tmp_path, ["sub/a.png", "x", ""], ["/else/b.png", "y", ""])
        assert [r.path for r in found] == [tmp_path / "sub/a.png", (tmp_path / "/else/b.png")]
        assert found[0].cluster != found[1].cluster

    def test_a_byte_order_mark_is_no_part_of_a_column(self, tmp_path):
        (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbfpath,label\na,x\n")
        assert len(read_rows(tmp_path / "l.csv", Checks())) == 1

    def test_columns_as_numbers(self, tmp_path):
        found, _ = rows(tmp_path, ["a", "x", "12"], ["b", "x", "wide"], columns=("path", "label", "width"))
        assert np.isnan(numbers(found, "width")).tolist() == [False, True]


class TestIndexAndQueries:
    def test_one_class_only(self, tmp_path):
        found, _ = rows(tmp_path, ["a", "x", "1"], ["b", "x", "2"])
        with pytest.raises(InputError, match=r"one class only \('x'\)"):
            pair(found, found)

    def test_no_common_label(self, tmp_path):
        index, _ = rows(tmp_path, ["a", "x", "1"], ["b", "y", "2"])
        queries, _ = rows(tmp_path, ["c", "z", "3"])
        with pytest.raises(InputError, match=r"no query has a label of the index; labels of the queries: \['z'\]"):
            pair(index, queries)

    def test_a_patient_on_both_sides_is_told_without_being_named(self, tmp_path):
        index, _ = rows(tmp_path, ["a", "x", "SECRET"], ["b", "y", "2"])
        queries, _ = rows(tmp_path, ["c", "x", "SECRET"])
        (line,) = pair(index, queries)
        assert line.startswith("1 patients are in both index and queries")
        assert "SECRET" not in line

    def test_an_image_on_both_sides_is_told(self, tmp_path):
        found, _ = rows(tmp_path, ["a", "x", ""], ["b", "y", ""])
        assert pair(found, found) == ["2 images are in both index and queries: closed to themselves"]

    def test_a_label_that_the_index_lacks_is_told(self, tmp_path):
        index, _ = rows(tmp_path, ["a", "x", "1"], ["b", "y", "2"])
        queries, _ = rows(tmp_path, ["c", "x", "3"], ["d", "z", "4"])
        assert pair(index, queries) == ["label 'z' is not in the index: its queries are not counted"]


class TestImages:
    def use(self, tmp_path, name, image=None, **how):
        if image is not None:
            image.save(tmp_path / name, **how)
        found, checks = rows(tmp_path, [name, "x", ""])
        return list(prepared(found, checks)), checks

    @pytest.mark.parametrize(
        ("name", "mode"),
        [("a.png", "L"), ("a.png", "RGBA"), ("a.png", "P"), ("a.png", "I;16"), ("a.jpg", "RGB"), ("a.webp", "RGB")],
    )
    def test_kinds_that_can_be_used(self, tmp_path, name, mode):
        values = np.random.default_rng(0).integers(0, 255, (60, 90), dtype=np.uint8)
        image = (
            Image.fromarray(values.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(values).convert(mode)
        )
        used, checks = self.use(tmp_path, name, image)
        assert checks.failed == 0
        assert used[0][1].shape == (224, 224)
        assert used[0][1].dtype == np.float32

    def test_a_long_thin_picture_and_a_rotated_one(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 255, (40, 20_000), dtype=np.uint8)
        assert self.use(tmp_path, "wide.png", Image.fromarray(values))[1].failed == 0
        exif = Image.Exif()
        exif[0x0112] = 6
        assert self.use(tmp_path, "turned.jpg", Image.fromarray(values[:, :60]), exif=exif)[1].failed == 0

    def test_a_dicom_file(self, tmp_path):
        path = write_study(sample_study(1, matrix=64), tmp_path)[0]
        assert self.use(tmp_path, path.name)[1].failed == 0

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(b"", "the file is empty"), (b"no picture", "not a picture that can be read"), (None, "no such file")],
    )
    def test_files_that_cannot_be_used_are_skipped_and_counted(self, tmp_path, content, reason):
        if content is not None:
            (tmp_path / "a.png").write_bytes(content)
        used, checks = self.use(tmp_path, "a.png")
        assert used == []
        assert checks.failed == 1
        (line,) = checks.lines()
        assert reason in line
        assert str(tmp_path / "a.png") in line

    def test_one_pixel_and_one_colour(self, tmp_path):
        for size in ((1, 1), (50, 50)):
            used, checks = self.use(tmp_path, "a.png", Image.new("L", size, 7))
            assert used == []
            assert "every pixel has the same value" in checks.lines()[0]

    def test_a_picture_of_400_million_pixels(self, tmp_path):
        used, checks = self.use(tmp_path, "a.png", Image.new("1", (20_000, 20_000)))
        assert used == []
        assert "100 million pixels" in checks.lines()[0] or "can be read" in checks.lines()[0]

    def test_many_skipped_files_are_one_line(self, tmp_path):
        checks = Checks()
        found = read_rows(write_csv(tmp_path / "l.csv", ["path", "label"], [[f"{i}", "x"] for i in range(9)]), checks)
        assert list(prepared(found, checks)) == []
        assert len(checks.lines()) == 1
        assert checks.lines()[0].startswith("skipped: 9 images: no such file")
        assert checks.lines()[0].endswith("...")
