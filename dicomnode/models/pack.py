"""A model pack on disk: weights as safetensors, golden vectors, a card; loaded only when everything agrees.

``Pack.load`` verifies checksums, builds the networks and computes the golden vectors again, so that a damaged file, a
changed library or a broken device is found before the first study, not in its answer. It never unpickles anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor, nn
from torch.nn import functional

from dicomnode.errors import PackError
from dicomnode.models.fast import FastNet
from dicomnode.models.manifest import (
    CARD,
    CENET_XCEPTION,
    FAST,
    GOLDEN,
    GRAPH,
    MANIFEST,
    ONNX_KIND,
    SEGMENTATION,
    WEIGHTS,
    Manifest,
    model_id_of,
    read_manifest,
    sha256_of,
    verify_files,
)
from dicomnode.models.networks import CENet, CENetConfig, EmbeddingNet
from dicomnode.models.preprocess import SIDE, SPEC
from dicomnode.models.segmentation import load_segmentation, of_network, write_segmentation
from dicomnode.models.tensors import full_tensors, half_tensors, read_tensors, save_tensors

log = structlog.get_logger(__name__)

GOLDEN_COS = 0.999  # under this a vector is not the model's
GOLDEN_COUNT = 4
# A network of another kind is given the prepared slice as it is; it brings its own normalisation.
PLAIN_SPEC = {**SPEC, "network": "none"}


def synthetic_images(count: int = GOLDEN_COUNT, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """Generated images [count, side, side] for the golden check: ellipses like a thorax, with noise; no patient."""
    rng = np.random.default_rng(20190308)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    images = []
    for _ in range(count):
        image = rng.normal(12, 4, (side, side))
        image += 140 * ((x / rng.uniform(0.75, 0.95)) ** 2 + (y / rng.uniform(0.55, 0.8)) ** 2 < 1)
        for centre in (-0.4, 0.4):
            lung = ((x - centre) / rng.uniform(0.2, 0.3)) ** 2 + ((y - 0.05) / rng.uniform(0.3, 0.5)) ** 2 < 1
            image[lung] = rng.normal(35, 12, int(lung.sum()))
            for _ in range(int(rng.integers(0, 6))):
                cx, cy, r = centre + rng.uniform(-0.2, 0.2), rng.uniform(-0.3, 0.4), rng.uniform(0.02, 0.12)
                image += 80 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * r**2))
        images.append(image.clip(0, 255).astype(np.uint8))
    return np.stack(images)


@dataclass(frozen=True, slots=True)
class Pack:
    """A verified pack: its manifest and its networks, on a device, ready to compute.

    Attributes
    ----------
    network : nn.Module
        float32 [n, side, side] in 0..1 -> unit vectors float32 [n, dim].
    cenet : CENet or None
        Encoder of the network with the decoder that outlines lungs and infection, where the pack has one.
    fast : FastNet or None
        The network again, through ONNX Runtime, where the pack has its graph and the device is the processor.
    """

    folder: Path
    manifest: Manifest
    network: nn.Module
    cenet: CENet | None = None
    fast: FastNet | None = None

    @property
    def vectors(self) -> Callable[[Tensor], Tensor]:
        """The quickest way to the vectors of images, as ``network``."""
        return self.network if self.fast is None else self.fast

    @property
    def embedding_net(self) -> EmbeddingNet:
        """The CE-Net and Xception of the pack, which know regions and the full embedding.

        Raises
        ------
        PackError
            The pack is of another kind.
        """
        if isinstance(self.network, EmbeddingNet):
            return self.network
        raise PackError(
            f"a pack of kind {self.manifest.kind} gives vectors only: no regions, no full embedding",
            place=str(self.folder),
        )

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", *, fast: bool = True) -> Pack:
        """Verify every file, build the networks and check the golden vectors.

        Parameters
        ----------
        folder : folder with manifest.json, the file of weights, golden.safetensors, card.md.
        device : a torch device that exists.
        fast : False: without ONNX Runtime, whatever the pack has.

        Raises
        ------
        PackError
            Anything missing, damaged, or not reproducing its golden vectors (cosine under .999) or masks.
        """
        manifest = read_manifest(folder)
        expected = SPEC if manifest.kind == CENET_XCEPTION else PLAIN_SPEC
        if manifest.identity["preprocessing"] != expected:
            raise PackError(
                "was made for another preprocessing than this version's",
                place=str(folder / MANIFEST),
                advice="install the pack of this version, or the version of this pack",
            )
        verify_files(folder, manifest, without=() if fast else (FAST,))
        network = load_network(folder, manifest.identity, manifest.kind, device)
        golden = read_tensors(folder / GOLDEN)
        _check_golden(network, golden, folder, device)
        runtime = None
        if fast and FAST in manifest.files and device == "cpu" and isinstance(network, EmbeddingNet):
            runtime = _runtime(folder, network, golden, device)
        cenet = None
        if manifest.segmentation is not None and isinstance(network, EmbeddingNet):
            config = CENetConfig(**manifest.identity["architecture"]["cenet"])
            if network.decoder is not None:
                cenet = of_network(config, network)
            else:
                cenet = load_segmentation(folder, config, network.encoder, synthetic_images(), device)
        return cls(folder, manifest, network, cenet, runtime)


def _runtime(folder: Path, network: EmbeddingNet, golden: dict[str, Tensor], device: str) -> FastNet | None:
    """The network through ONNX Runtime; None, with a warning, where it cannot be used: torch gives the same vectors."""
    try:
        fast = FastNet(folder / FAST, network)
        _check_golden(fast, golden, folder, device)
    except PackError as exc:
        log.warning("graph_not_used", line=exc.line)
        return None
    return fast


class UnitNet(nn.Module):
    """A network of another kind, its vectors brought to length 1."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, side, side] in 0..1 -> unit vectors float32 [n, dim]."""
        return functional.normalize(self.inner(images).float(), dim=1)


