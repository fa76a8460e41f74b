"""Files of the archive are whole or absent, under pseudonymous names, and none is read from outside it."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from dicomnode.archive.objects import ObjectStore, sha256_of
from dicomnode.domain import PseudoUid
from dicomnode.errors import DicomnodeError, NotFound, StorageFull

STUDY, INSTANCE = PseudoUid("2.25.1"), PseudoUid("2.25.2")


@pytest.fixture
def store(tmp_path: Path):
    return ObjectStore(tmp_path / "archive")


@pytest.fixture
def source(tmp_path: Path):
    path = tmp_path / "source.dcm"
    path.write_bytes(os.urandom(3_000_000))  # more than one block of the copy
    return path


def files(store: ObjectStore) -> list[str]:
    return sorted(p.name for p in store.folder.rglob("*") if p.is_file())


def test_a_stored_file_has_the_bytes_and_nothing_else_is_left(store, source):
    relative = store.put(source, STUDY, INSTANCE)
    assert store.path(relative).read_bytes() == source.read_bytes()
    assert files(store) == ["2.25.2.dcm"]
    assert relative == store.relative(STUDY, INSTANCE)
    assert sha256_of(store.path(relative)) == hashlib.sha256(source.read_bytes()).hexdigest()


def test_the_same_name_is_replaced_whole(store, source):
    relative = store.put(source, STUDY, INSTANCE)
    source.write_bytes(b"second")
    assert store.put(source, STUDY, INSTANCE) == relative
    assert store.path(relative).read_bytes() == b"second"


def test_a_full_disk_leaves_the_earlier_file_and_says_so(store, source):
    relative = store.put(source, STUDY, INSTANCE)
    before = store.path(relative).read_bytes()
    part = store.path(relative).with_suffix(".part")
    part.symlink_to("/dev/full")  # every write answers ENOSPC
    with pytest.raises(StorageFull) as caught:
        store.put(source, STUDY, INSTANCE)
    assert os.strerror(errno.ENOSPC) in str(caught.value)
    assert store.path(relative).read_bytes() == before
    assert files(store) == ["2.25.2.dcm"]


def test_a_folder_that_cannot_be_made_is_one_line_and_not_called_full(store, source):
    blocked = store.folder / store.relative(STUDY, INSTANCE).split("/")[0]
    blocked.write_text("a file where a folder belongs")
    with pytest.raises(DicomnodeError) as caught:
        store.put(source, STUDY, INSTANCE)
    assert not isinstance(caught.value, StorageFull)
    assert "cannot be written" in str(caught.value)


@pytest.mark.parametrize("name", ["../catalogue.sqlite3", "/etc/passwd", "aa/../../x", "link/x"])
def test_a_name_that_leads_out_of_the_archive_is_refused(store, tmp_path, name):
    (tmp_path / "outside").mkdir()
    (store.folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(NotFound):
        store.path(name)


def test_removing_a_study_takes_its_files_and_no_others(store, source):
    mine, other = store.put(source, STUDY, INSTANCE), store.put(source, PseudoUid("2.25.9"), INSTANCE)
    store.remove_study(STUDY)
    store.remove_study(STUDY)
    assert not store.path(mine).exists()
    assert store.path(other).exists()
