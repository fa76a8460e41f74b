"""Any torch module or ONNX file becomes a pack that holds data alone, or one clear line says why it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dicomnode.errors import DicomnodeError, InputError, PackError
from dicomnode.models.embedder import Embedder
from dicomnode.models.explain import occlusion
from dicomnode.models.graph import GraphNet, captured
from dicomnode.models.manifest import GRAPH, MANIFEST, WEIGHTS, find_by_model, model_id_of, read_manifest, sha256_of
from dicomnode.models.pack import Pack, synthetic_images
from dicomnode.models.packing import CARD_SECTIONS, PackOptions, keep_pack, pack_file, pack_module

SIDE, DIM = 224, 6
CARD = "# card {model_id}\n" + "".join(f"\n## {section}\n\nsomething\n" for section in CARD_SECTIONS)
OPTIONS = PackOptions(name="small", dim=DIM, card=CARD)
RELU = '{"nodes": [{"name": "a", "op": "aten.relu.default", "args": [%s], "kwargs": {}}], "output": "a"}'


class Small(nn.Module):
    """Two convolutions with a norm, pooled: what an image network is made of, and fast."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 7, 8), nn.BatchNorm2d(4), nn.ReLU6(inplace=True), nn.Conv2d(4, dim, 5, 4)
        )
        self.register_buffer("shift", torch.tensor(0.1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images[:, None] - self.shift)
        return x.flatten(2).amax(2).reshape(images.shape[0], -1)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def built(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_module(module, tmp_path_factory.mktemp("packs") / "small", OPTIONS).folder


@pytest.fixture
def pack(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


def resign(folder: Path, change: Callable[[dict], None] = lambda raw: None) -> None:
    """Make hashes and model_id agree again after a change, as a careful forger would."""
    raw = json.loads((folder / MANIFEST).read_text())
    raw["files"] = {n: sha256_of(folder / n) for n in raw["files"]}
    raw["identity"]["weights_sha256"] = raw["files"][WEIGHTS]
    raw["identity"]["architecture"]["graph_sha256"] = raw["files"][GRAPH]
    change(raw)
    raw["model_id"] = model_id_of(raw["identity"])
    (folder / MANIFEST).write_text(json.dumps(raw))


def unit(n: int) -> np.ndarray:
    return synthetic_images(n).astype(np.float32) / 255


def one_line(error: DicomnodeError) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_a_packed_module_gives_the_modules_own_vectors(module: nn.Module, built: Path) -> None:
    x = unit(5)
    with torch.inference_mode():
        own = nn.functional.normalize(module(torch.from_numpy(x)), dim=1).numpy()
    embedder = Embedder.load(built, "cpu")
    np.testing.assert_allclose(embedder.embed(x), own, atol=1e-5)
    assert (embedder.dim, embedder.pack.manifest.kind) == (DIM, "torch-export")
    assert embedder.model_id in (built / "card.md").read_text()


def test_an_exported_program_becomes_the_same_pack(module: nn.Module, built: Path, tmp_path: Path) -> None:
    program = torch.export.export(
        module, (torch.zeros(2, SIDE, SIDE),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, tmp_path / "small.pt2")
    made = pack_file(tmp_path / "small.pt2", tmp_path / "again", OPTIONS)
    x = torch.from_numpy(unit(3))
    with torch.inference_mode():
        torch.testing.assert_close(made.network(x), Pack.load(built).network(x))


def test_such_a_pack_explains_by_covering_and_says_that_it_has_no_parts(built: Path) -> None:
    embedder, x = Embedder.load(built, "cpu"), unit(2)
    assert occlusion(embedder.embed, x[0], x[1], cells=2).case.shape == (2, 2)
    with pytest.raises(PackError, match="vectors only"):
        embedder.full(x)


def test_a_pack_holds_no_pickle(built: Path) -> None:
    assert {p.name for p in built.iterdir()} == {MANIFEST, WEIGHTS, GRAPH, "golden.safetensors", "card.md"}
    json.loads((built / GRAPH).read_text())


@pytest.mark.parametrize(
    "operator",
    [
        "aten.from_file.default",  # reads a file
        "aten.add_.Tensor",  # changes its input
        "aten.rand.default",  # random
        "aten.nonzero.default",  # its shape depends on data
        "prims.add.default",
        "os.system",
        "__class__",
        "aten.__class__.__init__",
    ],
)
def test_an_operator_that_a_pack_may_not_hold_is_refused(pack: Path, operator: str) -> None:
    graph = json.loads((pack / GRAPH).read_text())
    graph["nodes"][0]["op"] = operator
    (pack / GRAPH).write_text(json.dumps(graph))
    resign(pack)
    with pytest.raises(PackError, match=r"graph\.json.*the graph holds") as caught:
        Pack.load(pack)
    one_line(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a readable graph"),
        ("[]", "lacks a key"),
        ('{"nodes": [], "output": "nothing"}', "which is not there"),
        (RELU % '{"ref": "b"}', "before it is there"),
        (RELU % '{"file": "x"}', "not known here"),
        ('{"nodes": [], "output": "image"}', "dimension"),
    ],
)
def test_a_damaged_graph_is_one_line(pack: Path, text: str, said: str) -> None:
    (pack / GRAPH).write_text(text)
    resign(pack)
    with pytest.raises(PackError, match=said) as caught:
        Pack.load(pack)
    one_line(caught.value)


def test_another_graph_is_another_model(pack: Path) -> None:
    before = read_manifest(pack).model_id
    (pack / GRAPH).write_text((pack / GRAPH).read_text() + " ")
    with pytest.raises(PackError, match="checksum"):
        Pack.load(pack)
    resign(pack)
    assert Pack.load(pack).manifest.model_id != before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(module: nn.Module, pack: Path, tmp_path: Path, value: float) -> None:
    tensors = load_file(pack / WEIGHTS)
    next(t for t in tensors.values() if t.ndim)[0] = value
    save_file(tensors, pack / WEIGHTS)
    resign(pack)
    with pytest.raises(PackError, match="NaN or infinite"):
        Pack.load(pack)
    broken = Small().eval()
    broken.body[0].bias.data[1] = value
    with pytest.raises(PackError, match="NaN or infinite"):
        pack_module(broken, tmp_path / "broken", OPTIONS)
    assert not (tmp_path / "broken").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


class Nan(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * torch.log(images.mean() - 10)


class Zero(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * 0


class Same(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * 0)


class Mixing(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0, keepdim=True))


class Fixed(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).reshape(2, DIM)


class ByData(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Nan, "NaN or infinite"),
        (Zero, "length 0"),
        (Same, "same vector"),
        (Mixing, "depends on the others"),
        (Fixed, "cannot export|cannot compute"),
        (ByData, "cannot export"),
        (lambda: Small(DIM + 1), r"\[4, 7\] for 4 slices"),
    ],
)
def test_a_network_that_a_node_could_not_rely_on_is_refused(wrong: Callable, said: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    with pytest.raises(PackError, match=said) as caught:
        pack_module(wrong().eval(), tmp_path / "wrong", OPTIONS)
    one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", CARD_SECTIONS)
def test_a_card_says_what_every_card_must(module: nn.Module, tmp_path: Path, missing: str) -> None:
    said = f"## {missing}"
    for card in (CARD.replace(f"{said}\n", "## Other\n"), CARD.replace(f"{said}\n\nsomething", said)):
        with pytest.raises(InputError, match=said):
            pack_module(module, tmp_path / "pack", PackOptions(name="small", dim=DIM, card=card))


@pytest.mark.parametrize(("name", "dim"), [("../up", DIM), ("UPPER", DIM), ("", DIM), ("small", 1), ("small", 100_000)])
def test_a_name_or_dimension_that_cannot_be_is_refused(module: nn.Module, tmp_path: Path, name: str, dim: int) -> None:
    with pytest.raises(InputError):
        pack_module(module, tmp_path / "pack", PackOptions(name=name, dim=dim, card=CARD))


def test_nothing_is_overwritten(module: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="nothing is overwritten"):
        pack_module(module, tmp_path / "there", OPTIONS)


@pytest.mark.parametrize("name", ["absent.pt2", "small.pth", "rubbish.pt2"])
def test_files_that_cannot_be_packed(tmp_path: Path, name: str) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"rubbish" * 100)
    with pytest.raises((InputError, PackError), match=name) as caught:
        pack_file(tmp_path / name, tmp_path / "pack", OPTIONS)
    one_line(caught.value)
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.update(format=2), "format 2"),
        (lambda raw: raw["identity"]["architecture"].update(kind="keras"), "'keras'"),
        (lambda raw: raw["identity"].update(architecture=None), "damaged"),
        (lambda raw: raw["identity"]["preprocessing"].update(side=256), "another preprocessing"),
        (lambda raw: raw["identity"]["architecture"].update(graph_sha256="0"), "does not match"),
    ],
)
def test_a_manifest_of_something_else_is_one_line(pack: Path, change: Callable, said: str) -> None:
    resign(pack, change)
    with pytest.raises(PackError, match=said) as caught:
        Pack.load(pack)
    one_line(caught.value)


