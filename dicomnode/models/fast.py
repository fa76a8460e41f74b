"""The network of a pack through ONNX Runtime, which computes the same vectors in about half of torch's time.

``fast.onnx`` beside the weights holds the order of the operations and no weights: these are the pack's own, in full
precision, so the graph adds nothing to what the pack's identity covers. ONNX Runtime folds the norms into the
convolutions when it loads. Made by ``dicomnode models accelerate`` (``models.accelerate``); on the processor only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from dicomnode.errors import PackError
from dicomnode.models.networks import EmbeddingNet
from dicomnode.models.onnxnet import compute, session_options

SCALE = "compaction.scale"  # is in the rows already


def weights_of(network: EmbeddingNet) -> Iterator[tuple[str, Tensor]]:
    """Name and float32 tensor of all that a graph of this network takes from the pack."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.dtype == torch.float32 and name != SCALE:
            yield name, tensor
    yield "compaction._rows", network.compaction.rows(torch.device("cpu"))


class FastNet:
    """The graph of a pack, filled with the weights of its network.

    Raises
    ------
    PackError
        ONNX Runtime cannot use the file. ``place`` is the file.
    """

    def __init__(self, path: Path, network: EmbeddingNet) -> None:
        options = session_options()
        # As ``models.threads``: whoever waits lets others work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            names, values = [], []
            for name, tensor in weights_of(network):
                names.append(name)
                values.append(onnxruntime.OrtValue.ortvalue_from_numpy(tensor.detach().contiguous().numpy()))
            options.add_external_initializers(names, values)
            self._session: Any = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # its classes are of its binary module and derive from Exception alone
            raise PackError(
                f"ONNX Runtime cannot use the graph ({type(exc).__name__})", place=str(path), advice=ADVICE
            ) from exc
        self._path = path

    def __call__(self, images: Tensor) -> Tensor:
        """float32 [n, side, side] in 0..1 -> unit vectors float32 [n, dim].

        Raises
        ------
        PackError
            ONNX Runtime cannot compute.
        """
        return compute(self._session, images, self._path, ADVICE)


ADVICE = "make it again: dicomnode models accelerate PACK"
