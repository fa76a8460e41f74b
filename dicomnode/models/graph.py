"""A network as data: Core ATen operators in a JSON list, weights beside it; executed without loading any code.

``torch.load``, TorchScript and ``torch.export.load`` are no way to open a pack of somebody else: the first and the last
unpickle (torch 2.13, ``export/pt2_archive/_package.py``: constants through ``pickle.loads``) and evaluate strings
(``sympify``), and TorchScript has operators that read and write files. What is read here is JSON; each operator is
looked up in ``torch.ops.aten`` and must be functional, deterministic and tagged as of the Core ATen operator set, of
which none touches a file. Facts: pytorch.org, "Core ATen IR".
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from dicomnode.errors import PackError

INPUT: Final = "image"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_OPERATOR = re.compile(r"aten\.([a-z_][a-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)")
_FORBIDDEN = (torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
# Beside Core ATen: shapes, which are numbers here, and picking one of several outputs.
_PLAIN: Final[dict[str, Callable[..., Any]]] = {
    "getitem": operator.getitem,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}
_SYM_SIZE = "aten.sym_size.int"
_DTYPES: Final = {
    str(d).removeprefix("torch."): d
    for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
}
_FORMATS: Final = {
    str(f).removeprefix("torch."): f for f in (torch.contiguous_format, torch.channels_last, torch.preserve_format)
}
_NOT_KEPT = ("layout", "pin_memory")  # arguments that say how a tensor lies, not what it holds
_CHECKS = ("_assert", "sym_constrain")  # of the exporter; nothing uses what they give


class GraphNet(nn.Module):
    """Executes a graph.

    Parameters
    ----------
    graph : mapping
        ``{"nodes": [{"name", "op", "args", "kwargs"}], "output": name}``; a reference to an earlier node, the input or
        a weight is ``{"ref": name}``.
    tensors : mapping
        Weights and constants by name.

    Raises
    ------
    PackError
        An operator that a pack may not hold, or a reference to nothing. ``place`` is left to the caller.
    """

    def __init__(self, graph: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if not _NAME.fullmatch(name):
                raise PackError(f"a weight is called {name[:40]!r}")
            self.register_buffer(f"w_{name}", tensor)
        self._weights = tuple(tensors)
        try:
            self._steps = [
                (str(n["name"]), _operator(str(n["op"])), n["args"], dict(n["kwargs"])) for n in graph["nodes"]
            ]
            self._output = str(graph["output"])
        except (KeyError, TypeError, ValueError) as exc:
            raise PackError("the graph lacks a key") from exc
        self._last_use = _check(self._steps, self._output, {INPUT, *self._weights})

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, side, side] -> what the graph gives."""
        values: dict[str, Any] = {name: getattr(self, f"w_{name}") for name in self._weights}
        values[INPUT] = images
        for at, (name, call, args, kwargs) in enumerate(self._steps):
            made_args = [_decode(a, values, images.device) for a in args]
            made_kwargs = {k: _decode(a, values, images.device) for k, a in kwargs.items()}
            values[name] = call(*made_args, **made_kwargs)
            for done in self._last_use.get(at, ()):
                del values[done]
        out = values[self._output]
        if not isinstance(out, Tensor):
            raise PackError("the graph does not give a tensor")
        return out


def _operator(name: str) -> Callable[..., Any]:
    if name in _PLAIN:
        return _PLAIN[name]
    found = _OPERATOR.fullmatch(name)
    packet = getattr(torch.ops.aten, found[1], None) if found else None
    overload = getattr(packet, found[2], None) if found and packet is not None else None
    if not isinstance(overload, torch._ops.OpOverload):
        raise PackError(f"the graph holds {name[:60]!r}, which is no operator of ATen")
    if name != _SYM_SIZE and not _is_allowed(overload):
        raise PackError(f"the graph holds {name[:60]!r}, which is not of the Core ATen operators that a pack may hold")
    return overload


def _is_allowed(overload: Any) -> bool:
    """Functional, deterministic, of Core ATen."""
    tags = overload.tags
    return torch.Tag.core in tags and not overload._schema.is_mutable and not any(t in tags for t in _FORBIDDEN)


