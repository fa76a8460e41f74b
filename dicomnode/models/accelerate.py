"""Write the graph by which ONNX Runtime computes a pack's network; needs the packages of dicomnode[train].

torch exports the network with its weights as inputs, constants are folded, then each weight becomes an initializer
without values, by the name that it has in the network: ``models.fast`` fills them in.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch

from dicomnode.errors import PackError
from dicomnode.models.fast import FastNet, weights_of
from dicomnode.models.manifest import FAST, read_manifest
from dicomnode.models.networks import EmbeddingNet
from dicomnode.models.pack import Pack, synthetic_images, write_manifest

PARTS = ("onnx", "onnxscript")
LEAST_COSINE = 0.99999  # between the vectors of torch and those of the graph
NOWHERE = "the-pack"  # what ONNX calls the file of the weights; it is never opened


def missing_parts() -> list[str]:
    """Packages that are needed to write a graph and are not installed."""
    return [name for name in PARTS if importlib.util.find_spec(name) is None]


def accelerate(folder: Path) -> float:
    """Write ``fast.onnx`` of a pack and name it in its manifest; the model id stays.

    Returns
    -------
    float
        The least cosine between torch's vectors and the graph's on generated images.

    Raises
    ------
    PackError
        A package is missing, the pack is damaged or of another kind, or the graph gives other vectors.
    """
    missing = missing_parts()
    if missing:
        raise PackError(f"needs {', '.join(missing)}", place=str(folder), advice="pip install 'dicomnode[train]'")
    network = Pack.load(folder, fast=False).embedding_net
    part = folder / f".{FAST}.new"
    try:
        part.write_bytes(graph_of(network))
        worst = _least_cosine(part, network)
        if not worst >= LEAST_COSINE:  # written so that NaN fails too
            raise PackError(f"ONNX Runtime gives other vectors than torch (cosine {worst:.5f})", place=str(folder))
        said = read_manifest(folder)
        names = [name for name in said.files if name != FAST]
        write_manifest(folder, said.name, said.status, said.identity, names, said.about)  # whole at every moment
        part.replace(folder / FAST)
    except OSError as exc:
        raise PackError(f"the graph cannot be written ({type(exc).__name__})", place=str(folder)) from exc
    finally:
        part.unlink(missing_ok=True)
    write_manifest(folder, said.name, said.status, said.identity, [*names, FAST], said.about)
    Pack.load(folder)
    return worst


def graph_of(network: EmbeddingNet) -> bytes:
    """The network as ONNX without weights; takes float32 [n, side, side], n any, and gives float32 [n, dim]."""
    weights = dict(weights_of(network))
    example = (torch.zeros(2, network.side, network.side),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program = torch.onnx.export(
            network,
            example,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    _fold_constants(program.model, weights)
    model = program.model_proto
    _empty(model, weights)
    return bytes(model.SerializeToString())


def _fold_constants(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """What can be computed beforehand, without the weights: they are inputs meanwhile."""
    from onnxscript import optimizer

    graph = model.graph
    aside = {name: value for name, value in graph.initializers.items() if name in weights}
    values = {name: value.const_value for name, value in aside.items()}
    for name, value in aside.items():
        graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    optimizer.optimize_ir(model)
    for name, value in aside.items():
        graph.inputs.remove(value)
        value.const_value = values[name]
        graph.initializers[name] = value


def _empty(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Take the weights out of a model, and what the exporter says of the source code."""
    from onnx import TensorProto

    graph = model.graph
    for tensor in graph.initializer:
        if tensor.name in weights:
            for values in ("raw_data", "float_data"):
                tensor.ClearField(values)
            tensor.data_location = TensorProto.EXTERNAL
            length = weights[tensor.name].numel() * 4
            for key, value in (("location", NOWHERE), ("offset", "0"), ("length", str(length))):
                tensor.external_data.add(key=key, value=value)
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, graph, model):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]


def _least_cosine(path: Path, network: EmbeddingNet) -> float:
    images = torch.from_numpy(synthetic_images(8)).float().div(255)
    with torch.inference_mode():
        return float((FastNet(path, network)(images) * network(images)).sum(1).min())
