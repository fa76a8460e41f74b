"""``dicomnode models``: packs that are damaged or gone are named; two are compared beside chance, changing nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import Done, run, write_settings
from workflow_samples import pooled_pack, slice_picture

from dicomnode.evaluation.labels import TRAINED_ON
from dicomnode.models.manifest import MANIFEST, WEIGHTS, read_manifest

SHIPPED = "cenet-xception"
PICTURES = 24


@pytest.fixture(autouse=True)
def _own_surroundings(no_settings_from_outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder; the command's process is the tests' own here."""
    monkeypatch.setattr(os, "nice", lambda _by: 0)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick pack."""
    return pooled_pack(tmp_path_factory.mktemp("packs") / "pooled")


@pytest.fixture
def pack(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built, tmp_path / "pooled"))


@pytest.fixture(scope="module")
def labelled(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a node with pictures of two labels, each of a patient of its own, embedded by the quick pack."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = ["path,label"]
    for n in range(PICTURES):
        slice_picture(n).save(folder / f"{n}.png")
        rows.append(f"{n}.png,{'nodule' if n % 3 else 'effusion'}")
    (folder / "LABELS.csv").write_text("\n".join(rows))
    settings = write_settings(folder, f"[models]\npack = {json.dumps(str(built))}\n")
    assert run("index", "add", folder / "LABELS.csv", "--config", settings).code == 0
    return settings


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


class TestCompare:
    def test_what_random_order_reaches_stands_beside_both_packs(self, labelled: Path, built: Path) -> None:
        done = run("models", "compare", built, built, "--config", labelled)
        assert done.code == 0
        *_, last = done.out.splitlines()
        few, many = PICTURES // 3, PICTURES - PICTURES // 3
        expected = (few * (few - 1) + many * (many - 1)) / (PICTURES * (PICTURES - 1))
        assert last == f"P@10 by findings of a random order (expected): {expected:.3f}"
        data = run("models", "compare", built, built, "--json", "--config", labelled).json()
        assert data["random_order_at_10"] == pytest.approx(expected)

    def test_it_says_what_a_pack_that_knows_the_images_is_worth(self, labelled: Path, built: Path) -> None:
        assert TRAINED_ON in run("models", "compare", built, built, "--config", labelled).err
        done = run("models", "compare", built, built, "--json", "--config", labelled)
        assert (done.json()["notes"], done.err) == ([TRAINED_ON], "")

    def test_a_pack_with_truncated_weights_is_refused_as_verify_does(
        self, labelled: Path, built: Path, pack: Path
    ) -> None:
        (pack / WEIGHTS).write_bytes((pack / WEIGHTS).read_bytes()[:-8])
        done = run("models", "compare", built, pack, "--config", labelled)
        assert (done.code, done.out) == (1, "")
        assert done.error() == run("models", "verify", pack, "--config", labelled).error()
        assert "checksum" in done.error()

    def test_a_fresh_node_has_nothing_to_compare_with_and_stays_fresh(self, tmp_path: Path, built: Path) -> None:
        settings = write_settings(tmp_path)
        done = run("models", "compare", built, SHIPPED, "--config", settings)
        assert (done.code, done.out) == (1, "")
        assert "no studies to compare packs with" in done.error()
        assert not (tmp_path / "var").exists()

    def test_a_node_without_studies_gets_no_vault(self, tmp_path: Path, built: Path) -> None:
        settings = write_settings(tmp_path)
        assert run("models", "list", "--config", settings).code == 0  # makes the catalogue
        before = files(tmp_path)
        done = run("models", "compare", built, SHIPPED, "--config", settings)
        assert done.code == 1
        assert "no studies to compare packs with" in done.error()
        assert files(tmp_path) == before

    def test_nothing_is_changed(self, labelled: Path, built: Path) -> None:
        before = files(labelled.parent)
        assert run("models", "compare", built, built, "--config", labelled).code == 0
        assert {p for p in files(labelled.parent) - before if "runtime" not in p.parts} == set()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (lambda folder: (folder / MANIFEST).write_text("{"), "is damaged"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "holds no manifest.json"),
    "gone": (shutil.rmtree, "its folder is gone"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
class TestAPackInForceThatCannotBeRead:
    @pytest.fixture
    def broken(self, damage: Callable[[Path], object], pack: Path, tmp_path: Path) -> tuple[Path, Path]:
        """Settings, and the folder of the pack in force after its damage."""
        settings = write_settings(tmp_path)
        assert run("models", "activate", pack, "--config", settings).code == 0
        (kept,) = (tmp_path / "var" / "packs").iterdir()
        damage(kept)
        return settings, kept

    def told(self, done: Done, kept: Path, reason: str) -> None:
        line = done.error()
        assert done.code == 1
        assert str(kept) in line and reason in line and "the pack in force cannot be read" in line
        assert "dicomnode models activate NAME" in line and SHIPPED in line

    def test_the_others_are_listed_and_it_is_named_after_them(self, broken: tuple[Path, Path], reason: str) -> None:
        settings, kept = broken
        done = run("models", "list", "--json", "--config", settings)
        self.told(done, kept, reason)
        assert [(p["name"], p["active"]) for p in done.json()["packs"]] == [(SHIPPED, False)]
        assert done.json()["unreadable"] == [done.error().removeprefix("error: ")]
        assert SHIPPED in run("models", "list", "--config", settings).out

    def test_status_says_what_is_in_force(self, broken: tuple[Path, Path], reason: str) -> None:
        settings, kept = broken
        done = run("models", "status", "--json", "--config", settings)
        self.told(done, kept, reason)
        data = done.json()
        assert (data["active"], data["unreadable"]) == (None, done.error().removeprefix("error: "))
        self.told(run("models", "status", "--config", settings), kept, reason)

    def test_what_it_was_copied_from_is_put_in_force_again(
        self, broken: tuple[Path, Path], reason: str, pack: Path
    ) -> None:
        settings, kept = broken
        assert run("models", "activate", pack, "--config", settings).code == 0
        done = run("models", "status", "--json", "--config", settings)
        assert (done.code, done.json()["active"]) == (0, read_manifest(kept).model_id)

    def test_another_one_is_put_in_force_as_it_says(self, broken: tuple[Path, Path], reason: str, pack: Path) -> None:
        settings, _ = broken
        other = pack.with_name("other")
        shutil.copytree(pack, other)
        raw = json.loads((other / MANIFEST).read_text())
        (other / MANIFEST).write_text(json.dumps({**raw, "name": "other"}))
        assert run("models", "activate", other, "--config", settings).code == 0
        done = run("models", "status", "--json", "--config", settings)
        assert (done.code, done.json()["active"]) == (0, read_manifest(other).model_id)


def test_vectors_of_a_pack_that_cannot_be_read_are_still_counted(pack: Path, tmp_path: Path) -> None:
    slice_picture(1).save(tmp_path / "1.png")
    (tmp_path / "LABELS.csv").write_text("path,label\n1.png,nodule")
    settings = write_settings(tmp_path, f"[models]\npack = {json.dumps(str(pack))}\n")
    assert run("index", "add", tmp_path / "LABELS.csv", "--config", settings).code == 0
    model_id = read_manifest(pack).model_id
    (pack / MANIFEST).write_text("{")
    done = run("models", "status", "--json", "--config", settings)
    assert (done.code, done.json()["active"]) == (1, None)
    (row,) = done.json()["models"]
    assert (row["model_id"], row["name"], row["studies"]) == (model_id, "(no readable pack)", 1)
    assert "set [models] pack" in done.error()


def test_a_folder_without_a_manifest_is_not_taken_for_an_unknown_name(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    done = run("models", "verify", tmp_path / "bare", "--config", write_settings(tmp_path))
    assert done.code == 1
    assert f"{tmp_path / 'bare'} holds no manifest.json" in done.error()
    assert f"known packs: {SHIPPED}" in done.error()