def _check(steps: Sequence[tuple[str, Any, Any, Any]], output: str, known: set[str]) -> dict[int, tuple[str, ...]]:
    """Every reference leads back; which values are used for the last time by which step."""
    weights = set(known)
    used: dict[str, int] = {}
    for at, (name, _, args, kwargs) in enumerate(steps):
        for ref in _references([args, kwargs]):
            if ref not in known:
                raise PackError(f"the graph names {ref[:40]!r} before it is there")
            used[ref] = at
        known.add(name)
    if output not in known:
        raise PackError(f"the graph gives {output[:40]!r}, which is not there")
    last: dict[int, tuple[str, ...]] = {}
    for name, at in used.items():
        if name not in weights and name != output:
            last[at] = (*last.get(at, ()), name)
    return last


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [r for v in value for r in _references(v)]
    if isinstance(value, dict):
        return [str(value["ref"])] if "ref" in value else [r for v in value.values() for r in _references(v)]
    return []


def _decode(value: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_decode(v, values, device) for v in value]
    if not isinstance(value, dict):
        return value
    kind, word = next(iter(value.items()))
    if kind == "ref":
        return values[word]
    if kind == "device":
        return device  # wherever the pack was exported, it computes where the images are
    table = _WORDS.get(kind, {})
    if word not in table:
        raise PackError(f"the graph holds an argument {kind}={str(word)[:40]!r} that is not known here")
    return table[word]


_WORDS: Final[dict[str, Mapping[str, Any]]] = {
    "dtype": _DTYPES,
    "memory_format": _FORMATS,
    "float": {"inf": float("inf"), "-inf": float("-inf")},  # JSON has no word for them
}


def captured(module: nn.Module, side: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Export a module: graph and weights, as ``GraphNet`` takes them.

    Parameters
    ----------
    module : nn.Module
        float32 [n, side, side] in 0..1 -> float32 [n, dim]; is put into evaluation mode.

    Raises
    ------
    PackError
        It cannot be exported, or holds an operator that a pack may not hold.
    """
    module = module.eval()
    try:
        program = torch.export.export(
            module, (torch.zeros(2, side, side),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
    except Exception as exc:  # the exporter raises whatever the module's own code raises
        raise PackError(f"torch.export cannot export this module ({type(exc).__name__})") from exc
    return of_program(program)


def of_program(program: torch.export.ExportedProgram) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Graph and weights of an exported program with one input and one output.

    Raises
    ------
    PackError
        Another number of inputs or outputs, or what a pack may not hold.
    """
    program = program.run_decompositions()
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = dict(signature.inputs_to_lifted_tensor_constants)
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise PackError("a network of a pack takes one tensor and gives one")
    tensors: dict[str, Tensor] = {}
    nodes: list[dict[str, Any]] = []
    names: dict[str, str] = {str(signature.user_inputs[0]): INPUT}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in names:
            source = held.get(node.name)
            value = program.constants[constants[node.name]] if source is None else _held(program, source)
            if node.users:
                names[node.name] = node.name
                tensors[node.name] = value.detach().clone().contiguous()
        elif node.op == "call_function" and not _is_check(node):
            names[node.name] = node.name
            nodes.append(
                {
                    "name": node.name,
                    "op": _name_of(node.target),
                    "args": [_encode(a, names) for a in node.args],
                    "kwargs": {k: _encode(a, names) for k, a in node.kwargs.items() if k not in _NOT_KEPT},
                }
            )
        elif node.op not in ("placeholder", "output", "call_function"):
            raise PackError(f"the exported program holds a node of kind {node.op!r}")
    graph = {"nodes": nodes, "output": names[str(signature.user_outputs[0])]}
    GraphNet(graph, tensors)  # refuses here what it would refuse when the pack is loaded
    return graph, tensors


def _held(program: torch.export.ExportedProgram, name: str) -> Tensor:
    """A parameter or buffer; those that are not in the state dict are among the constants."""
    found = program.state_dict.get(name, program.constants.get(name))
    if not isinstance(found, Tensor):
        raise PackError(f"the exported program lacks {name[:40]!r}")
    return found


def _is_check(node: Any) -> bool:
    return not node.users and any(part in str(node.target) for part in _CHECKS)


def _name_of(target: Any) -> str:
    for name, function in _PLAIN.items():
        if target is function:
            return name
    return str(target)


def _encode(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, torch.fx.Node):
        return {"ref": names[value.name]}
    if isinstance(value, list | tuple):
        return [_encode(v, names) for v in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": ""}
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": "inf" if value > 0 else "-inf"}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PackError(f"the exported program holds an argument of type {type(value).__name__}")