def load_network(folder: Path, identity: Mapping[str, Any], kind: str, device: str) -> nn.Module:
    """The network of a pack's folder on a device; see ``Pack.network``.

    Raises
    ------
    PackError
        Its files do not make a network.
    """
    network: nn.Module
    if kind == CENET_XCEPTION:
        network = _network(identity, read_tensors(folder / WEIGHTS), folder)
    elif kind == ONNX_KIND:
        from dicomnode.models.manifest import ONNX
        from dicomnode.models.onnxnet import OnnxNet

        network = UnitNet(OnnxNet(folder / ONNX, device, SIDE))
    else:
        network = UnitNet(_graph(folder))
    return network.to(torch.device(device)).eval()


def _graph(folder: Path) -> nn.Module:
    from dicomnode.models.graph import GraphNet

    tensors = read_tensors(folder / WEIGHTS)
    if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise PackError("holds weights that are NaN or infinite", place=str(folder / WEIGHTS))
    try:
        return GraphNet(json.loads((folder / GRAPH).read_text(encoding="utf-8")), tensors)
    except PackError as e:
        raise PackError(e.line, place=str(folder / GRAPH)) from e
    except (OSError, ValueError, AttributeError) as e:
        raise PackError("is not a readable graph", place=str(folder / GRAPH)) from e


