"""LABELS.csv: labelled images become cases; nothing of a file but its pixels and its label is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image
from pydicom import dcmread
from workflow_samples import files, page_picture, rows, slice_picture

from dicomnode.archive import schema as t
from dicomnode.domain import Finding, FindingStatus
from dicomnode.errors import InputError
from dicomnode.evaluation import labels as evaluation
from dicomnode.models.preprocess import prepare_picture
from dicomnode.models.training import tables
from dicomnode.testing import sample_study, write_study
from dicomnode.workflow.captures import capture_pixels
from dicomnode.workflow.ingest import Added
from dicomnode.workflow.labels import KNOWN, add_labels, finding_of, read_labels, read_picture

SECRET = "DOE^JANE"


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (90, 70)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    slice_picture(seed, size).save(path)
    return path


def labels(folder: Path, *lines: str, header: str = "path,label,patient") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "LABELS.csv"
    path.write_text("\n".join([header, *lines]) + "\n", "utf-8")
    return path


def cases(node) -> list[tuple[str, str, list[str]]]:
    """(source, status, labels) of every case."""
    with node.catalogue.engine.connect() as db:
        studies = db.execute(sa.select(t.studies).order_by(t.studies.c.id)).all()
    return [(s.source, s.status, [f.display for f in node.catalogue.findings(s.uid)]) for s in studies]


class TestTheFile:
    def test_paths_are_relative_to_the_file_or_absolute(self, tmp_path):
        absolute = tmp_path / "elsewhere" / "b.png"
        path = labels(tmp_path, "img/a.png,COVID,p1", f"{absolute},Normal,")
        assert [(r.path, r.label, r.patient) for r in read_labels(path)] == [
            (tmp_path / "img" / "a.png", "COVID", "p1"),
            (absolute, "Normal", ""),
        ]

    def test_the_patient_and_other_columns_may_be_there_or_not(self, tmp_path):
        path = labels(tmp_path, "a.png,COVID", header="path,label")
        assert [r.patient for r in read_labels(path)] == [""]
        path = labels(tmp_path, "x,a.png,COVID,train", header="id,path,label,split")
        assert [r.label for r in read_labels(path)] == ["COVID"]

    def test_a_byte_order_mark_of_a_spreadsheet_does_no_harm(self, tmp_path):
        path = tmp_path / "LABELS.csv"
        path.write_text("path,label\na.png,neumonía\n", "utf-8-sig")
        assert [r.label for r in read_labels(path)] == ["neumonía"]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"path,patient\na.png,p\n", "'label'"),
            (b"", "'path'"),
            (b"path,label\n\xff\xfe,\xff\n", "not a readable"),
            (b"path,label,label\na.png,COVID,x\n", "column 'label' is there twice"),
            (b"path,label\na.png,COVID\n\nb.png,Pneumonia, viral\n", "row 4 has 3 cells, the header 2"),
            (b"path,label\na.png,COVID\nb\0.png,COVID\n", "row 3 has a NUL byte in column 'path'"),
            (b'path,label\n"a.png,COVID\nb.png,COVID\n', "LABELS.csv:3: a path goes over several lines"),
            (b"path,label\n ,COVID\n", "LABELS.csv:2: a row has no path"),
            (
                b"path,label\na.png,COVID\n./a.png,normal\n",
                "LABELS.csv:3: the same image as in line 2 with another label",
            ),
            (b"path,label,patient\na.png,COVID,1\na.png,COVID,2\n", "LABELS.csv:3: the same image as in line 2"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_named_with_what_it_lacks(self, tmp_path, content, said):
        path = tmp_path / "LABELS.csv"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_labels(path)
        assert said in str(caught.value)
        assert "LABELS.csv" in str(caught.value)

    @pytest.mark.parametrize(
        ("header", "line"),
        [
            ("path;label;patient", "column 'path' is missing (columns: path;label;patient) (save it with commas)"),
            ("path\tlabel", r"column 'path' is missing (columns: path\tlabel) (save it with commas)"),
            ("Path,Label", "(columns: Path, Label) (names are in small letters, without spaces: 'path', not 'Path')"),
            (
                "path, label",
                "(columns: path,  label) (names are in small letters, without spaces: 'label', not ' label')",
            ),
            ("file,label,,", "column 'path' is missing (columns: file, label)"),
            ("", "column 'path' is missing (columns: none)"),
            ("Doe^Jane,a.png,20240131,1.2.840.113619", "(columns: ..., a.png, ..., ...)"),  # a row, and whose
        ],
    )
    def test_a_table_of_other_columns_is_told_those_that_it_has(self, tmp_path, header, line):
        path = labels(tmp_path, "a.png;COVID;p1", header=header)
        with pytest.raises(InputError) as caught:
            read_labels(path)
        assert str(caught.value).endswith(line)
        assert "\n" not in str(caught.value)

    def test_a_table_of_many_columns_is_told_some(self, tmp_path):
        with pytest.raises(InputError, match=r"columns: c0, .*c19, and 30 more\)$"):
            read_labels(labels(tmp_path, header=",".join(f"c{n}" for n in range(50))))

    def test_empty_cells_behind_the_last_column_shift_nothing(self, tmp_path):
        path = labels(tmp_path, "a.png,COVID,,,", header="path,label,,")
        assert [(r.label, r.patient) for r in read_labels(path)] == [("COVID", "")]

    def test_a_column_that_no_command_knows_is_named(self, tmp_path):
        path, added = labels(tmp_path, "a.png,COVID,p1,train", header="path,label,pateint,split"), Added()
        assert [r.patient for r in read_labels(path, added)] == [""]
        known = "path, label, patient, split, source_format, source_mode, width, height"
        assert added.notes == [f"{path}: column 'pateint' is not known and not used (known: {known})"]

    def test_the_columns_that_are_known_are_those_of_every_command(self):
        assert set(KNOWN) == evaluation.KNOWN == {*tables.LABEL_COLUMNS, *tables.OPTIONAL}

    def test_a_row_that_is_there_twice_is_one_image(self, tmp_path):
        path, added = labels(tmp_path, "a.png,COVID,p1", "./a.png,COVID,p1"), Added()
        assert len(read_labels(path, added)) == added.duplicates == 1

    @pytest.mark.parametrize(
        ("label", "status", "finding"),
        [
            ("COVID", FindingStatus.PRESENT, "COVID"),
            ("Pneumonia", FindingStatus.PRESENT, "Pneumonia"),
            ("Normal", FindingStatus.NONE, "Normal"),
            ("  no finding ", FindingStatus.NONE, "  no finding "),
            ("sano", FindingStatus.NONE, "sano"),
            ("", FindingStatus.UNKNOWN, None),
            ("unknown", FindingStatus.UNKNOWN, None),
            ("N/A", FindingStatus.UNKNOWN, None),
        ],
    )
    def test_a_label_states_a_finding_none_or_nothing(self, label, status, finding):
        found_status, findings = finding_of(label)
        assert found_status is status
        assert [f.display for f in findings] == ([finding] if finding else [])
        assert all(f.system == "99LABEL" for f in findings)


class TestPictures:
    def test_a_16_bit_picture_keeps_its_range(self, tmp_path):
        values = np.linspace(1000, 40000, 60 * 80).reshape(60, 80).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "a.png")
        grey = read_picture(tmp_path / "a.png")
        assert (grey.dtype, grey.shape) == (np.uint8, (60, 80))
        assert (int(grey.min()), int(grey.max())) == (0, 255)
        assert len(np.unique(grey)) > 200

    @pytest.mark.parametrize(("mode", "name"), [("RGBA", "a.png"), ("RGB", "a.jpg"), ("P", "a.png"), ("L", "a.webp")])
    def test_colour_transparency_and_palettes_become_grey(self, tmp_path, mode, name):
        noise = Image.effect_noise((50, 40), 80).convert("RGB").convert(mode)
        noise.save(tmp_path / name)
        grey = read_picture(tmp_path / name)
        assert (grey.dtype, grey.shape) == (np.uint8, (40, 50))
        assert grey.std() > 10

    def test_a_dicom_image_is_prepared_as_for_the_networks(self, tmp_path):
        (path,) = write_study(sample_study(1, matrix=64), tmp_path)
        assert read_picture(path).shape == (224, 224)

    @pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
    def test_what_is_no_picture_is_an_input_error(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputError):
            read_picture(tmp_path / "a.png")

    def test_a_picture_without_contrast_cannot_be_compared(self, tmp_path):
        Image.new("L", (50, 50), 7).save(tmp_path / "a.png")
        with pytest.raises(InputError):
            read_picture(tmp_path / "a.png")


class TestAdding:
    def test_each_row_without_a_patient_is_a_case_of_its_own_and_rows_of_a_patient_are_one(self, node, tmp_path):
        for n in range(4):
            picture(tmp_path / f"{n}.png", n)
        path = labels(tmp_path, "0.png,COVID,p1", "1.png,COVID,p1", "2.png,Normal,", "3.png,unknown,")
        added = add_labels(node.context, path)
        assert (added.studies, added.instances, added.vectors) == (3, 4, 4)
        assert cases(node) == [
            ("labels", "present", ["COVID"]),
            ("labels", "none", ["Normal"]),
            ("labels", "unknown", []),
        ]
        status = node.index.status()
        assert (status["studies"], status["patients"], status["instances"], status["vectors"]) == (3, 3, 4, 4)

    def test_a_patient_with_two_labels_has_both_findings_and_present_wins(self, node, tmp_path):
        picture(tmp_path / "0.png", 0), picture(tmp_path / "1.png", 1)
        add_labels(node.context, labels(tmp_path, "0.png,Normal,p1", "1.png,COVID,p1"))
        ((_, status, findings),) = cases(node)
        assert (status, sorted(findings)) == ("present", ["COVID", "Normal"])

    def test_a_second_run_adds_nothing(self, node, tmp_path):
        picture(tmp_path / "0.png")
        path = labels(tmp_path, "0.png,COVID,p1")
        add_labels(node.context, path)
        before = (rows(node), files(node))
        again = add_labels(node.context, path)
        assert (again.studies, again.vectors, again.already) == (0, 0, 1)
        assert (rows(node), files(node)) == before

    @pytest.mark.parametrize(
        "spelling", ["data/LABELS.csv", "../site/data/LABELS.csv", "data/../data/LABELS.csv", "LABELS.csv"]
    )
    def test_the_same_file_by_another_spelling_of_its_path_adds_nothing(self, node, tmp_path, monkeypatch, spelling):
        work = tmp_path / "site"
        picture(work / "img" / "0.png")
        labels(work / "data", "../img/0.png,COVID,", "../img/0.png,COVID,")
        monkeypatch.chdir(work)
        assert add_labels(node.context, work / "data" / "LABELS.csv").studies == 1
        monkeypatch.chdir(work if "/" in spelling else work / "data")
        again = add_labels(node.context, Path(spelling))
        assert (again.studies, again.already) == (0, 1)
        (tmp_path / "link").symlink_to(work / "data")
        assert add_labels(node.context, tmp_path / "link" / "LABELS.csv").already == 1

    @pytest.mark.parametrize(
        "before", ["data/../img/0.png", "site/data/../img/0.png", "../img/0.png", "{}/data/../img/0.png"]
    )
    def test_a_case_whose_key_held_its_path_as_typed_is_still_known(self, node, tmp_path, monkeypatch, before):
        work = tmp_path / "site"
        picture(work / "img" / "0.png")
        path = labels(work / "data", "../img/0.png,COVID,")
        with monkeypatch.context() as then:
            then.setattr("dicomnode.workflow.labels._key_of", lambda *_: f"path:{before.format(work)}")
            assert add_labels(node.context, path).studies == 1
        again = add_labels(node.context, path)
        assert (again.studies, again.already) == (0, 1)
        assert node.index.status()["studies"] == 1

    def test_unreadable_images_are_counted_and_the_others_go_in(self, node, tmp_path):
        picture(tmp_path / "good.png")
        (tmp_path / "bad.png").write_bytes(b"no")
        Image.new("L", (30, 30)).save(tmp_path / "flat.png")
        path = labels(tmp_path, "good.png,COVID,p1", "bad.png,COVID,p1", "absent.png,COVID,p2", "flat.png,COVID,p3")
        added = add_labels(node.context, path)
        assert (added.studies, added.instances) == (1, 1)
        assert sum(added.skipped.values()) == 3
        assert added.left_out == [
            f"{path}:3: bad.png: left out: the file is not a picture that can be read",
            f"{path}:4: absent.png: left out: no such file",
            f"{path}:5: flat.png: left out: every pixel has the same value",
        ]
        assert node.index.status()["studies"] == 1

    def test_pictures_that_the_input_gate_refuses_are_left_out_and_named(self, node, tmp_path):
        picture(tmp_path / "good.png")
        page_picture().save(tmp_path / "page.png"), page_picture().save(tmp_path / "other.png")
        path = labels(tmp_path, "good.png,COVID,p1", "page.png,COVID,p1", "other.png,COVID,p2")
        added = add_labels(node.context, path)
        assert (added.studies, added.instances, added.vectors) == (1, 1, 1)
        assert added.skipped == {
            "not searchable: The image is no CT or MR slice: it looks like a page, chart or screen": 2
        }
        assert node.index.status()["patients"] == 1
        again = add_labels(node.context, path)
        assert (again.studies, again.already, again.vectors) == (0, 1, 0)

    def test_dicom_of_another_modality_is_left_out_by_its_header(self, node, tmp_path):
        picture(tmp_path / "good.png")
        (image,) = sample_study(1, matrix=64)
        image.Modality = "NM"
        write_study([image], tmp_path / "nm")
        (file,) = (tmp_path / "nm").rglob("*.dcm")
        added = add_labels(node.context, labels(tmp_path, "good.png,COVID,p1", f"{file},COVID,p2"))
        assert (added.studies, added.vectors) == (1, 1)
        assert added.skipped == {"not searchable: NM objects hold no CT or MR slices": 1}

    def test_how_each_label_was_recorded_is_counted(self, node, tmp_path):
        for n in range(4):
            picture(tmp_path / f"{n}.png", n)
        path = labels(tmp_path, "0.png,COVID,", "1.png,COVID,", "2.png,normal,", "3.png,,")
        added = add_labels(node.context, path)
        assert added.labels == {"COVID": {"present": 2}, "normal": {"none": 1}, "": {"unknown": 1}}

    def test_a_run_with_an_unreadable_image_does_not_add_its_patient_again(self, node, tmp_path):
        picture(tmp_path / "good.png")
        path = labels(tmp_path, "good.png,COVID,p1", "bad.png,COVID,p1")
        add_labels(node.context, path)
        before = rows(node)
        add_labels(node.context, path)
        assert rows(node) == before

    @pytest.mark.parametrize("late", [0, 1])
    def test_an_image_that_can_be_read_the_next_time_completes_its_case(self, node, tmp_path, late):
        picture(tmp_path / f"{1 - late}.png")
        path = labels(tmp_path, "0.png,COVID,p1", "1.png,COVID,p1")
        add_labels(node.context, path)
        picture(tmp_path / f"{late}.png", 1)
        add_labels(node.context, path)
        status = node.index.status()
        assert (status["studies"], status["instances"], status["vectors"]) == (1, 2, 2)
        assert node.index.verify() == []

    def test_nothing_of_the_file_but_its_pixels_is_kept(self, node, tmp_path):
        image = slice_picture(0, (120, 100)).convert("RGB")
        exif = Image.Exif()
        exif[0x010E] = SECRET  # ImageDescription
        exif[0x013B] = SECRET  # Artist
        folder = tmp_path / f"patients {SECRET}"
        folder.mkdir()
        image.save(folder / f"{SECRET}.jpg", exif=exif, comment=SECRET.encode())
        add_labels(node.context, labels(folder, f"{SECRET}.jpg,COVID,{SECRET}"))
        (capture,) = node.objects.folder.rglob("*.dcm")
        assert dcmread(capture).PatientIdentityRemoved == "YES"
        for found in tmp_path.joinpath("var").rglob("*"):
            assert SECRET not in str(found.relative_to(tmp_path))
            if found.is_file():
                assert SECRET.encode() not in found.read_bytes(), found

    def test_a_capture_is_seen_by_the_networks_as_its_picture_was(self, node, tmp_path):
        path = picture(tmp_path / "0.png", 3, (300, 200))
        add_labels(node.context, labels(tmp_path, "0.png,COVID,"))
        (capture,) = node.objects.folder.rglob("*.dcm")
        assert np.array_equal(capture_pixels(capture), prepare_picture(path).pixels)

    def test_a_screen_capture_in_dicom_is_not_taken_and_named(self, node, tmp_path):
        (screen,) = sample_study(1, matrix=64, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")
        write_study([screen], tmp_path / "dicom")
        added = add_labels(node.context, labels(tmp_path, "dicom/000001.dcm,COVID,p1"))
        assert (added.studies, sum(added.skipped.values())) == (0, 1)

    def test_two_files_of_labels_in_folders_of_one_name_do_not_share_patients(self, node, tmp_path):
        for n, side in enumerate(("a", "b")):
            folder = tmp_path / side / "images"
            picture(folder / "0.png", n)
            added = add_labels(node.context, labels(folder, "0.png,COVID,p1"))
            assert added.studies == 1
        assert node.index.status()["patients"] == 2

    def test_findings_have_their_source(self, node, tmp_path):
        picture(tmp_path / "0.png")
        add_labels(node.context, labels(tmp_path, "0.png,COVID,"))
        ((study, _, _),) = node.catalogue.study_sources()
        assert node.catalogue.findings(study) == [Finding("99LABEL", "COVID", "COVID", "labels file")]
