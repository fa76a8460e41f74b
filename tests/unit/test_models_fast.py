"""The same vectors through ONNX Runtime: equal to torch's, of the pack's own weights, checked like all of a pack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from structlog.testing import capture_logs

from dicomnode.errors import PackError
from dicomnode.models import accelerate as accelerating
from dicomnode.models.accelerate import accelerate
from dicomnode.models.embedder import Embedder
from dicomnode.models.fast import FastNet
from dicomnode.models.manifest import FAST, MANIFEST, PACK_FOLDERS, WEIGHTS, find_pack, read_manifest, sha256_of
from dicomnode.models.networks import CENetConfig, EmbeddingNet, XceptionConfig
from dicomnode.models.pack import Pack, synthetic_images, write_manifest, write_pack

CENET = CENetConfig("resnet34", 0.25)
XCEPTION = XceptionConfig(132, (16,), 1, (16,), 1, 0, (24,))
IMAGES = synthetic_images(5).astype(np.float32) / 255


def small(folder: Path, lesion: bool, seed: int = 0) -> Path:
    """A pack of a seeded, untrained network whose norms are not the identity."""
    torch.manual_seed(seed)
    network = EmbeddingNet(CENET, XCEPTION, 224, 16, lesion=lesion).eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    with torch.inference_mode():
        full = network.full(torch.from_numpy(synthetic_images(24)).float().div(255))
    network.compaction.fit(full.clone())
    write_pack(
        folder,
        network,
        name="small",
        status="test",
        card="# card\n",
        about={},
        compaction={"kind": "pca", "dim": 16},
    )
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["two parts", "lesion profile"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pack as it was, and the same with its graph."""
    folder = small(tmp_path_factory.mktemp("packs") / "plain", request.param)
    fast = folder.with_name("fast")
    shutil.copytree(folder, fast)
    assert accelerate(fast) > 0.99999
    return folder, fast


@pytest.fixture
def pack(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "pack"))


def test_the_model_is_the_same_and_so_are_its_vectors(made: tuple[Path, Path]) -> None:
    plain, fast = (Pack.load(folder) for folder in made)
    assert plain.fast is None
    assert fast.fast is not None
    assert fast.manifest.model_id == plain.manifest.model_id
    assert fast.manifest.files[FAST] == sha256_of(made[1] / FAST)
    assert not list(made[1].glob(".*")), "nothing half is left"
    one, other = Embedder(plain, "cpu").embed(IMAGES), Embedder(fast, "cpu").embed(IMAGES)
    np.testing.assert_allclose(one, other, atol=2e-4)
    assert not np.array_equal(one, other), "it is another way to compute them"


def test_a_vector_does_not_depend_on_its_company(made: tuple[Path, Path]) -> None:
    embedder = Embedder.load(made[1], "cpu")
    together = embedder.embed(IMAGES)
    np.testing.assert_array_equal(together, np.concatenate([embedder.embed(i[None]) for i in IMAGES]))
    np.testing.assert_array_equal(together, embedder.embed(IMAGES[::-1].copy())[::-1])
    assert embedder.embed(IMAGES[:0]).shape == (0, 16)


def test_the_graph_holds_no_weights(made: tuple[Path, Path]) -> None:
    assert (made[1] / FAST).stat().st_size < 200_000 < (made[1] / WEIGHTS).stat().st_size


def test_the_graph_takes_the_weights_of_the_pack_it_lies_in(made: tuple[Path, Path], tmp_path: Path) -> None:
    lesion = "lesion" in read_manifest(made[0]).identity["architecture"]
    other = small(tmp_path / "other", lesion, seed=1)
    shutil.copy(made[1] / FAST, other / FAST)
    said = read_manifest(other)
    write_manifest(other, said.name, said.status, said.identity, [*said.files, FAST], said.about)
    loaded = Pack.load(other)
    assert loaded.fast is not None
    expected = loaded.network(torch.from_numpy(IMAGES))
    assert torch.allclose(loaded.fast(torch.from_numpy(IMAGES)), expected, atol=2e-4)


