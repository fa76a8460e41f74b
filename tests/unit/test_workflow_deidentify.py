"""``deid``: a folder of de-identified files and a report of what became of each; explaining never shows a value."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicomnode.errors import InputError, UsageError
from dicomnode.testing import sample_study, write_study
from dicomnode.workflow.deidentify import deidentify_files, explain_file

SECRET = "SECRET"


@pytest.fixture
def incoming(tmp_path):
    folder = tmp_path / "in"
    write_study(sample_study(2, matrix=64, patient_id=f"{SECRET}-1", name=f"{SECRET}^Jane"), folder / "a" / "b")
    write_study(sample_study(1, matrix=64, patient_id=f"{SECRET}-2", BurnedInAnnotation="YES"), folder / "c")
    (folder / "notes.txt").write_text("no DICOM")
    return folder


def test_the_report_says_of_each_file_what_became_of_it(node, incoming, tmp_path):
    data = deidentify_files(node.deid_context, [incoming], tmp_path / "out").as_json("basic")
    assert set(data) == {"files", "counts", "profile"}
    assert data["counts"] == {"ok": 2, "quarantined": 2, "failed": 0, "duplicates": 0}
    assert data["profile"] == "basic"
    for row in data["files"]:
        assert set(row) == {"input", "output", "status", "reason"}
        assert (row["output"] is not None) == (row["status"] == "ok") == (row["reason"] == "")
    reasons = {row["reason"].split(":")[0] for row in data["files"]} - {""}
    assert reasons == {"burned-in", "not-dicom"}


def test_the_files_lie_by_pseudonymous_uids_and_hold_nothing_of_the_patient(node, incoming, tmp_path):
    out = tmp_path / "out"
    outcome = deidentify_files(node.deid_context, [incoming], out)
    written = sorted(p for p in out.rglob("*") if p.is_file())
    assert [str(p) for p in written] == sorted(f["output"] for f in outcome.files if f["output"])
    for path in written:
        assert SECRET.encode() not in path.read_bytes()
        ds = dcmread(path)
        assert path == out / ds.StudyInstanceUID / f"{ds.SOPInstanceUID}.dcm"
        assert ds.PatientID.startswith("DN-")
    assert len({p.parent for p in written}) == 1
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("dicomnode-")] == []


def test_the_same_files_again_are_the_same_files(node, incoming, tmp_path):
    deidentify_files(node.deid_context, [incoming], tmp_path / "one")
    deidentify_files(node.deid_context, [incoming], tmp_path / "two")
    one, two = (
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*.dcm")} for f in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two
    assert len(one) == 2


def test_a_dry_run_tells_the_same_and_writes_nothing(node, incoming, tmp_path):
    outcome = deidentify_files(node.deid_context, [incoming], None)
    assert outcome.as_json("basic")["counts"] == {"ok": 2, "quarantined": 2, "failed": 0, "duplicates": 0}
    assert {f["output"] for f in outcome.files} == {None}
    assert {p.name for p in tmp_path.iterdir()} == {"in", "var"}


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
        first, copy, other = twice
        out = None if dry else tmp_path / "out"
        data = deidentify_files(node.deid_context, [tmp_path / "in"], out).as_json("basic")
        assert data["counts"] == {"ok": 1, "quarantined": 1, "failed": 0, "duplicates": 1}
        rows = {row["input"]: row for row in data["files"]}
        assert rows[str(copy)]["status"] == "ok"
        assert rows[str(copy)]["reason"] == f"duplicate of {first}"
        assert rows[str(copy)]["output"] is None
        assert rows[str(other)]["status"] == "quarantined"
        assert rows[str(other)]["reason"].startswith("version-conflict: ")
        if out is not None:
            (written,) = out.rglob("*.dcm")
            assert rows[str(first)]["output"] == str(written)
            assert dcmread(written).PixelData == dcmread(first).PixelData

    def test_what_an_earlier_run_wrote_is_not_overwritten_either(self, node, twice, tmp_path):
        first, _, other = twice
        out = tmp_path / "out"
        deidentify_files(node.deid_context, [first], out)
        (written,) = out.rglob("*.dcm")
        before = written.read_bytes()
        again = deidentify_files(node.deid_context, [first], out).as_json("basic")
        assert again["counts"] == {"ok": 1, "quarantined": 0, "failed": 0, "duplicates": 0}
        late = deidentify_files(node.deid_context, [other], out).as_json("basic")
        assert late["counts"] == {"ok": 0, "quarantined": 1, "failed": 0, "duplicates": 0}
        assert str(written) in late["files"][0]["reason"]
        assert written.read_bytes() == before


def test_what_cannot_be_read_makes_no_pseudonym(node, tmp_path):
    (tmp_path / "junk").write_bytes(b"junk")
    outcome = deidentify_files(node.deid_context, [tmp_path / "junk"], None)
    assert [f["status"] for f in outcome.files] == ["quarantined"]
    assert node.vault.status().patients == 0


def test_progress_is_told_up_to_the_end(node, incoming):
    told = []
    deidentify_files(node.deid_context, [incoming], None, lambda done, total: told.append((done, total)))
    assert told == [(0, 4), (4, 4)]


def test_a_path_that_is_not_there_is_a_usage_error(node, tmp_path):
    with pytest.raises(UsageError):
        deidentify_files(node.deid_context, [tmp_path / "absent"], None)


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
    lines = list(explain_file(node.recipe, path))
    text = "\n".join(lines)
    assert SECRET not in text
    assert "(0010,0010) Patient's Name: " in text
    assert "    (0010,0010) Patient's Name: " in text  # two sequences down
    assert any("(0099,1001)" in line and line.endswith(": remove") for line in lines)
    assert not any("Requested Procedure ID" in line for line in lines)  # it goes with the sequence it is in
    assert all(line.rsplit(": ", 1)[1] for line in lines)


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
