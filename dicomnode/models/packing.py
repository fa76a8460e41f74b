"""Any network as a pack: a torch module, a program of ``torch.export`` (.pt2) or an ONNX file, with its card.

What is checked here is what the node relies on: one input float32 [n, 224, 224] in 0..1, one output float32 [n, dim],
finite, not of length 0, the same whatever batch a slice comes in, and different for different slices. A pack is
written beside its place and renamed into it, and nothing that is there is overwritten.

A .pt2 file is opened by ``torch.export.load``, which may run what it finds there: pack only files whose origin you
trust. The pack that comes out holds data alone (``dicomnode.models.graph``), and a node opens nothing else.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dicomnode.errors import InputError, PackError
from dicomnode.models.graph import captured, of_program
from dicomnode.models.manifest import (
    CARD,
    GOLDEN,
    GRAPH,
    ONNX,
    ONNX_KIND,
    TORCH_EXPORT,
    WEIGHTS,
    model_id_of,
    read_manifest,
    sha256_of,
    verify_files,
)
from dicomnode.models.pack import PLAIN_SPEC, Pack, load_network, synthetic_images, write_manifest
from dicomnode.models.preprocess import SIDE
from dicomnode.models.tensors import save_tensors

CARD_SECTIONS = ("Data", "Terms", "Intended use", "Limits")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_DIM = 4096  # of a vector: beyond it the index's tolerance of length 1 no longer holds
SAME_IN_ANY_BATCH = 0.9999  # cosine
ALIKE = 0.999999  # cosine of two different slices at which a network tells nothing apart
MAX_BYTES = 2 << 30  # of an ONNX file: protobuf's own limit


@dataclass(frozen=True, slots=True)
class PackOptions:
    """What a pack is called and says of itself.

    Attributes
    ----------
    name : lower case letters, digits, ``.``, ``_`` and ``-``.
    dim : dimension of the vectors.
    card : Markdown with the sections of ``CARD_SECTIONS``; ``{model_id}`` in it is filled in.
    status : a word for people, "research" where nothing else is true.
    about : more for the manifest: training data, terms, metrics.
    """

    name: str
    dim: int
    card: str
    status: str = "research"
    about: Mapping[str, Any] = field(default_factory=dict)


def pack_file(source: Path, target: Path, options: PackOptions) -> Pack:
    """Make a pack of a .pt2 or .onnx file.

    Parameters
    ----------
    source : file of ``torch.export.save`` or ONNX file, first dimension dynamic.
    target : the pack's folder, which must not be there.

    Raises
    ------
    InputError
        The file is not there or of another kind, or the card lacks a section.
    PackError
        The network is not one that a pack may hold; see the module.
    """
    if not source.is_file():
        raise InputError("there is no such file", place=str(source))
    suffix = source.suffix.lower()
    if suffix == ".onnx":
        _check_options(target, options)
        if source.stat().st_size > MAX_BYTES:
            raise InputError("is larger than an ONNX file may be", place=str(source))
        return _write(target, options, ONNX_KIND, lambda folder: _put_onnx(source, folder), str(source))
    if suffix != ".pt2":
        raise InputError(
            f"cannot be packed: files ending in .pt2 or .onnx can, not {suffix or 'this one'}",
            place=str(source),
            advice="save the module with torch.export.save or torch.onnx.export",
        )
    _check_options(target, options)
    try:
        program = torch.export.load(source)
    except Exception as exc:  # whatever torch raises for a file that is not what its name says
        raise PackError(f"torch.export cannot load it ({type(exc).__name__})", place=str(source)) from exc
    try:
        graph, tensors = of_program(program)
    except PackError as exc:
        raise PackError(exc.line, place=str(source), advice=exc.advice) from exc
    return _write(target, options, TORCH_EXPORT, lambda folder: _put_graph(graph, tensors, folder), str(source))


def pack_module(module: nn.Module, target: Path, options: PackOptions) -> Pack:
    """Make a pack of a torch module: float32 [n, 224, 224] in 0..1 -> float32 [n, dim].

    Raises
    ------
    InputError, PackError
        As ``pack_file``.
    """
    _check_options(target, options)
    graph, tensors = captured(module, SIDE)
    return _write(
        target, options, TORCH_EXPORT, lambda folder: _put_graph(graph, tensors, folder), type(module).__name__
    )


def check_card(card: str) -> None:
    """Refuse a model card without one of the sections that every card has, or with an empty one.

    Raises
    ------
    InputError
        Names the section.
    """
    parts = re.split(r"^##\s+(.+?)\s*$", card, flags=re.MULTILINE)
    found = {title.strip().casefold(): text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}
    for section in CARD_SECTIONS:
        if not found.get(section.casefold()):
            wanted = ", ".join(f"## {s}" for s in CARD_SECTIONS)
            raise InputError(f"the model card says nothing under '## {section}'", advice=f"sections: {wanted}")


def _check_options(target: Path, options: PackOptions) -> None:
    if not NAME.fullmatch(options.name):
        raise InputError(f"{options.name[:64]!r} is no name for a pack", advice="lower case letters, digits, . _ -")
    if not 2 <= options.dim <= MAX_DIM:
        raise InputError(f"the dimension of the vectors must be 2 to {MAX_DIM}, not {options.dim}", place="--dim")
    check_card(options.card)
    if target.exists():
        raise InputError("is there already; nothing is overwritten", place=str(target), advice="choose another name")


def _put_graph(graph: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    save_tensors(tensors, folder / WEIGHTS)
    (folder / GRAPH).write_text(json.dumps(graph, separators=(",", ":")), encoding="utf-8")
    return {"kind": TORCH_EXPORT, "graph_sha256": sha256_of(folder / GRAPH)}


def _put_onnx(source: Path, folder: Path) -> dict[str, Any]:
    shutil.copyfile(source, folder / ONNX)
    return {"kind": ONNX_KIND}


def _write(target: Path, options: PackOptions, kind: str, put: Any, source: str) -> Pack:
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        architecture = put(part)
        weights = ONNX if kind == ONNX_KIND else WEIGHTS
        identity = {
            "weights_sha256": sha256_of(part / weights),
            "architecture": architecture,
            "preprocessing": PLAIN_SPEC,
            "dim": options.dim,
            "dtype": "float32",
            "norm": "l2",
            "metric": "cosine",
            "compaction": None,
            "calibration": None,
        }
        images = torch.from_numpy(synthetic_images())
        vectors = _golden(load_network(part, identity, kind, "cpu"), images.float().div(255), options.dim)
        save_tensors({"images": images, "vectors": vectors.contiguous()}, part / GOLDEN)
        (part / CARD).write_text(options.card.replace("{model_id}", model_id_of(identity)), encoding="utf-8")
        names = (weights, GOLDEN, CARD) + ((GRAPH,) if kind == TORCH_EXPORT else ())
        write_manifest(part, options.name, options.status, identity, names, options.about)
        Pack.load(part)
        part.rename(target)
        return Pack.load(target)
    except PackError as exc:  # the folder it names is gone: what is at fault is the file
        raise PackError(exc.line, place=source, advice=exc.advice) from exc
    except OSError as exc:
        raise InputError(f"the pack cannot be written: {exc.strerror}", place=str(target)) from exc
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _golden(network: nn.Module, images: Tensor, dim: int) -> Tensor:
    """Vectors of the golden images, once all is checked that the node relies on."""
    try:
        with torch.inference_mode():
            together = network(images)
            alone = torch.cat([network(images[i : i + 1]) for i in range(len(images))])
    except (RuntimeError, TypeError, IndexError) as exc:
        raise PackError(
            f"the network cannot compute [n, {SIDE}, {SIDE}] for n = {len(images)} and n = 1 ({type(exc).__name__})",
            advice=f"it takes slices of {SIDE} pixels, any number of them; this version prepares no other size",
        ) from exc
    if together.shape != (len(images), dim):
        raise PackError(f"the network gives {list(together.shape)} for {len(images)} slices, not {[len(images), dim]}")
    if not bool(torch.isfinite(together).all()):
        raise PackError("the network gives vectors that are NaN or infinite")
    if float(together.norm(dim=1).min()) < ALIKE:
        raise PackError("the network gives a vector of length 0")
    if alone.shape != together.shape or not float((alone * together).sum(1).min()) >= SAME_IN_ANY_BATCH:
        raise PackError("the vector of a slice depends on the others in its batch", advice="export it in eval() mode")
    if float((together[:1] * together[1:]).sum(1).min()) > ALIKE:
        raise PackError("the network gives the same vector for different slices")
    golden: Tensor = together.clone()
    return golden


def keep_pack(folder: Path, packs: Path) -> Path:
    """A pack's folder below ``packs``, copied there where it is not yet: what has vectors must not go away.

    A copy that is damaged is made anew.

    Raises
    ------
    PackError
        Another pack has its place, or the copy is not what was copied.
    """
    manifest = read_manifest(folder)
    target = packs / f"{manifest.name}-{manifest.model_id.rpartition(':')[2][:12]}"
    damaged = target.exists() and not _is_whole(target)
    if damaged or not target.exists():
        part = packs / f".{target.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        packs.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, part)
        if damaged:
            shutil.rmtree(target)
        part.rename(target)
    if read_manifest(target).model_id != manifest.model_id:
        raise PackError("holds another pack than its name says", place=str(target), advice="remove that folder")
    return target


def _is_whole(folder: Path) -> bool:
    """Whether the files of a pack are those that its manifest names."""
    try:
        verify_files(folder, read_manifest(folder))
    except PackError:
        return False
    return True
