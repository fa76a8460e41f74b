"""A resumable training run: a checkpoint after every epoch, curves as JSON and PNG beside it.

Randomness is drawn anew for each epoch from (seed, epoch), so a run that was killed and goes on ends where an
unbroken one ends. Checkpoints are written to a new file and renamed: a kill leaves the previous one.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from dicomnode.errors import InputError

log = structlog.get_logger(__name__)

CHECKPOINT = "checkpoint.pt"
CURVES = "curves.json"
PLOT = "curves.png"
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")


def epoch_seed(seed: int, epoch: int) -> np.random.Generator:
    """The generator of one epoch; also seeds torch (dropout) so that a resumed epoch repeats itself."""
    rng = np.random.default_rng([seed, epoch])
    torch.manual_seed(int(rng.integers(2**31)))
    return rng


class Run:
    """Modules, optimiser and schedule of one training, saved and restored together.

    Parameters
    ----------
    folder : Path
        Where checkpoint, curves and plot are kept; made when missing.
    modules : mapping
        Name -> module, all saved.
    identity : mapping
        The options of the run; a checkpoint made with others is refused.
    """

    def __init__(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        identity: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.modules = dict(modules)
        self.optimiser = optimiser
        self.schedule = schedule
        self.identity = json.loads(json.dumps(dict(identity)))
        self.curves: list[dict[str, float]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> int:
        """Restore the last checkpoint if there is one; the number of epochs already done."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return 0
        state = load_checkpoint(path)
        if state["identity"] != self.identity:
            raise InputError(
                "holds a checkpoint of a run with other options", place=str(path), advice="choose another --out"
            )
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.curves = state["curves"]
        log.info("training_resumed", epochs_done=len(self.curves))
        return len(self.curves)

    def step(self, loss: Tensor) -> float:
        """One optimiser step; the loss's value."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation for it
        self.optimiser.step()
        self.schedule.step()
        return float(loss.item())

    def end_epoch(self, figures: Mapping[str, float]) -> None:
        """Keep the epoch's figures, write checkpoint, curves and plot."""
        self.curves.append(dict(figures))
        state = {
            "identity": self.identity,
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "curves": self.curves,
        }
        new = self.folder / f"{CHECKPOINT}.new"
        torch.save(state, new)
        new.replace(self.folder / CHECKPOINT)
        (self.folder / CURVES).write_text(json.dumps(self.curves, indent=1) + "\n", encoding="utf-8")
        plot_curves(self.curves, self.folder / PLOT)
        log.info("epoch_done", epoch=len(self.curves), **{k: round(float(v), 4) for k, v in figures.items()})


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint written by ``Run``; only tensors and plain values are unpickled."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as e:
        raise InputError("is not a readable checkpoint", place=str(path)) from e
    return state


def plot_curves(curves: list[dict[str, float]], path: Path, size: tuple[int, int] = (720, 320)) -> None:
    """Each figure over the epochs, scaled to its own range (first and last value in the legend), as a PNG."""
    width, height = size
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = 20, 20, width - 260, height - 30
    draw.rectangle((left, top, right, bottom), outline="#888888")
    draw.text((left, bottom + 8), f"epochs 1 to {len(curves)}", fill="black")
    for i, name in enumerate(_names(curves)):
        values = [(e, c[name]) for e, c in enumerate(curves) if name in c]
        low, high = min(v for _, v in values), max(v for _, v in values)
        across = max(len(curves) - 1, 1)
        points = [
            (left + (right - left) * e / across, bottom - (bottom - top) * ((v - low) / ((high - low) or 1.0)))
            for e, v in values
        ]
        colour = _COLOURS[i % len(_COLOURS)]
        draw.line(points, fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        draw.text((right + 10, top + 16 * i), f"{name} {values[0][1]:.3f} to {values[-1][1]:.3f}", fill=colour)
    image.save(path)


def _names(curves: Iterable[dict[str, float]]) -> list[str]:
    names: list[str] = []
    for c in curves:
        names += [n for n in c if n not in names and n != "seconds"]
    return names
