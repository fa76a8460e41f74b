"""Two machines with the same vault write the same files; with another key nothing of them agrees."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from dicomnode.deid.pseudonym import is_well_known
from dicomnode.domain import OriginalUid
from dicomnode.node import Node
from dicomnode.testing import sample_study, write_study
from dicomnode.workflow.deidentify import Request, deidentified

REAL = ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "emri_small.dcm", "MR2_J2KR.dcm", "ExplVR_BigEnd.dcm")
KEYS = {"ONE": "11" * 32, "TWO": "22" * 32}


@pytest.fixture
def incoming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real files of several makers, and two studies of one patient."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in REAL:
        shutil.copy(get_testdata_file(name), folder / name)
    for seed in (1, 2):
        images = sample_study(2, matrix=64, patient_id="TWICE-1", seed=seed, StudyDate=f"2021010{seed}")
        write_study(images, folder / f"study-{seed}")
    for name, key in KEYS.items():
        monkeypatch.setenv(f"VAULT_KEY_{name}", key)
    return folder


def machine(make_node, folder: Path, key: str, vault: Node | None = None) -> Node:
    """A node of its own folder; ``vault``: whose vault it got a copy of."""
    node = make_node(folder, vault={"key_env": f"VAULT_KEY_{key}"})
    if vault is not None:
        place = node.settings.identified_dir
        place.mkdir(parents=True, mode=0o700)
        shutil.copy(vault.vault_place[0], place)
    return node


def outputs(node: Node, incoming: Path, out: Path) -> dict[str, Path]:
    """The file that each input became."""
    with deidentified(node.deid_context, Request([incoming], out)) as run:
        return {row.shown: Path(row.output) for row in run.rows() if row.output}


def elements(ds: Dataset) -> Iterator:
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)
        else:
            yield element


def values(path: Path, vrs: set[str]) -> list[str]:
    """What is in all elements of some VRs, in order, without what is the same in every object."""
    with dcmread(path) as ds:
        found = [str(v) for e in elements(ds) if e.VR in vrs for v in (e.value if e.VM > 1 else [e.value])]
    return [v for v in found if v and not is_well_known(v) and not v.startswith("19000101")]


def test_the_same_vault_gives_the_same_bytes_and_another_key_nothing_in_common(make_node, incoming, tmp_path) -> None:
    first = machine(make_node, tmp_path / "first", "ONE")
    written = outputs(first, incoming, tmp_path / "out-1")
    assert len(written) >= 6  # of real makers, and the four of the sample studies
    second = machine(make_node, tmp_path / "second", "ONE", vault=first)
    again = outputs(second, incoming, tmp_path / "out-2")
    assert written.keys() == again.keys()
    for name, path in written.items():
        assert again[name].relative_to(tmp_path / "out-2") == path.relative_to(tmp_path / "out-1")
        assert again[name].read_bytes() == path.read_bytes(), name

    other = outputs(machine(make_node, tmp_path / "third", "TWO"), incoming, tmp_path / "out-3")
    assert other.keys() == written.keys()
    ours = {v for path in written.values() for v in (*values(path, {"UI"}), str(dcmread(path).PatientID))}
    theirs = {v for path in other.values() for v in (*values(path, {"UI"}), str(dcmread(path).PatientID))}
    assert len(ours) > 20
    constant = ours & theirs
    assert {v for v in constant if not v.startswith("2.25.")} == set()
    meta = {str(dcmread(path).file_meta.ImplementationClassUID) for path in written.values()}
    assert constant <= meta  # the program's own UID, if anything
    dates = 0
    for name, path in written.items():
        before, after = values(path, {"DA", "DT"}), values(other[name], {"DA", "DT"})
        assert len(before) == len(after)
        dates += len(before)
        assert not [a for a, b in zip(before, after, strict=True) if a == b], name
    assert dates > 10


def test_copies_of_a_vault_part_for_new_patients_in_their_pseudonyms_alone(make_node, incoming, tmp_path) -> None:
    first = machine(make_node, tmp_path / "first", "ONE")
    _ = first.vault
    second = machine(make_node, tmp_path / "second", "ONE", vault=first)
    one, two = (node.vault.subject_for("HOSP", "NEW-1") for node in (first, second))
    assert one.pseudonym != two.pseudonym
    assert one.days == two.days
    assert first.vault.uid(OriginalUid("1.2.3")) == second.vault.uid(OriginalUid("1.2.3"))
