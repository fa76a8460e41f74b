"""What happens to an image on its way to the input gate: cut, turned, windowed, photographed, compressed, written on.

The same for slices and for everything else, so that no trace of it tells them apart. Seeded; also the distortions under
which the gate is measured.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dicomnode.models.preprocess import SIDE

Grey = NDArray[np.float32]
Distortion = Callable[[Grey, np.random.Generator], Grey]


def cut(image: Grey, rng: np.random.Generator) -> Grey:
    """A rectangle of 60 to 100 % of each side, stretched to the whole: a tight crop."""
    width, height = rng.uniform(0.6, 1.0, 2) * SIDE
    left, top = rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height)
    box = (left, top, left + width, top + height)
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box))


def zoomed(image: Grey, rng: np.random.Generator) -> Grey:
    """A small part of it, coarse: an examination with a small field of view on a small matrix."""
    part = rng.uniform(0.25, 0.6) * SIDE
    left, top = rng.uniform(0.1 * SIDE, max(0.9 * SIDE - part, 0.1 * SIDE + 1), 2)
    side = int(rng.integers(40, 160))
    small = Image.fromarray(image).resize(
        (side, side), Image.Resampling.BILINEAR, (left, top, left + part, min(top + part, SIDE))
    )
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def turned(image: Grey, rng: np.random.Generator) -> Grey:
    """Turned by up to 15 degrees, now and then mirrored or by a quarter."""
    out = Image.fromarray(image).rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR, fillcolor=float(image[0, 0]))
    grid = np.asarray(out)
    if rng.random() < 0.5:
        grid = grid[:, ::-1]
    return np.ascontiguousarray(np.rot90(grid, int(rng.integers(1, 4)))) if rng.random() < 0.2 else grid


def windowed(image: Grey, rng: np.random.Generator) -> Grey:
    """A window too wide or too narrow, and another gamma."""
    centre, width = rng.uniform(0.3, 0.7), rng.uniform(0.35, 1.8)
    out = ((image - centre) / width + 0.5).clip(0, 1) ** rng.uniform(0.6, 1.6)
    return out.astype(np.float32)


def retoned(image: Grey, rng: np.random.Generator) -> Grey:
    """Another contrast: a bent curve over the tones that may turn their order round; dark stays dark, as in MR."""
    knots = np.linspace(0, 1, 6)
    curve = np.concatenate([[rng.uniform(0, 0.1)], rng.random(5)])
    return np.interp(image, knots, curve).astype(np.float32)


def framed(image: Grey, rng: np.random.Generator) -> Grey:
    """Smaller, with a margin of one tone, as on a page or in a viewer's window."""
    width, height = (int(v) for v in rng.uniform(0.6, 0.95, 2) * SIDE)
    out = np.full((SIDE, SIDE), rng.choice([0.0, 1.0, rng.random()]), dtype=np.float32)
    left, top = int(rng.integers(0, SIDE - width + 1)), int(rng.integers(0, SIDE - height + 1))
    out[top : top + height, left : left + width] = np.asarray(Image.fromarray(image).resize((width, height)))
    return out


def photographed(image: Grey, rng: np.random.Generator) -> Grey:
    """A telephone's photograph of a screen: seen askew, unevenly lit, dull, with moire, soft and noisy."""
    corners = np.array([[0, 0], [0, SIDE], [SIDE, SIDE], [SIDE, 0]]) + rng.uniform(-22, 22, (4, 2))
    quad = Image.fromarray(image).transform(
        (SIDE, SIDE), Image.Transform.QUAD, tuple(corners.ravel()), Image.Resampling.BILINEAR
    )
    y, x = np.mgrid[0 : 1 : SIDE * 1j, 0 : 1 : SIDE * 1j]
    light = 1 + rng.uniform(-0.25, 0.25) * x + rng.uniform(-0.25, 0.25) * y
    angle, waves = rng.uniform(0, np.pi), rng.uniform(20, 100)
    moire = rng.uniform(0, 0.05) * np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
    black, white = rng.uniform(0.0, 0.15), rng.uniform(0.7, 1.0)
    out = (black + (white - black) * np.asarray(quad)) * light + moire
    return noisy(out.clip(0, 1).astype(np.float32), rng)


def noisy(image: Grey, rng: np.random.Generator) -> Grey:
    """Noise of up to 5 % of the range."""
    return (image + rng.normal(0, rng.uniform(0, 0.05), image.shape)).clip(0, 1).astype(np.float32)


