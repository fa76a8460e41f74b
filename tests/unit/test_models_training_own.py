"""A pack of a site's own images: written, measured on what was not trained on, with a card that names no path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_samples import command, picture, slices, write_csv

from dicomnode.domain import Shows
from dicomnode.errors import InputError, PackError
from dicomnode.models.embedder import Embedder
from dicomnode.models.manifest import CARD, find_pack, read_manifest
from dicomnode.models.training.cenet import CenetOptions, train_cenet
from dicomnode.models.training.own import OwnPackOptions, build_own_pack
from dicomnode.models.training.xception import XceptionOptions, train_xception

COLUMNS = ("path", "label", "patient", "split")


@pytest.fixture(scope="module")
def cenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cenet")
    options = CenetOptions(out, out, encoder="resnet34", width=0.25, imagenet=False, epochs=1, batch=2, max_steps=1)
    checkpoint: Path = train_cenet(options, slices())["checkpoint"]
    return checkpoint


def table(folder: Path, n: int, other: int = 0) -> Path:
    """LABELS.csv of n images to train on and ``other`` of a split that is not, two a patient."""
    rows = []
    for i in range(n + other):
        bright = picture(i) // 2 + (128 if i % 4 < 2 else 0)
        Image.fromarray(bright.astype(np.uint8)).save(folder / f"SECRET-{i}.png")
        rows.append(
            (f"SECRET-{i}.png", "ill" if i % 4 < 2 else "healthy", f"SECRET-{i // 2}", "train" if i < n else "test")
        )
    return write_csv(folder / "LABELS.csv", COLUMNS, rows)


def trained(folder: Path, cenet: Path, data: Path, **kind: Any) -> OwnPackOptions:
    options = XceptionOptions(data, folder / "run", cenet, epochs=1, batch=4, middle=1, max_steps=1, **kind)
    checkpoint = train_xception(options)["checkpoint"]
    return OwnPackOptions(options, folder / "pack", checkpoint, "mine", commands=("dicomnode train xception",))


def test_it_is_measured_on_the_rows_of_other_splits_and_embeds(tmp_path: Path, cenet: Path) -> None:
    pack = build_own_pack(trained(tmp_path, cenet, table(tmp_path, 24, 8), validate=0.2))
    about = pack.manifest.about
    assert (about["metrics"]["queries"], about["metrics"]["query_patients"]) == (8, 4)
    assert about["metrics"]["index"] < 24  # a part was kept apart to stop early
    assert set(about["metrics"]["rows"]) >= {"this pack", "control: lungs masked out", "control: raw 32x32 pixels"}
    card = (tmp_path / "pack" / CARD).read_text()
    assert "the rows of other splits than train" in card
    assert "COVID" not in card
    assert "ct-lung-seg" not in card
    assert "SECRET" not in card + (tmp_path / "pack" / "manifest.json").read_text()
    assert pack.manifest.dim == about["metrics"]["index"] - 1  # as many as can be fitted
    assert f"PCA to {pack.manifest.dim}," in card
    vectors = Embedder.load(find_pack(str(tmp_path / "pack")), "cpu").embed(np.zeros((2, 224, 224), dtype=np.float32))
    assert vectors.shape == (2, pack.manifest.dim)


def test_the_command_writes_it_and_a_node_can_load_it(tmp_path: Path, cenet: Path) -> None:
    words: tuple[object, ...] = ("--data", table(tmp_path, 48), "--cenet", cenet, "--out", tmp_path / "run")
    words += ("--pack", tmp_path / "ours", "--taught", "MR:HEAD")
    done = command("train", "xception", *words, "--epochs", 1, "--max-steps", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_id"] == read_manifest(tmp_path / "ours").model_id
    assert read_manifest(tmp_path / "ours").taught == (Shows("MR", "HEAD"),)
    assert "The images show MR (head)" in (tmp_path / "ours" / CARD).read_text()
    done = command("models", "verify", tmp_path / "ours")
    assert done.returncode == 0, done.stderr


def test_what_is_taught_is_said_of_a_pack_of_one_s_own_only(tmp_path: Path) -> None:
    words = ("train", "xception", "--data", tmp_path, "--cenet", tmp_path, "--out", tmp_path / "run")
    done = command(*words, "--taught", "CT:CHEST")
    assert (done.returncode, "--taught: it is for a pack of a table" in done.stderr) == (2, True)


def test_without_other_splits_it_is_measured_on_what_validated(tmp_path: Path, cenet: Path) -> None:
    pack = build_own_pack(trained(tmp_path, cenet, table(tmp_path, 24), validate=0.3))
    found = pack.manifest.about["metrics"]
    assert found["index"] + found["queries"] == 24
    assert "a little optimistic" in (tmp_path / "pack" / CARD).read_text()


def test_where_nothing_was_kept_apart_the_card_says_so(tmp_path: Path, cenet: Path) -> None:
    pack = build_own_pack(trained(tmp_path, cenet, table(tmp_path, 24)))
    assert pack.manifest.about["metrics"] == {}
    assert "**Not measured**" in (tmp_path / "pack" / CARD).read_text()


def test_outlines_and_profile_are_in_it_only_where_they_were_kept(tmp_path: Path, cenet: Path) -> None:
    for name, kind in (("lost", {}), ("kept", {"freeze": True})):
        folder = tmp_path / name
        folder.mkdir()
        pack = build_own_pack(trained(folder, cenet, table(folder, 24), **kind))
        assert ("lesion" in pack.manifest.identity["architecture"]) is bool(kind)


def test_too_few_images_are_refused(tmp_path: Path, cenet: Path) -> None:
    with pytest.raises(InputError, match="holds 12 images to fit a pack to; 16 are needed"):
        build_own_pack(trained(tmp_path, cenet, table(tmp_path, 12)))
    assert not (tmp_path / "pack").exists()


def test_the_folder_of_a_training_is_told_from_a_pack(tmp_path: Path, cenet: Path) -> None:
    with pytest.raises(PackError, match="is the folder of a training, not a pack"):
        find_pack(str(cenet.parent))