def _network(identity: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path) -> EmbeddingNet:
    """Build the network the identity describes and fill it; nothing missing, nothing left over."""
    try:
        with torch.device("meta"):  # no time spent on random weights that are thrown away
            network = EmbeddingNet.of_architecture(identity["architecture"], SIDE, identity["dim"])
        network.load_state_dict(full_tensors(tensors, network.state_dict()), strict=True, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise PackError("weights do not fit the architecture of the manifest", place=str(folder / WEIGHTS)) from e
    network.requires_grad_(False)
    network.eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch annotates it for tensors only
    return network


_MADE_SO = "make the pack again, or restore it"


def _check_golden(network: Callable[[Tensor], Tensor], golden: dict[str, Tensor], folder: Path, device: str) -> None:
    try:
        images, expected = golden["images"], golden["vectors"]
    except KeyError as e:
        raise PackError("lacks images or vectors", place=str(folder / GOLDEN)) from e
    try:
        with torch.inference_mode():
            found = network(images.to(torch.device(device)).float().div(255)).cpu()
    except (RuntimeError, TypeError, IndexError) as e:  # a graph whose shapes do not fit each other
        raise PackError(f"the network cannot compute the golden vectors ({type(e).__name__})", place=str(folder)) from e
    if found.shape != expected.shape:
        raise PackError("does not fit the pack's dimension", place=str(folder / GOLDEN))
    if not bool(torch.isfinite(expected).all()):
        raise PackError("holds vectors that are NaN or infinite", place=str(folder / GOLDEN), advice=_MADE_SO)
    if not bool(torch.isfinite(found).all()):
        line = "the network's weights, or the vectors that it computes, are NaN or infinite"
        raise PackError(line, place=str(folder), advice=_MADE_SO)
    worst = float((found * expected).sum(1).min())
    if not worst >= GOLDEN_COS:  # written so that NaN fails too
        raise PackError(
            f"the network does not reproduce its golden vectors (cosine {worst:.4f}, needed {GOLDEN_COS})",
            place=str(folder),
            advice='try [models] device = "cpu"; if it stays, restore the pack',
        )


def write_pack(
    folder: Path,
    network: EmbeddingNet,
    *,
    name: str,
    status: str,
    card: str,
    about: Mapping[str, Any],
    compaction: Mapping[str, Any],
    segmentation: CENet | None = None,
) -> Pack:
    """Write a pack and load it back: golden vectors are computed from the shipped (half precision) weights.

    The manifest is written last and by renaming, so a folder with a manifest is whole. With the CE-Net that the
    encoder was trained in as ``segmentation``, the pack offers outlines too; one with a lesion profile does anyway.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    save_tensors(half_tensors(network.state_dict()), folder / WEIGHTS)
    identity = {
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "architecture": network.architecture,
        "preprocessing": SPEC,
        "dim": network.compaction.components.shape[0],
        "dtype": "float32",
        "norm": "l2",
        "metric": "cosine",
        "compaction": dict(compaction),
        "calibration": None,  # calibration belongs to a repository, not to a pack
    }
    shipped = _network(identity, read_tensors(folder / WEIGHTS), folder)
    images = torch.from_numpy(synthetic_images())
    with torch.inference_mode():
        vectors = shipped(images.float().div(255))
    save_tensors({"images": images, "vectors": vectors.contiguous()}, folder / GOLDEN)
    (folder / CARD).write_text(card.replace("{model_id}", model_id_of(identity)), encoding="utf-8")
    names = [WEIGHTS, GOLDEN, CARD]
    (folder / SEGMENTATION).unlink(missing_ok=True)
    if segmentation is not None and network.decoder is None:
        write_segmentation(folder, segmentation, shipped.encoder, synthetic_images())
        names.append(SEGMENTATION)
    write_manifest(folder, name, status, identity, names, about)
    return Pack.load(folder)


def write_manifest(
    folder: Path,
    name: str,
    status: str,
    identity: Mapping[str, Any],
    names: Sequence[str],
    about: Mapping[str, Any],
) -> Manifest:
    """Write the manifest over the files ``names``, by renaming: a folder with a manifest is whole."""
    files = {n: sha256_of(folder / n) for n in names}
    manifest = Manifest(name, model_id_of(identity), status, identity, files, about)
    new = folder / f"{MANIFEST}.new"
    new.write_text(json.dumps(manifest.as_json(), indent=1) + "\n", encoding="utf-8")
    new.replace(folder / MANIFEST)
    return manifest
