"""A pack is loaded only when every file agrees; embedding is deterministic and of unit length."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dicomnode.errors import InputError, PackError
from dicomnode.models import manifest as manifests
from dicomnode.models.embedder import BATCH_CPU, BATCH_CUDA, Embedder, batch_on, choose_device
from dicomnode.models.manifest import (
    CARD,
    GOLDEN,
    MANIFEST,
    SEGMENTATION,
    WEIGHTS,
    find_pack,
    list_packs,
    model_id_of,
    read_manifest,
    sha256_of,
)
from dicomnode.models.networks import CENet, CENetConfig, EmbeddingNet, XceptionConfig
from dicomnode.models.pack import Pack, synthetic_images, write_pack
from dicomnode.models.tensors import standardise

CENET = CENetConfig("resnet34", 0.25)
XCEPTION = XceptionConfig(132, (16,), 1, (16,), 1, 0, (24,))


@pytest.fixture(scope="module")
def networks() -> tuple[EmbeddingNet, CENet]:
    """Seeded, untrained networks that share their encoder."""
    torch.manual_seed(0)
    network = EmbeddingNet(CENET, XCEPTION, 224, 16).eval()
    cenet = CENet(CENET).eval()
    cenet.encoder = network.encoder
    with torch.inference_mode():
        full = network.full(torch.from_numpy(synthetic_images(24)).float().div(255))
        logits = cenet(standardise(torch.from_numpy(synthetic_images()).float().div(255)[:, None]))
        cenet.head[-1].bias -= logits.mean((0, 2, 3))  # about half of the pixels each
    network.compaction.fit(full.clone())
    return network, cenet


def written(folder: Path, network: EmbeddingNet, cenet: CENet | None = None) -> Path:
    write_pack(
        folder,
        network,
        name="small",
        status="test",
        card="# card {model_id}\n",
        about={"licence": "none"},
        compaction={"kind": "pca", "dim": 16},
        segmentation=cenet,
    )
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, networks: tuple[EmbeddingNet, CENet]) -> Path:
    """A small pack."""
    return written(tmp_path_factory.mktemp("packs") / "small", networks[0])


@pytest.fixture(scope="module")
def outlining(tmp_path_factory: pytest.TempPathFactory, networks: tuple[EmbeddingNet, CENet]) -> Path:
    """The same with its decoder."""
    return written(tmp_path_factory.mktemp("outlining") / "small", *networks)


@pytest.fixture
def pack(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built, tmp_path / "small"))


def resign(folder: Path, change: Callable[[dict], None] = lambda raw: None) -> None:
    """Make hashes and model_id agree again after a change, as a careful forger would."""
    raw = json.loads((folder / MANIFEST).read_text())
    raw["files"] = {n: sha256_of(folder / n) for n in raw["files"]}
    raw["identity"]["weights_sha256"] = raw["files"][WEIGHTS]
    change(raw)
    raw["model_id"] = model_id_of(raw["identity"])
    (folder / MANIFEST).write_text(json.dumps(raw))


def images(n: int) -> np.ndarray:
    return synthetic_images(n).astype(np.float32) / 255


def test_a_written_pack_loads_and_names_itself(built: Path) -> None:
    loaded = Pack.load(built)
    assert loaded.manifest.model_id.startswith("sha256:")
    assert loaded.manifest.model_id in (built / CARD).read_text()
    assert loaded.manifest.dim == 16


@pytest.mark.parametrize("name", [WEIGHTS, GOLDEN, CARD])
def test_one_flipped_byte_in_any_file_is_found(pack: Path, name: str) -> None:
    data = bytearray((pack / name).read_bytes())
    data[len(data) // 2] ^= 1
    (pack / name).write_bytes(data)
    with pytest.raises(PackError, match="checksum") as caught:
        Pack.load(pack)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [WEIGHTS, GOLDEN, CARD, MANIFEST])
def test_a_missing_file_is_named(pack: Path, name: str) -> None:
    (pack / name).unlink()
    with pytest.raises(PackError, match=name):
        Pack.load(pack)


def test_truncated_weights_are_refused_even_with_a_fitting_checksum(pack: Path) -> None:
    (pack / WEIGHTS).write_bytes((pack / WEIGHTS).read_bytes()[:-1000])
    resign(pack)
    with pytest.raises(PackError, match="safetensors"):
        Pack.load(pack)


def test_other_weights_fail_the_golden_vectors(pack: Path) -> None:
    tensors = load_file(pack / WEIGHTS)
    tensors["compaction.components"] = tensors["compaction.components"].flip(0).contiguous()
    save_file(tensors, pack / WEIGHTS)
    resign(pack)
    with pytest.raises(PackError, match="golden"):
        Pack.load(pack)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_told_as_that(pack: Path, value: float) -> None:
    tensors = load_file(pack / WEIGHTS)
    tensors["compaction.mean"][0] = value
    save_file(tensors, pack / WEIGHTS)
    resign(pack)
    with pytest.raises(PackError, match="NaN or infinite") as caught:
        Pack.load(pack)
    assert "device" not in str(caught.value) and "cosine" not in str(caught.value)


def test_golden_vectors_that_are_not_finite_are_told_as_that(pack: Path) -> None:
    tensors = load_file(pack / GOLDEN)
    tensors["vectors"][0, 0] = float("nan")
    save_file(tensors, pack / GOLDEN)
    resign(pack)
    with pytest.raises(PackError, match=f"{GOLDEN}: holds vectors that are NaN or infinite"):
        Pack.load(pack)


def test_a_tensor_too_few_does_not_fit_the_architecture(pack: Path) -> None:
    tensors = load_file(pack / WEIGHTS)
    tensors.popitem()
    save_file(tensors, pack / WEIGHTS)
    resign(pack)
    with pytest.raises(PackError, match="architecture"):
        Pack.load(pack)


def test_a_changed_identity_is_not_believed(pack: Path) -> None:
    raw = json.loads((pack / MANIFEST).read_text())
    raw["identity"]["metric"] = "euclidean"
    (pack / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(PackError, match="model_id"):
        Pack.load(pack)


def test_another_preprocessing_is_refused(pack: Path) -> None:
    def change(raw: dict) -> None:
        raw["identity"]["preprocessing"]["version"] = 99

    resign(pack, change)
    with pytest.raises(PackError, match="preprocessing"):
        Pack.load(pack)


def test_a_manifest_that_is_no_json_is_one_line(pack: Path) -> None:
    (pack / MANIFEST).write_text("{")
    with pytest.raises(PackError, match="damaged"):
        Pack.load(pack)


@pytest.mark.parametrize("key", manifests.IDENTITY_KEYS)
def test_every_part_of_the_identity_changes_the_model_id(built: Path, key: str) -> None:
    identity = json.loads((built / MANIFEST).read_text())["identity"]
    assert model_id_of({**identity, key: "other"}) != model_id_of(identity)


def test_packs_are_found_by_name_and_by_folder(built: Path) -> None:
    assert find_pack("small", [built.parent]) == built
    assert find_pack(str(built), []) == built
    with pytest.raises(PackError, match=r"nobody.*small"):
        find_pack("nobody", [built.parent])
    packs, unreadable = list_packs([built.parent])
    assert ([m.name for _, m in packs], unreadable) == (["small"], [])


def test_a_folder_without_a_manifest_is_told_from_a_name_that_is_unknown(built: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for name, folders in ((str(tmp_path / "bare"), [built.parent]), ("bare", [built.parent, tmp_path])):
        with pytest.raises(PackError, match=r"bare holds no manifest\.json.*small"):
            find_pack(name, folders)
    with pytest.raises(PackError, match="no model pack is called ''"):
        find_pack("", [built.parent])


@pytest.fixture(scope="module")
def embedder(built: Path) -> Embedder:
    return Embedder.load(built, "cpu")


def test_vectors_have_length_one(embedder: Embedder) -> None:
    vectors = embedder.embed(images(5))
    assert vectors.shape == (5, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_no_slices_give_no_vectors(embedder: Embedder) -> None:
    assert embedder.embed(np.empty((0, 224, 224), dtype=np.float32)).shape == (0, 16)


def test_a_vector_does_not_depend_on_its_batch(embedder: Embedder) -> None:
    x = images(11)
    together = embedder.embed(x)
    alone = np.concatenate([embedder.embed(x[i : i + 1]) for i in range(len(x))])
    assert (together * alone).sum(1).min() >= 0.9999


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, networks: tuple[EmbeddingNet, CENet]) -> Path:
    """A pack as they were made before: it looks at a slice and at its mirror image."""
    network = copy.deepcopy(networks[0])
    network.flip_average = True
    return written(tmp_path_factory.mktemp("before") / "small", network)


def test_a_manifest_that_does_not_tell_means_both_ways(before: Path, built: Path) -> None:
    now, then = read_manifest(built), read_manifest(before)
    assert now.identity["architecture"]["flip_average"] is False
    assert "flip_average" not in then.identity["architecture"]
    assert now.model_id != then.model_id


def test_both_ways_is_the_mean_of_a_slice_and_its_mirror_image(before: Path, embedder: Embedder) -> None:
    x = torch.from_numpy(images(2))
    both, once = Embedder.load(before, "cpu").pack.embedding_net, embedder.pack.embedding_net
    with torch.inference_mode():
        for mean, half, mirrored in zip(both.halves(x), once.halves(x), once.halves(x.flip(2)), strict=True):
            assert (half - mirrored.flip(3)).abs().max() > 1e-3  # else the mean would show nothing
            torch.testing.assert_close(mean, (half + mirrored.flip(3)) / 2, atol=1e-4, rtol=0)


def test_flip_averaged_halves_mirror_with_the_slice(networks: tuple[EmbeddingNet, CENet]) -> None:
    network = copy.deepcopy(networks[0])
    network.flip_average = True
    x = torch.from_numpy(images(1))
    with torch.inference_mode():
        for half, mirrored in zip(network.halves(x), network.halves(x.flip(2)), strict=True):
            assert half.shape == (1, 132, 7, 7)
            torch.testing.assert_close(mirrored, half.flip(3), atol=1e-4, rtol=0)


def test_both_halves_of_the_full_embedding_weigh_the_same(embedder: Embedder) -> None:
    full = embedder.full(images(3))
    half = full.shape[1] // 2
    np.testing.assert_allclose(np.linalg.norm(full[:, :half], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(full[:, half:], axis=1), 1, atol=1e-5)


def test_other_shapes_and_nan_are_refused(embedder: Embedder) -> None:
    with pytest.raises(InputError, match="224"):
        embedder.embed(np.zeros((1, 100, 224), dtype=np.float32))
    bad = images(1)
    bad[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="finite"):
        embedder.embed(bad)


def test_a_device_that_is_not_there_is_one_line(built: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(PackError, match="no CUDA device"):
            Embedder.load(built, "cuda")
        assert choose_device("auto") == "cpu"
    with pytest.raises(PackError, match="unknown device"):
        Embedder.load(built, "tpu")


def test_one_of_several_gpus_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(d) for d in ("auto", "cpu", "cuda", "cuda:0", "cuda:1")] == [
        "cuda", "cpu", "cuda", "cuda:0", "cuda:1",
    ]  # fmt: skip
    with pytest.raises(PackError, match="no cuda:2, the last is cuda:1"):
        choose_device("cuda:2")
    for wrong in ("cpu:0", "auto:1", "cuda:", "cuda:x"):
        with pytest.raises(PackError, match="unknown device"):
            choose_device(wrong)
    assert (batch_on("cpu"), batch_on("cuda:1")) == (BATCH_CPU, BATCH_CUDA)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_same_vectors(built: Path, embedder: Embedder) -> None:
    x = images(9)
    assert (Embedder.load(built, "cuda").embed(x) * embedder.embed(x)).sum(1).min() >= 0.999


def test_golden_inputs_are_generated_not_patients(built: Path) -> None:
    stored = load_file(built / GOLDEN)["images"].numpy()
    np.testing.assert_array_equal(stored, synthetic_images())


class TestSegmentation:
    @pytest.fixture
    def pack(self, outlining: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(outlining, tmp_path / "outlining"))

    def test_it_is_no_part_of_the_identity_and_changes_no_vector(self, built: Path, outlining: Path) -> None:
        plain, with_masks = Embedder.load(built, "cpu"), Embedder.load(outlining, "cpu")
        assert with_masks.model_id == plain.model_id
        np.testing.assert_array_equal(with_masks.embed(images(3)), plain.embed(images(3)))
        manifest = read_manifest(outlining)
        assert manifest.segmentation == sha256_of(outlining / SEGMENTATION)
        assert read_manifest(built).segmentation is None

    def test_the_masks_are_those_of_the_trained_network(
        self, outlining: Path, networks: tuple[EmbeddingNet, CENet]
    ) -> None:
        x = images(5)
        found = Embedder.load(outlining, "cpu").masks(x)
        assert (found.shape, found.dtype) == ((5, 2, 224, 224), np.bool_)
        with torch.inference_mode():
            wanted = (networks[1](standardise(torch.from_numpy(x)[:, None])) > 0).numpy()
        assert 0.1 < wanted.mean() < 0.9
        assert (found == wanted).mean() > 0.995  # half precision turns a few at the edges

    def test_the_file_holds_the_decoder_alone(self, outlining: Path) -> None:
        names = load_file(outlining / SEGMENTATION)
        assert not [n for n in names if n.startswith("encoder")]
        assert (outlining / SEGMENTATION).stat().st_size < (outlining / WEIGHTS).stat().st_size

    def test_no_slices_give_no_masks_and_other_shapes_are_refused(self, outlining: Path) -> None:
        embedder = Embedder.load(outlining, "cpu")
        assert embedder.masks(np.empty((0, 224, 224), dtype=np.float32)).shape == (0, 2, 224, 224)
        with pytest.raises(InputError, match="224"):
            embedder.masks(np.zeros((1, 100, 224), dtype=np.float32))

    def test_a_pack_without_it_says_so_when_it_is_asked(self, embedder: Embedder) -> None:
        with pytest.raises(PackError, match=SEGMENTATION) as caught:
            embedder.masks(images(1))
        assert "\n" not in str(caught.value)

    def test_a_flipped_byte_or_a_missing_file_is_found(self, pack: Path) -> None:
        data = bytearray((pack / SEGMENTATION).read_bytes())
        data[len(data) // 2] ^= 1
        (pack / SEGMENTATION).write_bytes(data)
        with pytest.raises(PackError, match="checksum"):
            Pack.load(pack)
        (pack / SEGMENTATION).unlink()
        with pytest.raises(PackError, match=SEGMENTATION):
            Pack.load(pack)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda t: t["head.0.weight"].fill_(float("nan")), "NaN"),
            (lambda t: t["head.4.bias"].fill_(float("inf")), "NaN"),
            (lambda t: t["head.4.bias"].add_(1000), "golden masks"),
            (lambda t: t.pop("golden"), "golden images"),
            (lambda t: t.update(golden=t["golden"][:, :, :100].contiguous()), "golden images"),
            (lambda t: t.pop("up8.body.0.weight"), "does not fit"),
            (lambda t: t.update(more=torch.zeros(1)), "does not fit"),
            (lambda t: t.update({"head.4.bias": torch.zeros(3)}), "does not fit"),
        ],
    )
    def test_what_does_not_belong_to_the_pack_is_refused_with_one_line(
        self, pack: Path, change: Callable[[dict], object], said: str
    ) -> None:
        tensors = load_file(pack / SEGMENTATION)
        change(tensors)
        save_file(tensors, pack / SEGMENTATION)
        resign(pack)
        with pytest.raises(PackError, match=said) as caught:
            Pack.load(pack)
        assert SEGMENTATION in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_that_is_cut_off_is_refused(self, pack: Path) -> None:
        (pack / SEGMENTATION).write_bytes((pack / SEGMENTATION).read_bytes()[:-1000])
        resign(pack)
        with pytest.raises(PackError, match="safetensors"):
            Pack.load(pack)

    def test_a_file_that_the_manifest_does_not_name_is_not_read(self, pack: Path, built: Path) -> None:
        shutil.copy(built / MANIFEST, pack / MANIFEST)
        (pack / SEGMENTATION).write_bytes(b"anything")
        assert Pack.load(pack).cenet is None

    def test_written_again_without_it_the_pack_has_none(self, pack: Path, networks: tuple[EmbeddingNet, CENet]) -> None:
        written(pack, networks[0])
        assert not (pack / SEGMENTATION).exists()
        assert Pack.load(pack).cenet is None

    @pytest.mark.parametrize(
        ("said", "dice"),
        [
            ({"lungs": {"3": 0.9, "6": 0.8}, "infection": {}}, {"lungs": pytest.approx(0.85)}),
            ({"lungs": {"3": 1.5}}, {}),
            ({"lungs": "good"}, {}),
            (None, {}),
        ],
    )
    def test_the_dice_is_what_the_manifest_says_and_nothing_else(self, built: Path, said, dice) -> None:
        raw = json.loads((built / MANIFEST).read_text())
        manifest = manifests.Manifest(
            "n", raw["model_id"], "s", raw["identity"], raw["files"], {"dice_by_volume": said}
        )
        assert manifest.dice == dice


SHIPPED = manifests.PACK_FOLDERS[0] / "cenet-xception"


def test_the_shipped_pack_loads_and_is_small() -> None:
    loaded = Pack.load(SHIPPED)
    assert loaded.manifest.dim == 256
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) <= 27_000_000


def test_the_shipped_card_says_what_it_must() -> None:
    card = (SHIPPED / CARD).read_text()
    for phrase in ("Not for diagnosis", "Not the published width", "CC BY-NC-SA", "lungs masked out", "seed"):
        assert phrase in card
    assert Pack.load(SHIPPED).manifest.model_id in card


def test_the_documentation_shows_the_shipped_card() -> None:
    docs = SHIPPED.parents[2] / "docs" / "model-cards" / "cenet-xception.md"
    assert docs.read_text() == (SHIPPED / CARD).read_text()
