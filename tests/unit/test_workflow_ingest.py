"""``index add``: folders of anything; images go in once, de-identified, everything else is counted and left alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from workflow_samples import files, pages_in_ct, rows

from dicomnode.domain import Finding, OriginalUid
from dicomnode.errors import InputError, UsageError
from dicomnode.testing import sample_repository, sample_study, write_study
from dicomnode.workflow.ingest import Added, add_paths, find_files, group_by_study, read_findings
from dicomnode.workflow.withdrawal import remove_studies

NODULE = Finding("SCT", "27925004", "Nodule", "findings file")


def study(folder: Path, patient: str = "P1", n: int = 2, **changes) -> str:
    images = sample_study(n, matrix=64, patient_id=patient, **changes)
    write_study(images, folder)
    return str(images[0].StudyInstanceUID)


def findings(folder: Path, *lines: str, header: str = "study,system,code,display") -> Path:
    path = folder / "findings.csv"
    path.write_text("\n".join([header, *lines]) + "\n", "utf-8")
    return path


class TestFiles:
    def test_files_are_found_at_any_depth_in_a_fixed_order(self, tmp_path):
        for name in ("b/2", "b/1", "a/x/y/z/1", "c"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("")
        assert [str(p.relative_to(tmp_path)) for p in find_files([tmp_path])] == ["a/x/y/z/1", "b/1", "b/2", "c"]

    def test_a_link_that_leads_in_a_circle_ends(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1").write_text("")
        (tmp_path / "a" / "loop").symlink_to(tmp_path)
        assert [p.name for p in find_files([tmp_path])] == ["1"]

    def test_a_path_that_is_not_there_is_a_usage_error(self, tmp_path):
        with pytest.raises(UsageError, match="absent"):
            list(find_files([tmp_path / "absent"]))

    def test_what_is_no_image_is_counted_by_why(self, tmp_path):
        study(tmp_path / "good")
        (tmp_path / "text.txt").write_text("hello")
        (tmp_path / "empty").write_bytes(b"")
        (tmp_path / "random").write_bytes(os.urandom(3000))
        (tmp_path / "mangled").write_bytes(b"\0" * 128 + b"DICM" + os.urandom(3000))
        (tmp_path / "cut").write_bytes((tmp_path / "good" / "000001.dcm").read_bytes()[:300])
        shutil.copy(get_testdata_file("reportsi.dcm"), tmp_path / "report.dcm")
        shutil.copy(get_testdata_file("DICOMDIR"), tmp_path / "DICOMDIR")
        shutil.copy(get_testdata_file("rtplan.dcm"), tmp_path / "plan.dcm")
        (unnamed,) = sample_study(1, matrix=32, patient_id="P9", StudyInstanceUID="")
        unnamed.save_as(tmp_path / "unnamed.dcm", enforce_file_format=True)
        added = Added()
        found = group_by_study(find_files([tmp_path]), added)
        assert [len(f) for f in found.values()] == [2]
        assert added.skipped["not DICOM"] == 3
        assert added.skipped["no image"] >= 3
        assert added.skipped["missing UID"] == 1
        assert sum(added.skipped.values()) == 9

    @pytest.mark.filterwarnings("ignore")  # pydicom quotes odd values in its warnings
    def test_no_damage_to_a_file_stops_the_run(self, tmp_path):
        study(tmp_path / "good", n=1)
        whole = (tmp_path / "good" / "000001.dcm").read_bytes()
        for n in range(132, 1600, 11):
            damaged = bytearray(whole)
            damaged[n : n + 4] = os.urandom(4)
            (tmp_path / f"{n:05d}.dcm").write_bytes(damaged if n % 2 else damaged[: n + 2])
        added = Added()
        found = group_by_study(find_files([tmp_path]), added)
        total = sum(map(len, found.values())) + sum(added.skipped.values())
        assert total == len(list(tmp_path.glob("*.dcm"))) + 1


class TestFindings:
    def test_a_study_may_have_several_rows(self, tmp_path):
        path = findings(tmp_path, "1.2,SCT,27925004,Nodule", "1.2, I10 ,R91.1,Solitary nodule", "1.3,99X,a,b")
        found = read_findings(path)
        assert found["1.2"] == [NODULE, Finding("I10", "R91.1", "Solitary nodule", "findings file")]
        assert set(found) == {"1.2", "1.3"}

    @pytest.mark.parametrize(
        ("lines", "header", "said"),
        [
            (["1.2,SNOMED,1,x"], "study,system,code,display", "findings.csv:2: unknown system 'SNOMED'"),
            (["1.2,SCT,1,x", "1.3,SCT,,x"], "study,system,code,display", "findings.csv:3: code and display"),
            (["1.2,SCT,1"], "study,system,code", "column 'display' is missing"),
        ],
    )
    def test_a_row_that_cannot_be_used_is_named_by_its_line(self, tmp_path, lines, header, said):
        with pytest.raises(InputError) as caught:
            read_findings(findings(tmp_path, *lines, header=header))
        assert said in str(caught.value)

    def test_findings_reach_their_study_by_uid_by_folder_and_by_file(self, node, tmp_path, monkeypatch):
        uids = [study(tmp_path / name, patient=name) for name in ("a", "b", "c", "d")]
        monkeypatch.chdir(tmp_path)
        path = findings(
            tmp_path,
            f"{uids[0]},SCT,27925004,Nodule",
            f"{tmp_path / 'b'},SCT,27925004,Nodule",
            "c/000001.dcm,SCT,27925004,Nodule",
            "1.2.3.4,SCT,27925004,Nodule",
        )
        added = add_paths(node.context, [tmp_path], path)
        assert (added.studies, added.findings) == (4, 3)
        assert added.left_out == [f"{path}:5: left out: its study is not here"]
        assert "1.2.3.4" not in str(added)
        found = [node.catalogue.findings(node.vault.uid(OriginalUid(u))) for u in uids]
        assert found == [[NODULE], [NODULE], [NODULE], []]

    def test_a_path_in_the_findings_may_be_relative_to_their_file(self, node, tmp_path):
        uid = study(tmp_path / "studies" / "a")
        path = findings(tmp_path, "studies/a,SCT,27925004,Nodule")
        assert add_paths(node.context, [tmp_path / "studies"], path).findings == 1
        assert node.catalogue.findings(node.vault.uid(OriginalUid(uid))) == [NODULE]

    def test_two_rows_that_name_one_study_in_two_ways_are_both_kept(self, node, tmp_path):
        uid = study(tmp_path / "a")
        path = findings(tmp_path, f"{uid},SCT,27925004,Nodule", f"{tmp_path / 'a'},I10,R91.1,Nodule")
        add_paths(node.context, [tmp_path / "a"], path)
        assert {f.system for f in node.catalogue.findings(node.vault.uid(OriginalUid(uid)))} == {"SCT", "I10"}

    def test_findings_of_a_folder_with_several_studies_are_nobodys(self, node, tmp_path):
        study(tmp_path / "all" / "a", patient="A"), study(tmp_path / "all" / "b", patient="B")
        path = findings(tmp_path, "all,SCT,27925004,Nodule", "all/b,SCT,27925004,Nodule", "all,I10,R91.1,Nodule")
        added = add_paths(node.context, [tmp_path], path)
        assert added.findings == 1
        assert added.left_out == [f"{path}:{n}: left out: its folder holds several studies" for n in (2, 4)]

    def test_rows_that_are_left_out_are_told_in_the_order_of_the_file(self, node, tmp_path):
        study(tmp_path / "all" / "a", patient="A"), study(tmp_path / "all" / "b", patient="B")
        row = "SCT,27925004,Nodule"
        path = findings(tmp_path, f"1.2.3,{row}", f"all,{row}", f"1.2.4,{row}", "1.2.3,I10,R91.1,Nodule")
        left_out = add_paths(node.context, [tmp_path], path).left_out
        assert [line.removeprefix(f"{path}:").split(":")[0] for line in left_out] == ["2", "3", "4", "5"]

    def test_findings_can_be_stated_later_of_a_study_that_is_there(self, node, tmp_path):
        uid = study(tmp_path / "a")
        add_paths(node.context, [tmp_path / "a"])
        added = add_paths(node.context, [tmp_path / "a"], findings(tmp_path, f"{uid},SCT,27925004,Nodule"))
        assert (added.already, added.findings) == (1, 1)


class TestAdding:
    def test_studies_go_in_de_identified_and_a_second_run_adds_nothing(self, node, tmp_path):
        path = sample_repository(tmp_path / "studies", 3, slices=2, matrix=64)
        added = add_paths(node.context, [tmp_path / "studies"], path)
        assert (added.studies, added.instances, added.quarantined) == (3, 6, 0)
        assert added.vectors == 6
        for name, content in files(node).items():
            assert "PHANTOM" not in name
            assert b"PHANTOM-00" not in content
        before = (rows(node), files(node))
        again = add_paths(node.context, [tmp_path / "studies"], path)
        assert (again.studies, again.instances, again.vectors, again.already) == (0, 0, 0, 3)
        assert (rows(node), files(node)) == before

    def test_files_of_a_study_may_lie_in_many_folders_and_more_than_once(self, node, tmp_path):
        study(tmp_path / "a", n=3)
        (tmp_path / "b").mkdir()
        (tmp_path / "a" / "000003.dcm").rename(tmp_path / "b" / "x")
        shutil.copy(tmp_path / "a" / "000001.dcm", tmp_path / "b" / "copy.dcm")
        added = add_paths(node.context, [tmp_path / "a", tmp_path / "b"])
        assert (added.studies, added.instances, added.vectors, added.duplicates) == (1, 3, 3, 1)
        assert node.index.status()["instances"] == 3
        assert node.index.status()["vectors"] == 3

    def test_late_images_complete_a_study(self, node, tmp_path):
        study(tmp_path / "a", n=3)
        add_paths(node.context, [tmp_path / "a" / "000001.dcm"])
        added = add_paths(node.context, [tmp_path / "a"])
        assert (added.studies, added.instances) == (1, 2)
        status = node.index.status()
        assert (status["studies"], status["instances"], status["vectors"]) == (1, 3, 3)

    def test_another_image_with_a_uid_that_is_taken_is_held_and_the_first_goes_in(self, node, tmp_path):
        images = sample_study(2, matrix=64)
        (first, _) = write_study(images, tmp_path / "a")
        pixels = bytearray(images[0].PixelData)
        pixels[0] ^= 1
        images[0].PixelData = bytes(pixels)
        (other, _) = write_study(images, tmp_path / "b")
        added = add_paths(node.context, [tmp_path])
        assert (added.studies, added.instances, added.duplicates, added.quarantined) == (1, 2, 1, 1)
        assert node.index.status()["instances"] == 2
        (item,) = node.quarantine.items()
        assert item.reason == "version-conflict"
        assert str(other) in added.notes[0]
        uid = node.vault.uid(OriginalUid(images[0].SOPInstanceUID))
        stored = dcmread(node.objects.path(node.catalogue.path_of(uid)))
        assert stored.PixelData == dcmread(first).PixelData

    def test_what_cannot_pass_is_held_with_a_note_and_the_rest_goes_on(self, node, tmp_path):
        images = sample_study(3, matrix=64)
        images[0].BurnedInAnnotation = "YES"
        write_study(images, tmp_path / "a")
        study(tmp_path / "b", patient="P2")
        added = add_paths(node.context, [tmp_path])
        assert (added.studies, added.instances, added.quarantined) == (2, 4, 1)
        (item,) = node.quarantine.items()
        assert (item.reason, item.job_id) == ("burned-in", None)
        assert item.place == node.vault.uid(OriginalUid(images[0].StudyInstanceUID))
        assert f"quarantine {item.id}: burned-in: 1 files, {tmp_path / 'a' / '000001.dcm'} first" in added.notes[0]
        assert str(tmp_path) not in repr(item)

    @pytest.mark.parametrize("kind", ["pages", "positron emission"])
    def test_a_study_without_ct_or_mr_slices_is_left_out_with_a_line(self, node, tmp_path, kind):
        write_study(sample_study(2, matrix=64, patient_id="P-1", seed=1), tmp_path / "good")
        odd = (
            pages_in_ct(patient_id="P-2")
            if kind == "pages"
            else sample_study(3, matrix=64, patient_id="P-2", Modality="PT")
        )
        write_study(odd, tmp_path / "odd")
        added = add_paths(node.context, [tmp_path / "good", tmp_path / "odd"])
        assert (added.studies, added.instances, added.quarantined) == (1, 2, 0)
        ((reason, n),) = added.skipped.items()
        assert reason.startswith("not searchable: ")
        assert n == 3
        (note,) = added.notes
        assert f"{tmp_path / 'odd'}" in note
        assert "no CT or MR slices" in note
        assert len(node.catalogue.study_sources()) == 1
        assert list(node.folders.work.iterdir()) == []

    def test_what_the_repository_holds_stays_when_the_gate_would_refuse_it(self, node, tmp_path):
        study = sample_study(2, matrix=64, patient_id="P-1", seed=1)
        write_study(study[:1], tmp_path / "a")
        add_paths(node.context, [tmp_path / "a"])
        late = pages_in_ct(2, patient_id="P-1", study_uid=study[0].StudyInstanceUID, seed=2)
        write_study(late, tmp_path / "b")
        vectors = node.index.status()["vectors"]
        add_paths(node.context, [tmp_path / "b"])
        assert node.index.status()["vectors"] >= vectors

    def test_a_study_of_two_patients_is_held_and_nothing_of_it_goes_in(self, node, tmp_path):
        images = sample_study(2, matrix=64)
        images[1].PatientID = "SOMEBODY-ELSE"
        write_study(images, tmp_path / "a")
        added = add_paths(node.context, [tmp_path / "a"])
        assert (added.studies, added.quarantined) == (0, 2)
        assert node.index.status()["studies"] == 0
        assert node.quarantine.items()[0].reason == "mixed-patients"

    def test_a_second_run_does_not_hold_the_same_files_again(self, node, tmp_path):
        images = sample_study(1, matrix=64, BurnedInAnnotation="YES")
        write_study(images, tmp_path / "a")
        for _ in range(2):
            assert add_paths(node.context, [tmp_path / "a"]).quarantined == 1
        assert len(node.quarantine.items()) == 1

    def test_no_work_folder_is_left(self, node, tmp_path):
        study(tmp_path / "a")
        add_paths(node.context, [tmp_path / "a"])
        assert list(node.folders.work.iterdir()) == []

    def test_removing_a_study_leaves_nothing_to_find(self, node, tmp_path):
        uid = node.vault.uid(OriginalUid(study(tmp_path / "a")))
        add_paths(node.context, [tmp_path / "a"])
        assert remove_studies(node.context, [uid]).studies == 1
        assert not remove_studies(node.context, [uid]).anything
        status = node.index.status()
        assert (status["studies"], status["patients"], status["instances"], status["vectors"]) == (0, 0, 0, 0)
        assert not [name for name in files(node) if name.startswith("archive")]
        assert add_paths(node.context, [tmp_path / "a"]).studies == 1

    def test_progress_is_told_up_to_the_end(self, node, tmp_path):
        study(tmp_path / "a")
        told = []
        add_paths(node.context, [tmp_path / "a"], None, lambda done, total: told.append((done, total)))
        assert told == [(0, 1), (1, 1)]