def soft(image: Grey, rng: np.random.Generator) -> Grey:
    """Through a smaller size."""
    side = int(rng.integers(48, 200))
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX).resize((SIDE, SIDE)))


def compressed(image: Grey, rng: np.random.Generator) -> Grey:
    """JPEG of quality 10 to 80."""
    buffer = io.BytesIO()
    Image.fromarray((image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=int(rng.integers(10, 80)))
    return np.asarray(Image.open(buffer), dtype=np.float32) / np.float32(255)


def annotated(image: Grey, rng: np.random.Generator) -> Grey:
    """Letters, an arrow or a box, as in papers and viewers."""
    canvas = Image.fromarray((image * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 5))):
        x, y = (int(v) for v in rng.integers(0, SIDE - 20, 2))
        tone = int(rng.choice([0, 255, rng.integers(256)]))
        match int(rng.integers(3)):
            case 0:
                draw.text((x, y), "".join(rng.choice(list("ABCLRab12345 :cm"), int(rng.integers(1, 12)))), fill=tone)
            case 1:
                draw.line((x, y, x + int(rng.integers(-30, 30)), y + int(rng.integers(-30, 30))), fill=tone, width=2)
            case _:
                draw.rectangle((x, y, x + int(rng.integers(5, 60)), y + int(rng.integers(5, 60))), outline=tone)
    return np.asarray(canvas, dtype=np.float32) / np.float32(255)


# How often each happens to an image in fitting, in this order.
IN_FITTING: tuple[tuple[Distortion, float], ...] = (
    (zoomed, 0.15),
    (cut, 0.35),
    (turned, 0.5),
    (windowed, 0.35),
    (retoned, 0.15),
    (annotated, 0.15),
    (framed, 0.2),
    (photographed, 0.2),
    (soft, 0.2),
    (noisy, 0.25),
    (compressed, 0.35),
)
IN_TESTS: dict[str, Distortion] = {
    "cut": cut,
    "turned": turned,
    "window": windowed,
    "margin": framed,
    "telephone": photographed,
    "soft": soft,
    "JPEG": compressed,
    "annotated": annotated,
}


def distorted(image: Grey, rng: np.random.Generator) -> Grey:
    """Each of ``IN_FITTING`` with its chance: float32 [224, 224] in 0..1 -> the same."""
    for how, chance in IN_FITTING:
        if rng.random() < chance:
            image = np.asarray(how(image, rng), dtype=np.float32)
    return image


def in_screen_colours(image: Grey, rng: np.random.Generator) -> Image.Image:
    """``photographed`` in colour: each channel with its own black, white and gamma, moire, noise and shade; as JPEG."""
    seen = np.clip(photographed(image, rng), 0, 1)
    y, x = np.mgrid[: seen.shape[0], : seen.shape[1]]
    waves, strength = rng.uniform(-0.5, 0.5, 2), rng.uniform(0, 0.05)
    channels = []
    for _ in range(3):
        low, high, gamma = rng.uniform(0, 0.12), rng.uniform(0.75, 1), rng.uniform(0.8, 1.25)
        channel = low + (high - low) * seen**gamma
        channel *= 1 + strength * np.sin(waves[0] * x + waves[1] * y + rng.uniform(0, 2 * np.pi))
        channel *= 1 + rng.uniform(-0.1, 0.1) * (x / seen.shape[1] - 0.5)
        channels.append(channel + rng.normal(0, rng.uniform(0, 0.03), seen.shape))
    buffer = io.BytesIO()
    colour = Image.fromarray((np.clip(np.stack(channels, -1), 0, 1) * 255).astype(np.uint8))
    colour.save(buffer, "JPEG", quality=int(rng.integers(50, 95)))
    return Image.open(buffer)


def with_coloured_marks(image: Grey, rng: np.random.Generator) -> Image.Image:
    """Four boxes and captions in colours of their own, as in figures of papers."""
    colour = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)).convert("RGB")
    draw = ImageDraw.Draw(colour)
    for _ in range(4):
        x, y = (float(v) for v in rng.uniform(0, 180, 2))
        draw.rectangle((x, y, x + 34, y + 34), outline=tuple(int(v) for v in rng.integers(0, 255, 3)), width=2)
        draw.text((x, y), "GGO 3", fill=(255, 0, 0), font_size=14)
    return colour
