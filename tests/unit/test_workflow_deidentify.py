"""``deid``: a folder of de-identified files, and what became of each; explaining never shows a value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from test_cli import run as command

from dicomnode.deid.pixel_policy import PixelPolicy
from dicomnode.errors import Busy, InputError, NotFound, UsageError
from dicomnode.testing import sample_study, write_study
from dicomnode.workflow.batch.choices import INPUT_PREFIX, Layout, ReportPaths
from dicomnode.workflow.batch.explain import explain_file, explain_pixels
from dicomnode.workflow.batch.journal import FOLDER, Journal
from dicomnode.workflow.batch.report import Report, is_report, write_report
from dicomnode.workflow.deidentify import Request, deidentified, identity_of, locate

SECRET = "SECRET"
CONTRACT = {"files", "counts", "profile"}  # the keys that others rely on


def run(node, paths, out, *, layout=Layout.DICOM, paths_as=ReportPaths.RELATIVE, progress=None):
    """The report of a run, as written to a JSON file."""
    with deidentified(node.deid_context, Request(paths, out, layout), progress) as done:
        file = node.data_dir.parent / "report.json"
        write_report(Report(done, paths_as), file)
    data = json.loads(file.read_text())
    file.unlink()
    return data


def counts(ok=0, quarantined=0, failed=0, duplicates=0, skipped=0):
    return {"ok": ok, "quarantined": quarantined, "failed": failed, "duplicates": duplicates, "skipped": skipped}


def written(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.dcm")}


@pytest.fixture
def incoming(tmp_path):
    folder = tmp_path / "in"
    write_study(sample_study(2, matrix=64, patient_id=f"{SECRET}-1", name=f"{SECRET}^Jane"), folder / "a" / "b")
    write_study(sample_study(1, matrix=64, patient_id=f"{SECRET}-2", BurnedInAnnotation="YES"), folder / "c")
    (folder / "notes.txt").write_text("no DICOM")
    return folder


def test_the_report_says_of_each_file_what_became_of_it(node, incoming, tmp_path):
    data = run(node, [incoming], tmp_path / "out")
    assert set(data) >= CONTRACT
    assert data["counts"] == counts(ok=2, quarantined=2)
    assert data["profile"] == "basic"
    for row in data["files"]:
        assert set(row) == {"input", "output", "status", "reason"}
        assert (row["output"] is not None) == (row["status"] == "ok") == (row["reason"] == "")
        assert (incoming / row["input"]).is_file()
    assert data["quarantine"] == {"burned-in": 1, "not-dicom": 1}


def test_the_files_lie_by_pseudonyms_and_hold_nothing_of_the_patient(node, incoming, tmp_path):
    out = tmp_path / "out"
    data = run(node, [incoming], out)
    files = sorted(out.rglob("*.dcm"))
    assert [str(p) for p in files] == sorted(f["output"] for f in data["files"] if f["output"])
    for path in files:
        assert SECRET.encode() not in path.read_bytes()
        ds = dcmread(path)
        assert ds.PatientID.startswith("DN-")
        folder = out / ds.PatientID / ds.StudyInstanceUID / ds.SeriesInstanceUID
        assert path == folder / f"{ds.SOPInstanceUID}.dcm"
    assert {p.parent.name for p in out.rglob("*") if p.is_file()} == {files[0].parent.name, FOLDER}
    assert {p.name for p in (out / FOLDER).iterdir()} == {"journal.sqlite3", "lock"}
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out", "var"}


def test_the_same_files_again_are_the_same_files(node, incoming, tmp_path):
    run(node, [incoming], tmp_path / "one")
    run(node, [incoming], tmp_path / "two")
    assert written(tmp_path / "one") == written(tmp_path / "two")
    assert len(written(tmp_path / "one")) == 2


@pytest.mark.parametrize("dry", [False, True])
def test_faces_are_counted_in_every_form_of_the_report(node, tmp_path, dry):
    heads = sample_study(2, matrix=64, BodyPartExamined="HEAD", StudyDescription="TC cabeza", SeriesDescription="1 mm")
    write_study(heads, tmp_path / "in" / "head")
    both = sample_study(1, matrix=64, BodyPartExamined="NECK", seed=3)  # and its description says thorax
    write_study(both, tmp_path / "in" / "both")
    write_study(sample_study(1, matrix=64, seed=4), tmp_path / "in" / "chest")
    out = None if dry else tmp_path / "out"
    assert run(node, [tmp_path / "in"], out)["faces"] == {"likely": 2, "possible": 1}
    with deidentified(node.deid_context, Request([tmp_path / "in"], out)) as done:
        for name in ("report.csv", "report.html"):
            write_report(Report(done, ReportPaths.HASHED), tmp_path / name)
    assert {"face,,,,,likely,2", "face,,,,,possible,1"} <= set((tmp_path / "report.csv").read_text().splitlines())
    assert "2 are images of the head or neck" in (tmp_path / "report.html").read_text()


def test_a_dry_run_tells_the_same_and_writes_nothing(node, incoming, tmp_path):
    data = run(node, [incoming], None)
    assert data["counts"] == counts(ok=2, quarantined=2)
    assert data["dry_run"] is True
    assert {f["output"] for f in data["files"]} == {None}
    assert {p.name for p in tmp_path.iterdir()} == {"in", "var"}
    assert node.vault.status().patients == 0
    assert run(node, [incoming], tmp_path / "out")["changes"] == data["changes"]


def test_a_dry_run_without_a_vault_makes_none(incoming, tmp_path):
    config = tmp_path / "node.toml"
    config.write_text(f'[node]\ndata_dir = "{tmp_path}/new/var"\n[vault]\nkey_file = "{tmp_path}/new/vault.key"\n')
    report = tmp_path / "r.json"
    done = command("deid", incoming, "--dry-run", "--report", report, "--config", config)
    assert "2 ok, 2 quarantined" in done.out
    assert "vault created" not in done.out + done.err
    assert json.loads(report.read_text())["dry_run"] is True
    assert not [p for p in (tmp_path / "new").rglob("*") if p.is_file()]


def test_a_dry_run_leaves_an_empty_folder_that_was_there(incoming, tmp_path, monkeypatch):
    monkeypatch.setenv("DICOMNODE__NODE__DATA_DIR", str(tmp_path / "mounted"))
    (tmp_path / "mounted").mkdir()
    command("deid", incoming, "--dry-run")
    assert list((tmp_path / "mounted").iterdir()) == []


@pytest.mark.parametrize("name", ["image.dcm", "findings.csv", "page.html", "folder.json"])
def test_a_report_replaces_an_earlier_one_and_nothing_else(incoming, tmp_path, monkeypatch, name):
    monkeypatch.setenv("DICOMNODE__NODE__DATA_DIR", str(tmp_path / "var"))
    there = tmp_path / name
    there.mkdir() if name.startswith("folder") else there.write_bytes(b"path,label\r\n<!doctype html><title>x</title>")
    before = None if there.is_dir() else there.read_bytes()
    refused = command("deid", incoming, "--dry-run", "--report", there)
    assert refused.code == 2
    assert str(there) in refused.error()
    assert before is None or there.read_bytes() == before


@pytest.mark.parametrize("name", ["r.json", "r.csv", "r.html"])
def test_an_earlier_report_is_known_and_replaced(node, incoming, tmp_path, name):
    with deidentified(node.deid_context, Request([incoming], None)) as done:
        write_report(Report(done, ReportPaths.HASHED), tmp_path / name)
    assert is_report(tmp_path / name)
    assert not is_report(next(p for p in incoming.rglob("*") if p.is_file()))


def test_looking_an_input_up_makes_no_vault(incoming, tmp_path, monkeypatch):
    monkeypatch.setenv("DICOMNODE__NODE__DATA_DIR", str(tmp_path / "var"))
    done = command("deid", incoming, "--locate", f"{INPUT_PREFIX}0123456789abcdef")
    assert (done.code, "there is no vault" in done.error()) == (1, True)
    assert not (tmp_path / "var").exists()


class TestOneUidTwice:
    """Of several objects with one SOP Instance UID the first is written, and the report says so."""

    @pytest.fixture
    def twice(self, tmp_path):
        (ds,) = sample_study(1, matrix=64)
        (first,) = write_study([ds], tmp_path / "in" / "a")
        (tmp_path / "in" / "b").mkdir()
        copy = tmp_path / "in" / "b" / "copy.dcm"
        copy.write_bytes(first.read_bytes())
        other = tmp_path / "in" / "b" / "other.dcm"
        pixels = bytearray(ds.PixelData)
        pixels[0] ^= 1
        ds.PixelData = bytes(pixels)
        other.write_bytes(write_study([ds], tmp_path / "else")[0].read_bytes())
        return first, copy, other

    @pytest.mark.parametrize("dry", [False, True])
    def test_other_content_is_quarantined_and_a_copy_is_no_second_file(self, node, twice, tmp_path, dry):
        first, *_ = twice
        out = None if dry else tmp_path / "out"
        data = run(node, [tmp_path / "in"], out)
        assert data["counts"] == counts(ok=1, quarantined=1, duplicates=1)
        rows = {row["input"]: row for row in data["files"]}
        assert rows["b/copy.dcm"]["status"] == "ok"
        assert rows["b/copy.dcm"]["reason"] == f"duplicate of a/{first.name}"
        assert rows["b/copy.dcm"]["output"] is None
        assert rows["b/other.dcm"]["status"] == "quarantined"
        assert rows["b/other.dcm"]["reason"].startswith("version-conflict: ")
        if out is not None:
            (file,) = out.rglob("*.dcm")
            assert rows[f"a/{first.name}"]["output"] == str(file)
            assert dcmread(file).PixelData == dcmread(first).PixelData

    def test_what_an_earlier_run_wrote_is_not_overwritten_either(self, node, twice, tmp_path):
        first, _, other = twice
        out = tmp_path / "out"
        run(node, [first], out)
        (file,) = out.rglob("*.dcm")
        before = file.read_bytes()
        assert run(node, [first], out)["counts"] == counts(ok=1)
        late = run(node, [other], out)
        assert late["counts"] == counts(quarantined=1)
        assert INPUT_PREFIX in late["files"][0]["reason"]  # the other file is not one of this run's
        assert file.read_bytes() == before

    def test_a_file_that_nobody_wrote_down_is_not_overwritten_either(self, node, twice, tmp_path):
        first, _, other = twice
        out = tmp_path / "out"
        run(node, [first], out)
        (out / FOLDER / "journal.sqlite3").unlink()
        assert run(node, [first], out)["counts"] == counts(ok=1)
        (out / FOLDER / "journal.sqlite3").unlink()
        late = run(node, [other], out)
        assert late["counts"] == counts(quarantined=1)
        assert "is there already" in late["files"][0]["reason"]


class TestGoingOn:
    """A run into a folder that was begun does only what is left."""

    def test_nothing_is_done_twice_and_the_report_is_the_same(self, node, incoming, tmp_path):
        out = tmp_path / "out"
        first = run(node, [incoming], out)
        times = {p: p.stat().st_mtime_ns for p in out.rglob("*.dcm")}
        told = []
        again = run(node, [incoming], out, progress=lambda done, total: told.append((done, total)))
        assert told == [(4, 4)]
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*.dcm")} == times
        assert {**again, "created": ""} == {**first, "created": ""}

    def test_new_files_are_added(self, node, incoming, tmp_path):
        run(node, [incoming], tmp_path / "out")
        write_study(sample_study(1, matrix=64, seed=5), incoming / "later")
        told = []
        data = run(node, [incoming], tmp_path / "out", progress=lambda *n: told.append(n))
        assert told == [(4, 5), (5, 5)]
        assert data["counts"] == counts(ok=3, quarantined=2)

    def test_a_file_that_was_mended_is_tried_again(self, node, incoming, tmp_path):
        run(node, [incoming], tmp_path / "out")
        mended = write_study(sample_study(1, matrix=64, seed=5), tmp_path / "else")[0]
        (incoming / "notes.txt").write_bytes(mended.read_bytes())
        assert run(node, [incoming], tmp_path / "out")["counts"] == counts(ok=3, quarantined=1)

    @pytest.mark.parametrize(
        ("changed", "word"),
        [
            ({"deid": {"options": ()}}, "recipe"),
            ({"node": {"default_issuer": "OTHER"}}, "vault key"),
        ],
    )
    def test_another_recipe_or_vault_is_refused(self, node, make_node, incoming, tmp_path, changed, word):
        run(node, [incoming], tmp_path / "out")
        before = written(tmp_path / "out")
        node.close()
        other = make_node(tmp_path, **changed)
        with pytest.raises(UsageError, match=f"another {word}"):
            run(other, [incoming], tmp_path / "out")
        assert written(tmp_path / "out") == before

    def test_another_layout_is_refused(self, node, incoming, tmp_path):
        run(node, [incoming], tmp_path / "out")
        with pytest.raises(UsageError, match="another layout"):
            run(node, [incoming], tmp_path / "out", layout=Layout.KEEP)

    def test_two_runs_at_once_are_refused(self, node, incoming, tmp_path):
        (tmp_path / "out").mkdir()
        journal = Journal(tmp_path / "out", {}, node.vault.keyed_hash)
        with pytest.raises(Busy):
            run(node, [incoming], tmp_path / "out")
        journal.close()

    def test_a_folder_that_is_no_journal_is_one_line(self, node, incoming, tmp_path):
        run(node, [incoming], tmp_path / "out")
        (tmp_path / "out" / FOLDER / "journal.sqlite3").write_bytes(b"nonsense" * 1000)
        with pytest.raises(Exception, match="journal of the folder cannot be used") as caught:
            run(node, [incoming], tmp_path / "out")
        assert "\n" not in str(caught.value)


def test_the_journal_and_a_hashed_report_tell_nothing_of_the_input(node, tmp_path):
    folder = tmp_path / "in" / f"{SECRET}^Jane 19700101"
    study = sample_study(2, matrix=64, patient_id=f"{SECRET}-1", name=f"{SECRET}^Jane")
    originals = [str(ds[k].value) for ds in study for k in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")]
    write_study(study, folder)
    (folder / f"{SECRET}.txt").write_text("no DICOM")
    data = run(node, [tmp_path / "in"], tmp_path / "out", paths_as=ReportPaths.HASHED)
    for text in (json.dumps(data).encode(), (tmp_path / "out" / FOLDER / "journal.sqlite3").read_bytes()):
        assert SECRET.encode() not in text
        assert b"Jane" not in text
        assert not any(uid.encode() in text for uid in originals)
    assert all(row["input"].startswith(INPUT_PREFIX) for row in data["files"])
    found = [locate(node.deid_context, [tmp_path / "in"], r["input"].removeprefix(INPUT_PREFIX)) for r in data["files"]]
    assert sorted(found) == sorted(str(p) for p in folder.iterdir())
    with pytest.raises(NotFound):
        locate(node.deid_context, [tmp_path / "in"], "0" * 16)


class TestLayoutKeep:
    """Folders stay apart and as deep as they were; no word of their names stays."""

    @pytest.fixture
    def folders(self, tmp_path):
        root = tmp_path / "in"
        for n, place in enumerate((f"{SECRET} Jane/T1", f"{SECRET} Jane/T2", f"{SECRET} Joan/T1", "")):
            write_study(sample_study(2, matrix=64, seed=n, patient_id=f"{SECRET}-{n}"), root / place)
        return root

    def test_depth_and_grouping_stay_and_words_go(self, node, folders, tmp_path):
        out = tmp_path / "out"
        data = run(node, [folders], out, layout=Layout.KEEP)
        assert data["counts"] == counts(ok=8)
        groups: dict[str, set[str]] = {}
        for row in data["files"]:
            target = Path(row["output"]).relative_to(out)
            assert len(target.parts) == len(Path(row["input"]).parts)
            assert SECRET not in str(target)
            assert "T1" not in target.parts
            groups.setdefault(str(Path(row["input"]).parent), set()).add(str(target.parent))
        assert all(len(mapped) == 1 for mapped in groups.values())
        assert len(set.union(*groups.values())) == len(groups) == 4
        jane = {Path(*groups[f"{SECRET} Jane/{t}"]).parts[0] for t in ("T1", "T2")}
        assert len(jane) == 1
        assert Path(*groups[f"{SECRET} Jane/T1"]).name != Path(*groups[f"{SECRET} Joan/T1"]).name

    def test_again_is_the_same(self, node, folders, tmp_path):
        run(node, [folders], tmp_path / "one", layout=Layout.KEEP)
        run(node, [folders], tmp_path / "two", layout=Layout.KEEP)
        assert written(tmp_path / "one") == written(tmp_path / "two")


def test_what_cannot_be_read_makes_no_pseudonym(node, tmp_path):
    (tmp_path / "junk").write_bytes(b"junk")
    data = run(node, [tmp_path / "junk"], tmp_path / "out")
    assert [f["status"] for f in data["files"]] == ["quarantined"]
    assert node.vault.status().patients == 0


def test_progress_is_told_up_to_the_end(node, incoming):
    told = []
    run(node, [incoming], None, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 4) for done in range(5)]


def test_a_path_that_is_not_there_is_a_usage_error(node, tmp_path):
    with pytest.raises(UsageError):
        run(node, [tmp_path / "absent"], None)


def test_the_folder_that_is_written_to_is_not_read(node, tmp_path):
    write_study(sample_study(1, matrix=64), tmp_path / "in")
    out = tmp_path / "in" / "clean"
    assert run(node, [tmp_path / "in"], out)["counts"] == counts(ok=1)
    assert run(node, [tmp_path / "in"], out)["counts"] == counts(ok=1)
    for wrong in (out, out / FOLDER):
        with pytest.raises(UsageError, match="written to"):
            run(node, [wrong], out)
    with pytest.raises(UsageError, match="written to"):
        run(node, [tmp_path / "in"], tmp_path / "in")
    assert not (tmp_path / "in" / FOLDER).exists()


def test_a_study_without_patient_id_is_a_patient_of_its_own(tmp_path):
    (ds,) = sample_study(1, matrix=32, patient_id="")
    (file,) = write_study([ds], tmp_path)
    assert identity_of(file, "HOSPITAL") == (("study", str(ds.StudyInstanceUID)), False)
    ds.PatientID = "1"
    (file,) = write_study([ds], tmp_path)
    assert identity_of(file, "HOSPITAL") == (("HOSPITAL", "1"), False)


def test_explaining_tells_each_attribute_at_every_depth_and_never_a_value(node, tmp_path):
    (ds,) = sample_study(1, matrix=32, patient_id=f"{SECRET}-1", name=f"{SECRET}^Jane")
    inner = Dataset()
    inner.PatientName = f"{SECRET}^Inner"
    outer = Dataset()
    outer.CTAcquisitionTypeSequence = Sequence([inner])
    ds.SharedFunctionalGroupsSequence = Sequence([outer])
    gone = Dataset()
    gone.RequestedProcedureID = SECRET
    ds.RequestAttributesSequence = Sequence([gone])
    block = ds.private_block(0x0099, f"{SECRET} CREATOR", create=True)
    block.add_new(0x01, "LO", f"{SECRET} private")
    (path,) = write_study([ds], tmp_path)
    rows = list(explain_file(node.recipe, path))
    lines = [row.line for row in rows]
    text = "\n".join(lines)
    assert SECRET not in text
    assert "(0010,0010) Patient's Name: " in text
    assert "    (0010,0010) Patient's Name: " in text  # two sequences down
    assert any("(0099,1001)" in line and ": remove [Table E.1-1, private attributes: X]" in line for line in lines)
    assert not any("Requested Procedure ID" in line for line in lines)  # it goes with the sequence it is in
    assert all(row.rule and row.action for row in rows)
    rules = {row.keyword: row.rule for row in rows if row.depth == 0}
    assert rules["StudyDate"] == ("Table E.1-1, StudyDate: basic: Z, retain-longitudinal-modified-dates: C")
    assert rules["AccessionNumber"] == "Table E.1-1, AccessionNumber: basic: Z"
    assert rules["Rows"] == "not in Table E.1-1"


@pytest.mark.parametrize(
    ("modality", "sop_class", "policy", "told"),
    [
        ("CT", "1.2.840.10008.5.1.4.1.1.2", PixelPolicy(), "copied as they are"),
        ("CT", "1.2.840.10008.5.1.4.1.1.2", PixelPolicy(sample=1.0), "examined"),
        ("CT", "1.2.840.10008.5.1.4.1.1.7", PixelPolicy(), "examined"),
        ("US", "1.2.840.10008.5.1.4.1.1.6.1", PixelPolicy("quarantine"), "the object is held [burned-in: "),
        ("US", "1.2.840.10008.5.1.4.1.1.6.1", PixelPolicy(), "2 places are blanked by what is known of the device"),
    ],
)
def test_explaining_tells_what_becomes_of_the_pixels(tmp_path, modality, sop_class, policy, told):
    (ds,) = sample_study(1, matrix=32, Modality=modality, SOPClassUID=sop_class, ImageType=["ORIGINAL", "PRIMARY"])
    if modality == "US":
        region = Dataset()
        region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 4
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 31, 27
        ds.SequenceOfUltrasoundRegions = Sequence([region])
    (path,) = write_study([ds], tmp_path)
    line = explain_pixels(path, policy)
    assert line.startswith(f"Pixel Data: {told}")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "reason"),
    [("rtplan.dcm", "not-image"), ("MR_truncated.dcm", "truncated"), ("UN_sequence.dcm", "missing-uid")],
)
def test_explaining_says_that_an_object_will_be_held(name, reason):
    line = explain_pixels(Path(get_testdata_file(name)), PixelPolicy())
    assert line.startswith(f"The object is held, nothing of it is written [{reason}: ")


def test_explaining_says_that_a_face_is_held(tmp_path):
    how = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "BodyPartExamined": "HEAD", "ImageType": ["ORIGINAL", "PRIMARY"]}
    (path,) = write_study(sample_study(1, matrix=256, Modality="CT", **how), tmp_path)
    assert "[recognizable-face: " in explain_pixels(path, PixelPolicy(faces="quarantine"))
    assert "recognizable-face" not in explain_pixels(path, PixelPolicy())


@pytest.mark.filterwarnings("ignore")  # of pydicom, about the damage
def test_explaining_what_is_no_dicom_or_is_damaged_is_one_line(node, tmp_path):
    (tmp_path / "x").write_bytes(b"junk")
    with pytest.raises(InputError):
        list(explain_file(node.recipe, tmp_path / "x"))
    whole = bytearray(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    whole[400:440] = b"\xff" * 40
    (tmp_path / "y").write_bytes(whole)
    with pytest.raises(InputError) as caught:
        list(explain_file(node.recipe, tmp_path / "y"))
    assert "\n" not in str(caught.value)
