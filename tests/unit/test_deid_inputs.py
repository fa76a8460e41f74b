"""What ``dicomnode deid`` is given: links, archives, folders that cannot be read, objects broken in many ways."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from planted import base_ct
from pydicom import dcmread, dcmwrite
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from dicomnode.errors import UsageError
from dicomnode.testing import sample_study, write_study
from dicomnode.workflow.batch.choices import Layout, ReportPaths
from dicomnode.workflow.batch.inputs import MAX_ENTRIES, Input, find
from dicomnode.workflow.batch.report import Report, write_report
from dicomnode.workflow.deidentify import Request, deidentified

NOBODY_ID = 65534


def run(node, paths, out, layout=Layout.DICOM):
    with deidentified(node.deid_context, Request(paths, out, layout)) as done:
        file = node.data_dir.parent / "report.json"
        write_report(Report(done, ReportPaths.RELATIVE), file)
    return json.loads(file.read_text())


def found(*paths: Path, without: Path | None = None) -> dict[str, Input]:
    return {i.shown: i for i in find(paths, without)}


class TestFinding:
    def test_the_order_is_that_of_names_and_folders_come_where_they_stand(self, tmp_path):
        for name in ("b/2", "b/1", "a/z/1", "a/b", "c"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        assert [i.shown for i in find([tmp_path])] == ["a/b", "a/z/1", "b/1", "b/2", "c"]

    def test_links_that_lead_out_or_nowhere_are_told_and_not_followed(self, tmp_path):
        inside, outside = tmp_path / "in", tmp_path / "outside"
        (inside / "sub").mkdir(parents=True)
        outside.mkdir()
        (outside / "secret.dcm").write_text("x")
        (inside / "sub" / "1.dcm").write_text("x")
        (inside / "a-file").symlink_to(outside / "secret.dcm")
        (inside / "b-folder").symlink_to(outside)
        (inside / "c-nowhere").symlink_to(tmp_path / "absent")
        (inside / "d-circle").symlink_to(inside)
        (inside / "e-known").symlink_to(inside / "sub" / "1.dcm")
        (inside / "f-self").symlink_to(inside / "f-self")
        problems = {name: i.reason for name, i in found(inside).items()}
        assert problems == {
            "a-file": "link",
            "b-folder": "link",
            "c-nowhere": "link",
            "f-self": "link",
            "sub/1.dcm": "",
        }
        both = {name: i.reason for name, i in found(inside, outside).items()}
        assert "a-file" not in both  # found by its own name below the other folder
        assert both["secret.dcm"] == ""

    def test_what_is_no_file_is_told(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        assert found(tmp_path)["pipe"].reason == "unreadable"

    def test_a_folder_that_cannot_be_read_is_told_and_the_rest_goes_on(self, open_folder):
        (open_folder / "closed").mkdir()
        (open_folder / "closed" / "1").write_text("x")
        (open_folder / "open").write_text("x")
        (open_folder / "closed").chmod(0)
        with unprivileged():
            told = found(open_folder)
        (open_folder / "closed").chmod(0o700)
        assert {name: i.reason for name, i in told.items()} == {"closed": "unreadable", "open": ""}
        assert told["closed"].problem == "it cannot be read (EACCES)"

    def test_a_name_that_is_no_text_is_shown_and_found(self, tmp_path):
        path = os.fsencode(tmp_path) + b"/\xff\xfe\n.dcm"
        with open(path, "wb") as file:
            file.write(b"x")
        (one,) = find([tmp_path])
        assert os.fsencode(one.path) == path
        assert "\n" not in one.shown

    def test_what_lies_in_the_result_is_not_found(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "1").write_text("x")
        (tmp_path / "2").write_text("x")
        assert list(found(tmp_path, without=tmp_path / "out")) == ["2"]
        with pytest.raises(UsageError):
            found(tmp_path / "out" / "1", without=tmp_path / "out")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may read; those above ``tmp_path`` are for their owner."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As somebody whom permissions bind: root reads everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY_ID)
    try:
        yield
    finally:
        os.seteuid(before)


class TestArchives:
    def archive(self, path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", method) as out:
            for name, data in entries.items():
                out.writestr(name, data)
        return path

    def image(self, tmp_path: Path, seed: int = 1) -> bytes:
        (file,) = write_study(sample_study(1, seed=seed, matrix=64), tmp_path / "made")
        return file.read_bytes()

    @pytest.mark.parametrize("layout", list(Layout))
    def test_names_that_lead_out_lead_nowhere(self, node, tmp_path, layout):
        names = ["../../escape.dcm", "/etc/escape.dcm", "..\\..\\escape.dcm", "a/../../../b/escape.dcm", "ok/1.dcm"]
        entries = {name: self.image(tmp_path, n) for n, name in enumerate(names)}
        self.archive(tmp_path / "in" / "study.zip", entries)
        data = run(node, [tmp_path / "in"], tmp_path / "out", layout)
        assert data["counts"]["ok"] == len(names)
        assert list(tmp_path.rglob("*escape*")) == []
        assert all(Path(row["output"]).resolve().is_relative_to(tmp_path / "out") for row in data["files"])
        assert {row["input"] for row in data["files"]} == {f"study.zip!{n}" for n in names}
        assert [p for p in (node.settings.identified_dir / "unpacked").iterdir() if p.is_dir()] == []

    def test_an_archive_that_holds_too_much_is_one_line(self, node, tmp_path):
        with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as out:
            for n in range(3):
                with out.open(f"{n}.dcm", "w") as entry:
                    for _ in range(40):
                        entry.write(bytes(1 << 20))
        data = run(node, [tmp_path / "bomb.zip"], tmp_path / "out")
        assert [row["reason"].split(":")[0] for row in data["files"]] == ["archive-bomb"]

    def test_an_archive_that_lists_too_much_is_one_line(self, node, tmp_path):
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
        size, offset = 56, 0
        end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", size - 12, 45, 45, 0, 0, MAX_ENTRIES + 1, MAX_ENTRIES + 1, 0, 0)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, offset + 4, 1)
        (tmp_path / "long.zip").write_bytes(b"PK\3\4" + end64 + locator + end.replace(b"\0\0\0\0", b"\0\0\0\0"))
        data = run(node, [tmp_path / "long.zip"], tmp_path / "out")
        assert [row["reason"].split(":")[0] for row in data["files"]] == ["archive-bomb"]

    def test_a_lie_about_the_size_gives_no_more_than_was_said(self, node, tmp_path):
        path = self.archive(tmp_path / "lie.zip", {"1.dcm": self.image(tmp_path) + bytes(1 << 20)})
        raw = bytearray(path.read_bytes())
        at = raw.rindex(b"PK\1\2")
        raw[at + 24 : at + 28] = struct.pack("<L", 5000)
        path.write_bytes(raw)
        data = run(node, [path], tmp_path / "out")
        assert data["counts"]["quarantined"] == 1
        assert data["files"][0]["reason"].split(":")[0] in ("damaged-archive", "truncated")

    def test_damaged_and_encrypted_archives_and_archives_in_archives_are_one_line_each(self, node, tmp_path):
        whole = self.archive(tmp_path / "in" / "a.zip", {"1.dcm": self.image(tmp_path)}).read_bytes()
        (tmp_path / "in" / "a.zip").unlink()
        (tmp_path / "in" / "cut.zip").write_bytes(whole[: len(whole) // 2])
        broken = bytearray(whole)
        broken[200:260] = b"\xff" * 60
        (tmp_path / "in" / "broken.zip").write_bytes(broken)
        locked = bytearray(whole)
        at = locked.rindex(b"PK\1\2")
        locked[at + 8] |= 1
        (tmp_path / "in" / "locked.zip").write_bytes(locked)
        self.archive(tmp_path / "in" / "nested.zip", {"inner.zip": whole})
        (tmp_path / "in" / "named.zip").write_bytes(self.image(tmp_path))  # no archive but its name
        data = run(node, [tmp_path / "in"], tmp_path / "out")
        rows = {row["input"].split("!")[0]: row["reason"].split(":")[0] for row in data["files"]}
        assert rows == {
            "cut.zip": "damaged-archive",
            "broken.zip": "damaged-archive",
            "locked.zip": "encrypted",
            "nested.zip": "not-dicom",
            "named.zip": "",
        }
        assert all("\n" not in row["reason"] for row in data["files"])


def test_a_dicomdir_is_counted_and_never_copied(node, tmp_path):
    write_study(sample_study(2, matrix=64), tmp_path / "in" / "IMAGES")
    ds = Dataset()
    ds.FileSetID, ds.PatientName = "DISC", "SECRET^Jane"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = MediaStorageDirectoryStorage, "1.2"
    dcmwrite(tmp_path / "in" / "DICOMDIR", ds, enforce_file_format=True)
    data = run(node, [tmp_path / "in"], tmp_path / "out")
    assert (data["counts"]["ok"], data["counts"]["skipped"]) == (2, 1)
    assert [row["input"] for row in data["files"]] == sorted(
        f"IMAGES/{p.name}" for p in (tmp_path / "in").rglob("*.dcm")
    )
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 2


def encoded(ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """A data set as a file; ``syntax`` says how."""
    import io

    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    out = io.BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def ct(**attributes: object) -> Dataset:
    ds = base_ct()
    ds.PatientID, ds.PatientName = "P1", "Kowalska^Anna"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def with_element(tag: int, vr: str, value: bytes, long: bool = False) -> bytes:
    """A CT with one element written by hand before its Rows (0028,0010)."""
    raw = encoded(ct())
    at = raw.index(b"\x28\x00\x02\x00US")
    length = b"\0\0" + struct.pack("<L", len(value)) if long else struct.pack("<H", len(value))
    return raw[:at] + struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode() + length + value + raw[at:]


def broken_sequence(length: int) -> bytes:
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"
    ds = ct()
    ds.add(DataElement(0x00081140, "SQ", Sequence([item])))
    raw = encoded(ds)
    at = raw.index(b"\x08\x00\x40\x11SQ") + 8
    return raw[:at] + struct.pack("<L", length) + raw[at + 4 :]


def nested(depth: int) -> bytes:
    head = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    raw = encoded(ct())
    at = raw.index(b"\x10\x00\x10\x00PN")
    return raw[:at] + head * depth + raw[at:]


OK, ANY = "ok", "any"
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "sequence too long": (lambda: broken_sequence(1 << 20), "quarantined"),
    "sequence longer than 31 bits": (lambda: broken_sequence(0xFFFFFFF0), "quarantined"),
    "sequence too short": (lambda: broken_sequence(4), ANY),
    "sequence of odd length": (lambda: broken_sequence(7), ANY),
    "sequences in sequences in sequences": (lambda: nested(5000), "quarantined"),
    "US with three bytes": (lambda: with_element(0x00280006, "US", b"abc"), ANY),
    "DS with words": (lambda: with_element(0x00200050, "DS", b"Kowalska"), ANY),
    "a VR that does not exist": (lambda: with_element(0x00200060, "ZZ", b"abcd"), ANY),
    "UI with a name": (lambda: with_element(0x00200052, "UI", b"Kowalska^Anna "), ANY),
    "text of odd length": (lambda: with_element(0x00204000, "LT", b"odd"), ANY),
    "private without creator": (lambda: with_element(0x00211010, "LO", b"Kowalska"), OK),
    "private creator as a number": (lambda: with_element(0x00210010, "US", b"\1\0"), OK),
    "deflated": (lambda: encoded(ct(), DeflatedExplicitVRLittleEndian), OK),
    "deflated and cut": (lambda: encoded(ct(), DeflatedExplicitVRLittleEndian)[:-40], "quarantined"),
    "big endian": (lambda: encoded(ct(), ExplicitVRBigEndian), OK),
    "implicit": (lambda: encoded(ct(), ImplicitVRLittleEndian), OK),
    "implicit, said to be explicit": (
        lambda: encoded(ct(), ImplicitVRLittleEndian).replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0", 1),
        ANY,
    ),
    "no file meta": (lambda: encoded(ct())[encoded(ct()).index(b"\x08\x00\x16\x00UI") :], "quarantined"),
    "preamble and nothing": (lambda: b"\0" * 128 + b"DICM", "quarantined"),
    "nothing": (lambda: b"", "quarantined"),
    "cut in the header": (lambda: encoded(ct())[:500], "quarantined"),
    "cut in the pixels": (lambda: encoded(ct())[:-100], "quarantined"),
    "an unknown transfer syntax": (
        lambda: encoded(ct()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0", 1),
        "quarantined",
    ),
    "no rows": (lambda: encoded(_without("Rows")), "quarantined"),
    "more bits than there are": (lambda: encoded(ct(BitsAllocated=64)), "quarantined"),
    "frames without number": (lambda: encoded(ct(NumberOfFrames=2)), "quarantined"),
}


def _without(keyword: str) -> Dataset:
    ds = ct()
    delattr(ds, keyword)
    return ds


@pytest.mark.filterwarnings("ignore")  # of pydicom, while the broken files are made
def test_objects_that_are_broken_in_many_ways_pass_or_are_quarantined(node, tmp_path):
    (tmp_path / "in").mkdir()
    for number, (name, (make, _)) in enumerate(BROKEN.items()):
        own = make().replace(b"3680043.9999.", f"3680043.{9900 + number}.".encode())  # instances of their own
        (tmp_path / "in" / f"{name}.dcm").write_bytes(own)
    data = run(node, [tmp_path / "in"], tmp_path / "out")
    rows = {Path(row["input"]).stem: row for row in data["files"]}
    assert set(rows) == set(BROKEN)
    for name, row in rows.items():
        expected = BROKEN[name][1]
        assert row["status"] in (("ok", "quarantined") if expected == ANY else (expected,)), (name, row)
        assert not row["reason"].startswith("version-conflict"), (name, row)
        assert "\n" not in row["reason"]
        assert "Kowalska" not in row["reason"]
    for path in (tmp_path / "out").rglob("*.dcm"):
        assert b"Kowalska" not in path.read_bytes()
        assert dcmread(path).pixel_array.shape == (16, 16)


@pytest.mark.filterwarnings("ignore")
def test_an_object_of_a_gigabyte_takes_no_memory(node, tmp_path):
    ds = ct(Rows=16384, Columns=16384, NumberOfFrames=2)
    ds.add_new(0x7FE00010, "OW", b"\0\0")
    raw = encoded(ds)
    length = 16384 * 16384 * 2 * 2
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "large.dcm").open("wb") as out:  # sparse
        out.write(raw[:-6] + struct.pack("<L", length))
        out.truncate(len(raw) - 2 + length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = run(node, [tmp_path / "in"], tmp_path / "out")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert data["counts"]["ok"] == 1
    assert after - before < 64 << 10  # KiB
    (written,) = (tmp_path / "out").rglob("*.dcm")
    assert written.stat().st_size > length
    assert max(_peaks(node)) < 512 << 10  # KiB, of a worker with everything it has imported


def _peaks(node: object) -> list[int]:
    """Peak resident sizes of the pool's workers, in KiB."""
    executor = node.deid._executor  # type: ignore[attr-defined]
    status = [Path(f"/proc/{pid}/status").read_text() for pid in executor._processes]
    return [int(text.split("VmHWM:")[1].split()[0]) for text in status]