def with_graph(pack: Path, content: bytes) -> None:
    (pack / FAST).write_bytes(content)
    said = json.loads((pack / MANIFEST).read_text())
    said["files"][FAST] = sha256_of(pack / FAST)
    (pack / MANIFEST).write_text(json.dumps(said))


def test_made_again_it_is_the_same(pack: Path) -> None:
    before = (pack / FAST).read_bytes(), (pack / MANIFEST).read_bytes()
    with_graph(pack, b"of another version")
    accelerate(pack)
    assert ((pack / FAST).read_bytes(), (pack / MANIFEST).read_bytes()) == before


def test_a_graph_that_was_changed_or_is_gone_stops_the_load(pack: Path) -> None:
    data = (pack / FAST).read_bytes()
    (pack / FAST).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(PackError, match="does not match its checksum"):
        Pack.load(pack)
    (pack / FAST).unlink()
    with pytest.raises(PackError, match="is missing"):
        Pack.load(pack)


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"no graph at all"])
def test_where_the_graph_is_of_no_use_torch_computes_and_a_warning_says_so(pack: Path, content: bytes) -> None:
    with_graph(pack, content)
    with capture_logs() as said:
        loaded = Pack.load(pack)
    (warning,) = [entry for entry in said if entry["event"] == "graph_not_used"]
    assert warning["log_level"] == "warning"
    assert warning["line"].startswith("ONNX Runtime cannot use the graph")
    assert loaded.vectors is loaded.network


def test_a_graph_that_gives_other_vectors_is_not_used(pack: Path, tmp_path: Path) -> None:
    model = onnx.load(pack / FAST, load_external_data=False)
    normed = next(node for node in model.graph.node if node.output[0] == model.graph.output[0].name)
    spoilt = onnx.helper.make_node("Sin", [normed.output[0] + "-before"], [model.graph.output[0].name])
    normed.output[0] += "-before"
    model.graph.node.append(spoilt)
    with_graph(pack, model.SerializeToString())
    with capture_logs() as said:
        assert Pack.load(pack).fast is None
    assert [entry["line"][:55] for entry in said] == ["the network does not reproduce its golden vectors (cosi"]


def test_a_graph_reads_no_file(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(pack / FAST, load_external_data=False)
    (tmp_path / "elsewhere.bin").write_bytes(np.ones(4, np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    secret = onnx.TensorProto(name="secret", data_type=onnx.TensorProto.FLOAT, dims=[4])
    secret.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "elsewhere.bin"), ("offset", "0"), ("length", "16")):
        secret.external_data.add(key=key, value=value)
    where = onnx.helper.make_tensor("where", onnx.TensorProto.INT64, [1], [0])
    model.graph.initializer.extend([secret, where])
    model.graph.node.append(onnx.helper.make_node("Gather", ["secret", "where"], ["told"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("told", onnx.TensorProto.FLOAT, [1]))
    (tmp_path / FAST).write_bytes(model.SerializeToString())
    with pytest.raises(PackError, match="cannot use the graph"):
        FastNet(tmp_path / FAST, Pack.load(pack, fast=False).embedding_net)


@pytest.mark.parametrize("state", ["stopped between graph and manifest", "gone"])
def test_a_damaged_graph_can_be_made_again(made: tuple[Path, Path], pack: Path, monkeypatch, state: str) -> None:
    (pack / FAST).write_bytes(b"half")
    if state == "gone":
        (pack / FAST).unlink()
    with pytest.raises(PackError):
        Pack.load(pack)
    monkeypatch.setattr(accelerating, "graph_of", lambda _: (made[1] / FAST).read_bytes())  # seconds otherwise
    accelerate(pack)
    assert Pack.load(pack).fast is not None


def test_without_the_exporters_it_says_what_to_install(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerating, "PARTS", ("there-is-no-such-package",))
    with pytest.raises(PackError, match=r"dicomnode\[train\]"):
        accelerate(pack)


def test_the_shipped_pack_computes_by_its_graph() -> None:
    shipped = Pack.load(find_pack("cenet-xception", PACK_FOLDERS))
    assert shipped.fast is not None
    assert shipped.vectors is shipped.fast
