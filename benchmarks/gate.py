"""The input gate, fitted and measured: python -m benchmarks.gate fit|measure [--sources DIR] [--seed N]

``fit`` trains the small network on the sources of ``gate_data.FIT`` and writes ``dicomnode/models/gate.safetensors``:
each image as it is and several times distorted; two thresholds are set on slices kept apart from it.
``measure`` prints error rates by source of ``gate_data.TEST``, with Wilson 95 % intervals, as a markdown table: slices
that are refused, and other images that pass. Runs on one thread, seeded; sums may differ in their last digits.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.nn import functional

from benchmarks.gate_augment import IN_TESTS, distorted, in_screen_colours, with_coloured_marks
from benchmarks.gate_data import FIT, TEST, Source, load
from dicomnode.domain import ImageKind
from dicomnode.evaluation.metrics import wilson
from dicomnode.models.colour import MOST, own_colour
from dicomnode.models.gate import FILE, FORMAT, LAYERS, OUTPUTS, STRIDE, Gate, digest
from dicomnode.models.preprocess import SIDE

WIDTHS, KERNELS = (16, 24, 40, 64), (5, 3, 3, 3)
VARIANTS, EPOCHS, BATCH, RATE, DECAY = 12, 30, 64, 3e-3, 1e-2
KEPT_APART = 0.2  # of each source of slices, in one piece: neighbours stay together
REFUSED_APART = 0.01  # share of these (as they are, and distorted) that the threshold for pictures refuses
REFUSED_APART_CLAIMED = 0.001  # and that for images which their headers call CT or MR
LEAST = 0.05  # no threshold is under this
SLICE_WEIGHT = 2.0  # a refused slice costs more
SHARED = Path(os.environ.get("DICOMNODE_SHARED", Path(__file__).parents[2] / "shared" / "data"))

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Network(nn.Module):
    """Four strided convolutions on 112x112, mean and maximum over the plane, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        ins = (1, *WIDTHS[:-1])
        rows = zip(ins, WIDTHS, KERNELS, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, STRIDE, k // 2, bias=False) for i, o, k in rows)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in WIDTHS)
        self.head = nn.Linear(2 * WIDTHS[-1], len(OUTPUTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [n, 1, 112, 112] in -1..1 -> logits [n, 6]."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(conv(x)))
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        logits: torch.Tensor = self.head(functional.dropout(pooled, 0.2, self.training))
        return logits


def halved(images: Floats) -> Bytes:
    """uint8 [n, 112, 112] of float32 [n, 224, 224], as the gate sees them."""
    half = SIDE // 2
    return np.rint(images.reshape(-1, half, 2, half, 2).mean((2, 4)) * 255).astype(np.uint8)


def variants(images: Bytes, count: int, rng: np.random.Generator) -> Bytes:
    """Each image as it is and ``count`` times distorted, uint8 [n * (1 + count), 112, 112]."""
    out = []
    for image in images.astype(np.float32) / 255:
        out += [image, *(distorted(image, rng) for _ in range(count))]
    return halved(np.stack(out))


def split(source: Source) -> tuple[Bytes, Bytes]:
    """What of a source is fitted on, and what is kept apart for the threshold."""
    apart = int(len(source.images) * KEPT_APART) if source.kind is ImageKind.SLICE else 0
    return source.images[apart:], source.images[:apart]


def train(x: Bytes, y: NDArray[np.int64], weight: Floats, seed: int) -> Network:
    """Fit on uint8 [n, 112, 112] with classes y and a weight for each image."""
    torch.manual_seed(seed)
    network, chances = Network(), torch.from_numpy(weight).double()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    steps = len(x) // VARIANTS // BATCH * 2
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    generator = torch.Generator().manual_seed(seed)
    costs = torch.tensor([SLICE_WEIGHT] + [1.0] * (len(OUTPUTS) - 1))
    images, classes = torch.from_numpy(x), torch.from_numpy(y)
    began = time.monotonic()
    for epoch in range(EPOCHS):
        network.train()
        total = 0.0
        for rows in torch.multinomial(chances, steps * BATCH, True, generator=generator).split(BATCH):
            batch = images[rows].float().div(127.5).sub(1)[:, None]
            loss = functional.cross_entropy(network(batch), classes[rows], costs, label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}: loss {total / steps:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return network.eval()


def coefficients(network: Network) -> dict[str, NDArray[np.float16]]:
    """The network's tensors in half precision, norms folded into the convolutions."""
    out: dict[str, torch.Tensor] = {"head": network.head.weight, "head_bias": network.head.bias}
    for n, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        out[f"conv{n}"] = conv.weight * scale[:, None, None, None]
        out[f"bias{n}"] = norm.bias - norm.running_mean * scale
    return {name: value.detach().numpy().astype(np.float16) for name, value in out.items()}


def write(tensors: dict[str, NDArray[np.float16]], thresholds: tuple[float, float], path: Path) -> None:
    """The coefficients with their digest and thresholds (pictures; DICOM of CT and MR) as a safetensors file."""
    assert sum(name.startswith("conv") for name in tensors) == LAYERS
    save_file(tensors, path, {"format": FORMAT, "thresholds": json.dumps(thresholds), "sha256": digest(tensors)})


def set_thresholds(path: Path, sources: Sequence[Source], seed: int) -> None:
    """Choose the thresholds by the slices that were kept apart, as they are and distorted, and write them."""
    rng, gate = np.random.default_rng((seed, 1)), Gate.load(path)
    every = []
    for source in sources:
        kept = split(source)[1].astype(np.float32) / 255
        if len(kept):
            twice = np.concatenate([kept, np.stack([distorted(image, rng) for image in kept])])
            every.append(gate.probabilities(twice)[:, 0])
            lowest = ", ".join(f"{p:.3f}" for p in np.sort(every[-1])[:4])
            print(f"{source.name}: {len(kept)} kept apart, lowest {lowest}", flush=True)
    found = [float(np.quantile(np.concatenate(every), share)) for share in (REFUSED_APART, REFUSED_APART_CLAIMED)]
    picture, claimed = (round(min(max(p, LEAST), 0.5), 3) for p in found)
    write(load_file(path), (picture, claimed), path)
    print(f"thresholds {picture}, {claimed}: written {path}, {path.stat().st_size} bytes")


def fit(sources: Sequence[Source], seed: int, path: Path) -> None:
    """Train, set the threshold, write."""
    rng = np.random.default_rng(seed)
    xs, ys, weights = [], [], []
    kinds = {kind: sum(s.kind is kind for s in sources) for kind in OUTPUTS}
    for source in sources:
        fitted, kept = split(source)
        xs.append(variants(fitted, VARIANTS - 1, rng))
        ys.append(np.full(len(xs[-1]), OUTPUTS.index(source.kind), dtype=np.int64))
        # Half of a class goes by images, half by sources, so that a large source does not decide alone.
        of_kind = sum(len(split(s)[0]) for s in sources if s.kind is source.kind)
        share = 0.5 * len(fitted) / of_kind + 0.5 / kinds[source.kind]
        classes = 0.4 if source.kind is ImageKind.SLICE else 0.6 * CLASS_SHARES[source.kind]
        weights.append(np.full(len(xs[-1]), classes * share / len(xs[-1]), dtype=np.float32))
        print(f"{source.name}: {len(fitted)} images of {source.kind}, {len(kept)} kept apart", flush=True)
    network = train(np.concatenate(xs), np.concatenate(ys), np.concatenate(weights), seed)
    write(coefficients(network), (0.5, 0.5), path)
    set_thresholds(path, sources, seed)


CLASS_SHARES = {
    ImageKind.PHOTOGRAPH: 0.4,
    ImageKind.PAGE: 0.2,
    ImageKind.RADIOGRAPH: 0.2,
    ImageKind.ULTRASOUND: 0.12,
    ImageKind.NOISE: 0.08,
}


def rate(wrong: int, n: int) -> str:
    """A share in percent with its Wilson 95 % interval."""
    low, high = wilson(wrong, n)
    return f"{wrong}: {100 * wrong / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def measure(sources: Sequence[Source], seed: int) -> None:
    """Print the tables: as pictures, and (grey) as DICOM that claims to be CT or MR."""
    gate = Gate.load()
    print(f"thresholds: {gate.threshold} (picture), {gate.threshold_claimed} (DICOM), load {os.getloadavg()[0]:.1f}\n")
    print("| source | what it is | n | as a picture | as DICOM of CT or MR |\n|---|---|---|---|---|")
    totals: dict[bool, list[int]] = {True: [0, 0, 0], False: [0, 0, 0]}
    for source in sources:
        real = source.kind is ImageKind.SLICE
        images = source.images.astype(np.float32) / 255
        seen = gate.see(images, colours=source.colours), gate.see(images, claimed=True)
        wrong = [sum(s.passes != real for s in each) for each in seen]
        totals[real] = [a + b for a, b in zip(totals[real], (*wrong, len(images)), strict=True)]
        row = [rate(w, len(images)) for w in wrong]
        print(f"| {source.name} | {source.kind} | {len(images)} | {row[0]} | {row[1]} |", flush=True)
    for real, (picture, claimed, n) in totals.items():
        name = "slices refused" if real else "other images that pass"
        print(f"| **{name}** | | {n} | {rate(picture, n)} | {rate(claimed, n)} |")
    slices = np.concatenate([s.images for s in sources if s.kind is ImageKind.SLICE]).astype(np.float32) / 255
    print("\n| slices, distorted | n | refused as a picture | refused as DICOM |\n|---|---|---|---|")
    for name, how in IN_TESTS.items():
        rng = np.random.default_rng(seed)
        made = np.stack([np.asarray(how(image, rng), dtype=np.float32) for image in slices])
        p = gate.probabilities(made)[:, 0]
        row = [rate(int((p < t).sum()), len(p)) for t in (gate.threshold, gate.threshold_claimed)]
        print(f"| {name} | {len(p)} | {row[0]} | {row[1]} |", flush=True)
    print("\n| slices, in colour | n | refused for it |\n|---|---|---|")
    for name, paint in (("telephone, simulated", in_screen_colours), ("coloured marks", with_coloured_marks)):
        rng = np.random.default_rng(seed)
        own = [own_colour(paint(image, rng)) for image in slices]
        print(f"| {name} | {len(own)} | {rate(sum(c > MOST for c in own), len(own))} |", flush=True)
    began = time.perf_counter()
    gate.see(slices[:256])
    print(f"\n{(time.perf_counter() - began) / min(256, len(slices)) * 1000:.2f} ms a slice, one thread")


def main() -> None:
    """Fit or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "measure"))
    parser.add_argument("--sources", type=Path, default=SHARED.parent / "gate", help="folder of the other sources")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FILE, help="where fit writes the coefficients")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "fit":
        fit(list(load(FIT, SHARED, arguments.sources, arguments.seed)), arguments.seed, arguments.out)
    else:
        measure(list(load(TEST, SHARED, arguments.sources, arguments.seed)), arguments.seed)


if __name__ == "__main__":
    main()
