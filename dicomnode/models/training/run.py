"""A resumable training run: a checkpoint after every epoch, curves as JSON, CSV and PNG beside it.

Randomness is drawn anew for each epoch from (seed, epoch), so a run that was killed and goes on ends where an
unbroken one ends (on the processor to the last bit; CUDA sums in an order of its own). Every file is written anew and
renamed: a kill, or a full disk, leaves the previous one. It never goes on from a run of other options or data, nor
overwrites files that are no run's. It ends where the loss is no longer a finite number, and never goes on from weights
that are not. With a validation part the epoch with the lowest validation loss is kept as
``best.pt`` and a run without progress stops early. On CUDA, and there only, forward passes are in half precision with
a scaled loss.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from dicomnode.errors import DicomnodeError, InputError, StorageFull
from dicomnode.models.manifest import RUN_CHECKPOINT
from dicomnode.models.training.progress import steps_bar

log = structlog.get_logger(__name__)

CHECKPOINT = RUN_CHECKPOINT
BEST = "best.pt"
CURVES = "curves.json"
TABLE = "curves.csv"
PLOT = "curves.png"
VALIDATION = "validation"  # the figure that early stopping watches: a loss, so lower is better
PATIENCE = 5  # epochs without a lower validation loss after which a run stops
LOGGED = ("loss", VALIDATION, "accuracy")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")


class Diverged(DicomnodeError):
    """A training came to a loss or weights that are no finite numbers: it cannot go on from there."""

    code = "diverged"


def epoch_seed(seed: int, epoch: int) -> np.random.Generator:
    """The generator of one epoch; also seeds torch (dropout) so that a resumed epoch repeats itself."""
    rng = np.random.default_rng([seed, epoch])
    torch.manual_seed(int(rng.integers(2**31)))
    return rng


def mixed(device: str) -> contextlib.AbstractContextManager[Any]:
    """Half precision on CUDA, nothing on the processor (bfloat16 is slower there than float32)."""
    return torch.autocast("cuda", torch.float16) if device == "cuda" else contextlib.nullcontext()


def device_of(module: nn.Module) -> str:
    """ "cpu" or "cuda": where a module's weights are."""
    return next(module.parameters()).device.type


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
    patience : int
        Epochs without a lower validation loss after which ``epochs`` ends; 0 never.
    about : mapping
        Kept in checkpoints beside the identity, and not compared: where something lies.
    sources : mapping
        What is trained on, in words ("other labelled images") -> its fingerprint; a checkpoint made from others is
        refused. Those that an earlier version wrote name none, and go on.
    """

    def __init__(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        identity: Mapping[str, Any],
        patience: int = 0,
        about: Mapping[str, Any] | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.modules = dict(modules)
        self.optimiser = optimiser
        self.schedule = schedule
        self.identity = json.loads(json.dumps(dict(identity)))
        self.patience = patience
        self.about = dict(about or {})
        self.sources = dict(sources or {})
        self.device = device_of(next(iter(self.modules.values())))
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.device == "cuda")
        self.curves: list[dict[str, float]] = []
        self._began = time.monotonic()
        self._times: list[float] = []
        self._total = 0
        self._advance: Callable[[str], None] = lambda _what: None
        folder.mkdir(parents=True, exist_ok=True)

    def epochs(self, total: int, steps: int) -> Iterator[int]:
        """The epochs still to be done, from 0, with progress and the time that remains; fewer where it stops early."""
        done, self._total = self.resume(), total
        with steps_bar(done * steps, total * steps) as advance:
            self._advance = advance
            for epoch in range(done, total):
                if self.stalled():
                    log.info("training_stopped_early", epochs_done=epoch, epoch=self.best_epoch())
                    return
                self._began = time.monotonic()
                yield epoch

    def best_epoch(self) -> int | None:
        """Number, from 1, of the epoch with the lowest validation loss; None without validation."""
        losses = [(c[VALIDATION], i) for i, c in enumerate(self.curves, start=1) if VALIDATION in c]
        return min(losses)[1] if losses else None  # the first of equal ones

    def stalled(self) -> bool:
        """Whether ``patience`` epochs went by without a lower validation loss."""
        best = self.best_epoch()
        return bool(self.patience) and best is not None and len(self.curves) - best >= self.patience

    def result(self) -> Path:
        """The checkpoint to go on with: the best epoch's where there was validation, whose weights are restored."""
        if self.best_epoch() is None:
            return self.folder / CHECKPOINT
        state = load_checkpoint(self.folder / BEST)
        check_finite(state["modules"], self.folder / BEST)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        return self.folder / BEST

    def resume(self) -> int:
        """Restore the last checkpoint if there is one; the number of epochs already done.

        Raises
        ------
        InputError
            The folder holds another run, files that are no run's, or weights that are not finite.
        """
        path = self.folder / CHECKPOINT
        if not path.is_file():
            self._check_no_strangers()
            return 0
        state = load_checkpoint(path)
        other = self._other(state)
        if other:
            raise InputError(other, place=str(path), advice="choose another --out")
        check_finite(state["modules"], path)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler.is_enabled() and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
        self.curves = state["curves"]
        log.info("training_resumed", epochs_done=len(self.curves))
        return len(self.curves)

    def _other(self, state: Mapping[str, Any]) -> str:
        """In what a checkpoint is of another run than this one, as a sentence; "" where in nothing."""
        identity, sources = state.get("identity"), state.get("sources", self.sources)
        if not isinstance(identity, dict) or not isinstance(sources, dict):
            return "is not the checkpoint of a training"
        if identity != self.identity:
            told = "; ".join(_difference(k, identity, self.identity) for k in _differing(identity, self.identity))
            return f"holds a checkpoint of a run with other options: {told}"
        named = " and ".join(_differing(sources, self.sources))
        return f"holds a checkpoint of a run on {named}" if named else ""

    def _check_no_strangers(self) -> None:
        """Refuse files that would be overwritten and are no run's."""
        theirs = [n for n in (CHECKPOINT, CURVES, TABLE, PLOT) if (self.folder / n).exists()]
        if (self.folder / BEST).exists() and not self._is_own(self.folder / BEST):
            theirs.append(BEST)
        if theirs:
            raise InputError(
                f"holds files that are no run's and would be overwritten: {', '.join(theirs)}",
                place=str(self.folder),
                advice="choose another --out",
            )

    def _is_own(self, best: Path) -> bool:
        """Whether it is this run's: a kill in the first epoch's end leaves it without a checkpoint."""
        try:
            return not self._other(load_checkpoint(best))
        except InputError:
            return False

    def step(self, loss: Tensor) -> float:
        """One optimiser step; the loss's value."""
        self.optimiser.zero_grad(set_to_none=True)
        scaled: Any = self.scaler.scale(loss)
        scaled.backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.schedule.step()
        self._advance(f"epoch {len(self.curves) + 1} of {self._total or '?'}")
        return float(loss.item())

    def end_epoch(self, figures: Mapping[str, float]) -> None:
        """Keep the epoch's figures, write checkpoint (and the best one), curves and plot.

        Raises
        ------
        Diverged
            A loss or a weight is no finite number. Nothing is written, and the last checkpoint stays.
        StorageFull
            The last whole checkpoint stays.
        """
        self._check_converges(figures)
        seconds = time.monotonic() - self._began
        self._times.append(seconds)
        self.curves.append({**figures, "seconds": seconds})
        state = {
            "identity": self.identity,
            "about": self.about,
            "sources": self.sources,
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "curves": self.curves,
        }
        if self.best_epoch() == len(self.curves):  # before the checkpoint: a kill between the two repeats the epoch
            _save({k: state[k] for k in ("identity", "about", "sources", "modules", "curves")}, self.folder / BEST)
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        _save(state, self.folder / CHECKPOINT)
        with _replacing(self.folder / CURVES) as new:
            new.write_text(json.dumps(self.curves, indent=1) + "\n", encoding="utf-8")
        with _replacing(self.folder / TABLE) as new:
            write_table(self.curves, new)
        with _replacing(self.folder / PLOT) as new:
            plot_curves(self.curves, new)
        eta = max(self._total - len(self.curves), 0) * sum(self._times) / len(self._times)
        told = {k: round(float(v), 4) for k, v in figures.items() if k in LOGGED}
        log.info("epoch_done", epoch=len(self.curves), seconds=round(seconds, 1), eta_s=round(eta), **told)

    def _check_converges(self, figures: Mapping[str, float]) -> None:
        """Stop where an epoch's mean losses (the scaler on CUDA skips single steps) or the weights are not finite."""
        if not all(math.isfinite(value) for value in figures.values()):
            found = "the loss is"
        elif not_finite({name: module.state_dict() for name, module in self.modules.items()}):
            found = "the weights are"
        else:
            return
        done = len(self.curves)
        kept = f"the checkpoint of epoch {done} is kept" if done else "nothing was kept"
        raise Diverged(
            f"{found} no longer finite in epoch {done + 1}; {kept}",
            place=str(self.folder),
            advice="another --seed may help, with another --out",
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names that only one of the two has, or whose values differ."""
    return sorted(k for k in {*before, *now} if k not in before or k not in now or before[k] != now[k])


def _difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """One option that differs, with its values where they are short."""
    was, value = before.get(name), now.get(name)
    if isinstance(was, dict | list) or isinstance(value, dict | list):
        return name
    return f"{name} {was}, not {value}"


def _save(state: Mapping[str, Any], path: Path) -> None:
    # A file opened here: torch tells why its own could not be written in words of C++ alone.
    with _replacing(path) as new, new.open("wb") as f:
        torch.save(dict(state), f)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A new file that takes the place of ``path`` once it is whole; where that fails ``path`` stays and it goes.

    Raises
    ------
    StorageFull
        There is no room for it.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        yield new
        new.replace(path)
    except Exception as e:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        if _is_full(e):
            raise StorageFull(
                "the disk is full; the last whole epoch is kept",
                place=str(path.parent),
                advice="free some space and give the same command again",
            ) from e
        raise


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or one on the way to it, is that of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__context__
    return False


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint written by ``Run``; only tensors and plain values are unpickled.

    Raises
    ------
    InputError
        It is none.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # junk is taken for a pickle, and fails as whatever its bytes happen to mean
        raise InputError("is not a readable checkpoint", place=str(path)) from e
    if not isinstance(state, dict):
        raise InputError("is not a readable checkpoint: it holds no names", place=str(path))
    found: dict[str, Any] = state
    return found


def not_finite(state: Mapping[str, Any]) -> str | None:
    """Name of the first tensor, of a module or of modules by name, that holds NaN or infinity."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            inner = not_finite(value)
            if inner is not None:
                return f"{name}.{inner}"
        elif isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            return str(name)
    return None


def check_finite(state: Mapping[str, Any], path: Path) -> None:
    """Refuse weights with which nothing can be computed.

    Parameters
    ----------
    state : of a module, or of modules by name. ``path`` : where it is from, for the error.

    Raises
    ------
    InputError
        A value is NaN or infinite.
    """
    name = not_finite(state)
    if name is not None:
        raise InputError(f"holds values that are not finite, in {name!r}", place=str(path))


def checkpoint_in(run: Path) -> Path:
    """A checkpoint, or that of a run's folder: the best epoch's where there is one."""
    if not run.is_dir():
        return run
    return run / BEST if (run / BEST).is_file() else run / CHECKPOINT


def write_table(curves: list[dict[str, float]], path: Path) -> None:
    """The curves as CSV: a row an epoch, counted from 1; empty where an epoch lacks a figure."""
    with path.open("w", newline="", encoding="utf-8") as f:
        table = csv.DictWriter(f, ["epoch", *_names(curves), "seconds"], restval="")
        table.writeheader()
        table.writerows([{"epoch": i, **c} for i, c in enumerate(curves, start=1)])


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
    image.save(path, "PNG")


def _names(curves: Iterable[dict[str, float]]) -> list[str]:
    names: list[str] = []
    for c in curves:
        names += [n for n in c if n not in names and n != "seconds"]
    return names
