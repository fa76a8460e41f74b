"""An ONNX file as the network of a pack, through ONNX Runtime; imported only where such a pack is loaded.

The file is read from memory, ONNX Runtime is told a place without files as the folder of external data, and no library
of custom operators is registered, so an ONNX file can name data and operators of ONNX only.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from dicomnode.errors import PackError

# Without it a file could name any other by a path from the working folder (read since ONNX Runtime 1.22).
NO_FILES = ("session.model_external_initializers_file_folder_path", os.devnull)


def session_options() -> onnxruntime.SessionOptions:
    """As many threads as torch has, no files, and no lines beside the node's own log."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry(*NO_FILES)
    options.log_severity_level = 4
    return options


def compute(session: onnxruntime.InferenceSession, images: Tensor, path: Path, advice: str = "") -> Tensor:
    """The one output of a session for its one input, float32.

    Raises
    ------
    PackError
        ONNX Runtime cannot compute; ``place`` is the file.
    """
    values = images.detach().cpu().contiguous().numpy()
    try:
        (out,) = session.run(None, {session.get_inputs()[0].name: values})
    except Exception as exc:  # its classes are of its binary module and derive from Exception alone
        raise PackError(f"ONNX Runtime cannot compute ({type(exc).__name__})", place=str(path), advice=advice) from exc
    return torch.from_numpy(np.asarray(out, dtype=np.float32))


class OnnxNet(nn.Module):
    """One input float32 [n, side, side], one output float32 [n, dim].

    Raises
    ------
    PackError
        ONNX Runtime cannot use the file. ``place`` is the file.
    """

    def __init__(self, path: Path, device: str, side: int) -> None:
        super().__init__()
        options = session_options()
        providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
        kind, _, number = device.partition(":")
        if kind == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": number or "0"}))
        try:
            self._session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=providers)
        except Exception as exc:  # its classes are of its binary module and derive from Exception alone
            raise PackError(f"ONNX Runtime cannot use the file ({type(exc).__name__})", place=str(path)) from exc
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise PackError("a network of a pack takes one tensor and gives one", place=str(path))
        shape = list(inputs[0].shape)
        if inputs[0].type != "tensor(float)" or len(shape) != 3 or isinstance(shape[0], int):
            raise PackError(
                f"the network takes {inputs[0].type} {shape}, a pack's takes tensor(float) ['n', {side}, {side}]",
                place=str(path),
                advice="export it with a dynamic first dimension and without a channel dimension",
            )
        self._path = path

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, side, side] -> float32 as the file gives it."""
        return compute(self._session, images, self._path)
