"""Ways to compute the default pack's vectors: python benchmarks/embed.py [--rounds N] [--images N]

The pack in torch, with norms folded into convolutions, by ONNX Runtime in fp32 as the node runs it, and by ONNX Runtime
in int8 (static, calibrated on training images). Milliseconds a slice on 1 and 2 threads in batches of 1, 2 and 16; then
what each costs in retrieval: cosine to torch's vectors, and overlap@10 on COVID-CT (queries: validation split, index:
training split) where DICOMNODE_SHARED has it, else on generated slices. Prints a markdown table. The load of the
machine is printed with it: figures from a busy machine compare nothing.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from dicomnode.index.exact import top_k
from dicomnode.models.accelerate import missing_parts
from dicomnode.models.embedder import BATCH_CPU, Embedder
from dicomnode.models.fast import FastNet
from dicomnode.models.manifest import FAST, find_pack
from dicomnode.models.pack import synthetic_images
from dicomnode.models.threads import wait_passively
from dicomnode.models.training.data import load_covid_ct

PACK = "cenet-xception"
BATCHES, THREADS = (1, 2, 16), (1, 2)
TIMED = 32  # slices a round
CALIBRATION = 64  # training images that set the ranges of int8
GENERATED = 64  # slices where COVID-CT is absent; a fifth of them are queries
K = 10

Floats = NDArray[np.float32]
Embed = Callable[[Floats], Floats]  # float32 [n, 224, 224] to unit vectors [n, dim], n up to 16, in one go


@dataclass(frozen=True)
class Images:
    """Prepared slices: ``index`` and ``queries``, no patient in both, and what they are."""

    index: Floats
    queries: Floats
    what: str


def load_images(limit: int) -> Images:
    """COVID-CT, at most ``limit`` slices of each split (0: all); generated ones where it is absent."""
    root = Path(os.environ.get("DICOMNODE_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "covid-ct" / "labels.csv").exists():
        made = synthetic_images(GENERATED).astype(np.float32) / 255
        return Images(made[GENERATED // 5 :], made[: GENERATED // 5], f"{GENERATED} generated slices (no COVID-CT)")
    data = load_covid_ct(root)
    images = data.images.astype(np.float32) / 255
    index, queries = images[data.train][: limit or None], images[~data.train][: limit or None]
    return Images(index, queries, f"COVID-CT, {len(index)} slices in the index, {len(queries)} queries")


def fused(network: nn.Module) -> tuple[nn.Module, int]:
    """A copy with each norm that follows a convolution in a row folded into it, and how many were."""
    made, count = copy.deepcopy(network), 0
    for row in [m for m in made.modules() if isinstance(m, nn.Sequential)]:
        for at in range(len(row) - 1):
            conv, norm = row[at], row[at + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                row[at], row[at + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
                count += 1
    return made.to(memory_format=torch.channels_last).eval(), count  # type: ignore[call-overload]


def by_torch(network: Callable[[torch.Tensor], torch.Tensor]) -> Embed:
    """A torch network, or one that takes and gives its tensors, as ``Embed``."""

    def embed(images: Floats) -> Floats:
        with torch.inference_mode():
            vectors: Floats = network(torch.from_numpy(images)).numpy()
        return vectors

    return embed


def exported(network: nn.Module, side: int, path: Path) -> None:
    """Write the network as ONNX, first dimension dynamic."""
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with torch.inference_mode():
        network(torch.zeros(1, side, side))  # what is made at the first call is a constant then
    program = torch.onnx.export(
        network, (torch.zeros(2, side, side),), dynamic_shapes=shapes, dynamo=True, verbose=False
    )
    assert program is not None
    program.save(str(path))


def quantised(path: Path, calibration: Floats) -> Path:
    """The ONNX file in int8, activations by the range they have on ``calibration``."""
    from onnxruntime import quantization as q  # with the package onnx

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self, name: str) -> None:
            self.batches = iter([{name: image[None]} for image in calibration])

        def get_next(self) -> Any:
            return next(self.batches, None)

    prepared, made = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    q.shape_inference.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    options = {"per_channel": True, "op_types_to_quantize": ["Conv", "MatMul", "Gemm"]}
    q.quantize_static(str(prepared), str(made), Reader(_input_of(prepared)), **options)
    return made


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _input_of(path: Path) -> str:
    return str(_session(path, 1).get_inputs()[0].name)


def by_onnx(path: Path, threads: int) -> Embed:
    """An ONNX file as ``Embed``."""
    session = _session(path, threads)
    name = session.get_inputs()[0].name

    def embed(images: Floats) -> Floats:
        vectors: Floats = session.run(None, {name: images})[0]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return embed


def variants(embedder: Embedder, images: Images, work: Path) -> Iterator[tuple[str, Callable[[int], Embed] | str]]:
    """Name of each variant, and what makes it for a number of threads, or why it is not there."""
    network, graph = embedder.pack.embedding_net, embedder.pack.folder / FAST
    folded, count = fused(network)
    yield "torch", lambda _: by_torch(network)
    yield f"torch, {count} norms folded, channels last", lambda _: by_torch(folded)
    if not graph.is_file():
        yield "ONNX Runtime, fp32", f"the pack has no {FAST}"
    else:  # a session takes as many threads as torch has now
        yield "ONNX Runtime, fp32: as the node runs it", lambda _: by_torch(FastNet(graph, network))
    missing = missing_parts()
    if missing:
        yield "ONNX Runtime, int8", f"needs {', '.join(missing)}"
        return
    path = work / "fp32.onnx"
    exported(network, embedder.side, path)
    small = quantised(path, images.index[:CALIBRATION])
    yield "ONNX Runtime, int8", lambda threads: by_onnx(small, threads)


def in_batches(embed: Embed, images: Floats, size: int) -> Floats:
    """Vectors of all images, ``size`` at a time."""
    return np.concatenate([embed(images[at : at + size]) for at in range(0, len(images), size)])


def milliseconds(embed: Embed, images: Floats, size: int, rounds: int) -> float:
    """Median over rounds of the time a slice takes."""
    in_batches(embed, images[:size], size)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        in_batches(embed, images, size)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) / len(images) * 1000


def overlap(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> float:
    """Mean share of common rows among the ten nearest of each query; each (index, queries)."""
    found = [top_k(queries, index, K, np.ones(len(index), dtype=bool))[0] for index, queries in (one, other)]
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(*(f.tolist() for f in found), strict=True)]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help=f"rounds of {TIMED} slices, the median counts")
    parser.add_argument("--images", type=int, default=0, help="slices of each split for the retrieval (0: all)")
    arguments = parser.parse_args()
    wait_passively()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    embedder, images = Embedder.load(find_pack(PACK), "cpu"), load_images(arguments.images)
    timed = np.resize(images.queries, (TIMED, *images.queries.shape[1:]))
    columns = [f"{t} thread{'s' * (t > 1)}, batch {b}" for t in THREADS for b in BATCHES]
    print(f"{images.what}; load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| ms a slice | " + " | ".join(columns) + " | cosine, mean (least) | overlap@10 |")
    print("|" + "---|" * (len(columns) + 3))
    reference: tuple[Floats, Floats] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for name, make in variants(embedder, images, Path(folder)):
            if isinstance(make, str):
                print(f"| {name} | {make} |" + " |" * (len(columns) + 1))
                continue
            cells = []
            for threads in THREADS:
                torch.set_num_threads(threads)
                embed = make(threads)
                cells += [f"{milliseconds(embed, timed, size, arguments.rounds):.1f}" for size in BATCHES]
            vectors = tuple(in_batches(embed, part, BATCH_CPU) for part in (images.index, images.queries))
            reference = reference or (vectors[0], vectors[1])
            cosines = (vectors[1] * reference[1]).sum(1)
            cells += [f"{cosines.mean():.5f} ({cosines.min():.5f})"]
            cells += [f"{overlap(reference, (vectors[0], vectors[1])):.3f}"]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