def test_a_pack_is_kept_once_and_found_by_its_model(built: Path, tmp_path: Path) -> None:
    kept = keep_pack(built, tmp_path)
    assert keep_pack(built, tmp_path) == kept
    model = read_manifest(built).model_id
    assert read_manifest(kept).model_id == model
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / MANIFEST).write_text("{")
    assert find_by_model(model, [tmp_path / "absent"], [tmp_path]) == kept
    assert find_by_model(model_id_of(dict.fromkeys(read_manifest(built).identity)), [], [tmp_path]) is None


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
@pytest.mark.parametrize("content", [b"{", None])
def test_a_kept_pack_that_is_damaged_is_kept_anew(
    built: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    kept = keep_pack(built, tmp_path)
    (kept / name).unlink() if content is None else (kept / name).write_bytes(content)
    assert keep_pack(built, tmp_path) == kept
    Pack.load(kept)
    assert list(tmp_path.iterdir()) == [kept]


def test_another_pack_in_the_place_of_a_kept_one_is_left_alone(built: Path, tmp_path: Path) -> None:
    kept = keep_pack(built, tmp_path)
    raw = json.loads((kept / MANIFEST).read_text())
    raw["identity"]["calibration"] = "other"
    raw["model_id"] = model_id_of(raw["identity"])
    (kept / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(PackError, match="holds another pack than its name says"):
        keep_pack(built, tmp_path)
    assert read_manifest(kept).model_id == raw["model_id"]


def test_a_graph_forgets_what_it_no_longer_needs(module: nn.Module) -> None:
    graph, tensors = captured(module, SIDE)
    network = GraphNet(graph, tensors)
    names = [n["name"] for n in graph["nodes"]]
    assert sorted(name for done in network._last_use.values() for name in done if name in names) == sorted(names[:-1])


class TestOnnx:
    @pytest.fixture
    def exported(self, module: nn.Module, tmp_path: Path) -> Path:
        for name in ("onnxruntime", "onnx", "onnxscript"):
            pytest.importorskip(name)
        path = tmp_path / "small.onnx"
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.onnx.export(
            module, (torch.zeros(2, SIDE, SIDE),), dynamic_shapes=shapes, dynamo=True, verbose=False
        )
        program.save(str(path))
        return path

    def test_an_onnx_file_becomes_a_pack(self, exported: Path, built: Path, tmp_path: Path) -> None:
        made = pack_file(exported, tmp_path / "pack", OPTIONS)
        x = unit(5)
        embedder = Embedder.load(made.folder, "cpu")
        np.testing.assert_allclose(embedder.embed(x), Embedder.load(built, "cpu").embed(x), atol=1e-4)
        assert made.manifest.kind == "onnx"
        with pytest.raises(PackError, match="vectors only"):
            embedder.full(x)

    def test_rubbish_is_one_line(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        (tmp_path / "bad.onnx").write_bytes(b"rubbish" * 100)
        with pytest.raises(PackError, match="cannot use the file") as caught:
            pack_file(tmp_path / "bad.onnx", tmp_path / "pack", OPTIONS)
        assert "bad.onnx" in one_line(caught.value)
        assert not (tmp_path / "pack").exists()

    def test_weights_beside_the_file_are_not_read(self, exported: Path, tmp_path: Path) -> None:
        import onnx

        model = onnx.load(exported)
        onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, size_threshold=0, location="secret.bin")
        with pytest.raises(PackError):
            pack_file(tmp_path / "split.onnx", tmp_path / "pack", OPTIONS)
