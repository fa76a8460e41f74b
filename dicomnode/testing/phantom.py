"""A computed thorax phantom: CT numbers of axial slices, with or without one of three findings.

Organs are ellipses and tubes in millimetres, sizes and CT numbers rounded textbook values, drawn from a seed. It is of
nobody, and never meant to train or to judge a model: it exists so that the node can be shown and tested without data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FindingKind = Literal["nodule", "consolidation", "effusion"]
FIELD_MM = 380.0  # reconstruction diameter
LENGTH_MM = 290.0  # scanned from the lung apices to below the domes of the diaphragm

# Left and right ventricle, right and left atrium: centre (mm) and two half axes.
CHAMBERS = ((40, -38, 178, 24, 15), (6, -56, 172, 26, 13), (-22, -30, 160, 17, 21), (8, -2, 152, 26, 14))

Floats = NDArray[np.floating[Any]]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class _Tube:
    """A capsule from a to b (mm; x to the patient's left, y to the back, z to the feet), radius and CT number."""

    a: Point
    b: Point
    radius: float
    hu: float


@dataclass(frozen=True)
class _Lesion:
    kind: FindingKind
    centre: Point
    radius: float
    spicules: tuple[float, float]  # phases of the outline


@dataclass
class _Plane:
    """One axial slice while it is painted: CT numbers over x (columns) and y (rows), in mm, at height z."""

    z: float
    x: Floats
    y: Floats
    hu: Floats

    @property
    def pixel(self) -> float:
        return float(self.x[0, 1] - self.x[0, 0])

    def paint(self, distance: Floats, hu: float | Floats, within: Floats | float = 1.0) -> None:
        """Paint where the signed distance (mm, negative inside) is negative, with an edge one pixel soft."""
        self.hu += (hu - self.hu) * np.clip(0.5 - distance / self.pixel, 0.0, 1.0) * within

    def ellipse(self, x: float, y: float, a: float, b: float, power: float = 2.0) -> Floats:
        """Approximate signed distance to a superellipse."""
        r = (np.abs((self.x - x) / a) ** power + np.abs((self.y - y) / b) ** power) ** (1.0 / power)
        return np.asarray((r - 1.0) * min(a, b))

    def tube(self, tube: _Tube, within: Floats | float = 1.0) -> None:
        """Paint the cut through a tube, touching only the pixels near it."""
        (ax, ay, az), (bx, by, bz), r = tube.a, tube.b, tube.radius
        if not min(az, bz) - r < self.z < max(az, bz) + r:
            return
        reach = r + self.pixel
        rows = slice(*np.searchsorted(self.y[:, 0], (min(ay, by) - reach, max(ay, by) + reach)))
        cols = slice(*np.searchsorted(self.x[0], (min(ax, bx) - reach, max(ax, bx) + reach)))
        px, py, pz = self.x[:, cols] - ax, self.y[rows] - ay, self.z - az
        dx, dy, dz = bx - ax, by - ay, bz - az
        t = np.clip((px * dx + py * dy + pz * dz) / max(dx * dx + dy * dy + dz * dz, 1e-9), 0.0, 1.0)
        distance = np.sqrt((px - t * dx) ** 2 + (py - t * dy) ** 2 + (pz - t * dz) ** 2) - r
        part = _Plane(self.z, self.x[:, cols], self.y[rows], self.hu[rows, cols])
        if part.hu.shape[1] > 1:
            part.paint(distance, tube.hu, within if isinstance(within, float) else within[rows, cols])


def _noise(rng: np.random.Generator, size: int, grain: int) -> Floats:
    """Smooth noise of unit variance whose grain is size/grain pixels."""
    coarse = Image.fromarray(rng.standard_normal((grain, grain)).astype(np.float32))
    fine = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64)
    return fine / max(float(fine.std()), 1e-9)


@dataclass(frozen=True)
class Thorax:
    """The anatomy of one phantom: sizes drawn once from the seed, then cut into slices."""

    width: float
    depth: float
    fat: float
    dome: float
    heart: float
    blood: float
    offset: tuple[float, float]  # of the patient from the centre of the scanner
    tubes: tuple[_Tube, ...]
    vessels: tuple[_Tube, ...]
    lesion: _Lesion | None
    seed: int = field(repr=False)

    @classmethod
    def draw(cls, seed: int, finding: FindingKind | None, spacing: float) -> Thorax:
        """Draw an anatomy; a finding is centred on one of the slices, which are ``spacing`` mm apart."""
        rng = np.random.default_rng(seed)
        width, depth = rng.uniform(150, 172), rng.uniform(112, 130)
        blood = float(rng.choice([45.0, 170.0]))  # plain, or with contrast medium
        vessels = [v for s in (-1.0, 1.0) for v in _vessel_tree(rng, s, blood)]
        return cls(
            width=width,
            depth=depth,
            fat=rng.uniform(8, 22),
            dome=rng.uniform(178, 200),
            heart=rng.uniform(0.9, 1.15),
            blood=blood,
            offset=(rng.uniform(-8, 8), rng.uniform(-8, 4)),
            tubes=_mediastinum(blood),
            vessels=tuple(vessels),
            lesion=None if finding is None else _draw_lesion(seed, finding, spacing),
            seed=seed,
        )

    def cut(self, z: float, matrix: int) -> NDArray[np.int16]:
        """CT numbers of the axial slice at height z (mm below the apices), shape (matrix, matrix)."""
        rng = np.random.default_rng((self.seed, int(z * 100)))
        axis = (np.arange(matrix) + 0.5) / matrix * FIELD_MM - FIELD_MM / 2
        x, y = axis[None, :] - self.offset[0], axis[:, None] - self.offset[1]
        plane = _Plane(z, x, y, np.full((matrix, matrix), -1000.0))
        cage = self._wall(plane, rng, matrix)
        lungs = self._lungs(plane, cage, rng, matrix)
        self._ribs(plane, cage)
        self._spine(plane)
        heart = self._heart(plane, rng, matrix)
        for tube in self.tubes:
            plane.tube(tube)
        inside = np.clip(0.5 - np.maximum(lungs, -heart) / plane.pixel, 0.0, 1.0)
        for tube in self.vessels:
            plane.tube(tube, inside)
        if self.lesion is not None:
            self._paint_lesion(plane, self.lesion, inside, cage, _noise(rng, matrix, 40))
        self._table(plane)
        grain = 0.7 * rng.standard_normal((matrix, matrix)) + 0.7 * _noise(rng, matrix, matrix // 2)
        return np.clip(np.rint(plane.hu + 14.0 * grain), -1024, 3071).astype(np.int16)

    def _wall(self, plane: _Plane, rng: np.random.Generator, matrix: int) -> Floats:
        """Skin, fat, muscle; gives the signed distance to the inner chest wall."""
        apex = max(0.0, 1.0 - plane.z / 70.0)
        a, b = self.width * (1 + 0.12 * apex), self.depth * (1 - 0.14 * apex)
        skin = plane.ellipse(0, 4, a, b, 2.35)
        plane.paint(skin, 20.0)
        plane.paint(skin + 2.5, -105.0)
        muscle = skin + self.fat + 6 * np.exp(-((plane.y + b) ** 2) / 900) + 2 * _noise(rng, matrix, 10)
        plane.paint(muscle, 55.0 + 8 * _noise(rng, matrix, 50))
        seam = np.abs(muscle + 11 + 2 * np.sin(plane.x / 17)) - 1.0
        plane.paint(seam, -80.0, 1.0 * (np.abs(plane.x) > 45))
        grow = min(1.0, 0.55 + plane.z / 130.0)
        cage: Floats = plane.ellipse(
            0, 0, (self.width - self.fat - 25) * grow, (self.depth - self.fat * 0.6 - 21) * grow, 2.3
        )
        plane.paint(cage, -75.0)
        return cage

    def _lungs(self, plane: _Plane, cage: Floats, rng: np.random.Generator, matrix: int) -> Floats:
        """Abdominal organs below the diaphragm, air and texture above it; gives the signed distance to the lungs."""
        liver = self.dome + 0.012 * (plane.x + 62) ** 2 + 0.014 * (plane.y + 12) ** 2
        spleen = self.dome + 12 + 0.012 * (plane.x - 65) ** 2 + 0.014 * (plane.y + 4) ** 2
        floor = np.minimum(liver, spleen)
        below = np.maximum(cage + 1.0, (floor - plane.z) * 0.8)
        plane.paint(below, np.where(liver < spleen, 62.0, 48.0) + (25.0 if self.blood > 100 else 0.0))
        plane.paint(np.maximum(below, plane.ellipse(58, -38, 30, 24)), -20.0)  # stomach
        plane.paint(np.maximum(below, plane.ellipse(58, -52, 21, 9)), -950.0)  # its gas bubble
        half = 13 + 17 * np.exp(-(((plane.y - 18) / 42) ** 2)) + 10 * np.clip((plane.z - 90) / 90, 0, 1)
        half = half - 22 * np.clip((-plane.y - 45) / 30, 0, 1) * (plane.z > 60)
        spine = plane.ellipse(0, 62, 30, 30)
        lungs: Floats = np.maximum.reduce([cage + 2.5, half - np.abs(plane.x), -spine, (plane.z - floor) * 0.8])
        lungs = lungs + max(0.0, 24.0 - plane.z) * 1.3
        air = -868 + 0.45 * (plane.y + 60) + 14 * _noise(rng, matrix, 24) + 12 * _noise(rng, matrix, 70)
        plane.paint(lungs, air)
        fissure = np.abs(plane.y - 75 + 0.62 * (plane.z - 20) - 0.08 * np.abs(plane.x)) - 0.4
        plane.paint(fissure, -720.0, np.clip(0.5 - lungs / plane.pixel, 0, 1))
        return lungs

    def _ribs(self, plane: _Plane, cage: Floats) -> None:
        """Twelve sloping pairs, cut obliquely; sternum and, high up, the shoulder blades."""
        around = np.arctan2(np.abs(plane.x) / self.width, -plane.y / self.depth)  # 0 in front, pi at the back
        phase = plane.z - 44 * np.cos(around) + 3 * np.sign(plane.x)
        along = np.abs((phase + 12) % 24 - 12) - 5.4
        wall = np.abs(cage - 5.0) - 3.4
        bone = np.maximum(wall, along * 0.9)
        bone = np.maximum(bone, (0.32 - around) * 60)
        plane.paint(bone, 620.0)
        plane.paint(bone + 2.0, 230.0)
        front = -(self.depth - self.fat * 0.6 - 21) * min(1.0, 0.55 + plane.z / 130.0) - 4
        if 30 < plane.z < 190:
            sternum = plane.ellipse(0, front, 19 if plane.z < 80 else 14, 6.5, 3)
            plane.paint(sternum, 420.0)
            plane.paint(sternum + 2.2, 170.0)
        if 10 < plane.z < 140:
            a, b = (self.width - self.fat - 25), (self.depth - self.fat * 0.6 - 21)
            for side in (-1.0, 1.0):
                dx, dy = plane.x * side - (a * 0.74 + 11), plane.y - (b * 0.74 + 9)
                u, v = dx * 0.75 - dy * 0.66, dx * 0.66 + dy * 0.75
                blade = np.maximum(np.abs(u) - 38 * (1 - plane.z / 180), np.abs(v + 0.004 * u * u) - 2.4)
                plane.paint(blade, 520.0)
                plane.paint(np.maximum(np.abs(u) - 30 * (1 - plane.z / 180), np.abs(v + 9) - 5.5), 62.0)

    def _spine(self, plane: _Plane) -> None:
        """Vertebral body with its cortex (a disc every 23 mm), canal, arch, transverse and spinous processes."""
        back = 62.0
        disc = abs((plane.z + 5) % 23 - 11.5) > 9.0
        body = plane.ellipse(0, back, 18, 14.5, 2.4)
        plane.paint(body - 6, 55.0)
        plane.paint(body, 110.0 if disc else 520.0)
        plane.paint(body + 1.6, 85.0 if disc else 215.0)
        arch = plane.ellipse(0, back + 22, 14, 13)
        plane.paint(np.where(plane.y > back + 8, arch, 99.0), 400.0)
        if not disc:
            for side in (-1, 1):
                tip = (side * 34.0, back + 27.0, plane.z)
                plane.tube(_Tube((side * 11.0, back + 17.0, plane.z), tip, 4.5, 380.0))
        plane.tube(_Tube((0, back + 30, plane.z), (0, back + 48, plane.z), 3.2, 430.0))
        plane.paint(plane.ellipse(0, back + 21.5, 9.5, 8.5), 25.0)
        for side in (-1, 1):
            plane.paint(plane.ellipse(side * 24, back + 38, 17, 11), 58.0, 1.0 * (plane.hu < 200))

    def _heart(self, plane: _Plane, rng: np.random.Generator, matrix: int) -> Floats:
        """Pericardial fat, myocardium and, with contrast, the chambers; gives the signed distance to the heart."""
        u = (plane.x - 22) * 0.82 + (plane.y + 28) * -0.57
        v = (plane.x - 22) * 0.57 + (plane.y + 28) * 0.82
        r = np.sqrt((u / 60) ** 2 + (v / 42) ** 2 + ((plane.z - 168) / 48) ** 2) / self.heart
        distance = (r - 1) * 42
        above = (plane.z - self.dome - 18 - 0.008 * plane.x**2) * 0.8
        outer = np.maximum(distance, above)
        plane.paint(outer - 3, -70.0)
        plane.paint(outer, 52.0 + 5 * _noise(rng, matrix, 40) + (35.0 if self.blood > 100 else 0.0))
        for x, y, z, rx, ry in CHAMBERS:
            squeeze = math.sqrt(max(0.0, 1 - ((plane.z - z) / 34) ** 2)) * self.heart
            if squeeze > 0.2:
                plane.paint(np.maximum(plane.ellipse(x, y, rx * squeeze, ry * squeeze), outer + 4), self.blood)
        return np.asarray(outer - 3)

    def _paint_lesion(self, plane: _Plane, lesion: _Lesion, lungs: Floats, cage: Floats, grain: Floats) -> None:
        x, y, z = lesion.centre
        dz = plane.z - z
        if lesion.kind == "effusion":  # fluid sinks to the back and to the base, with a meniscus along the wall
            depth = np.clip((plane.z - 95) / 110, 0, 1) * 62
            surface = self.depth - self.fat - 22 - depth - 0.006 * (np.abs(plane.x) - 62) ** 2 * (depth > 0)
            rim = cage + np.clip((plane.z - 95) / 110, 0, 1) * 9
            fluid = np.minimum(surface - plane.y, -rim)
            plane.paint(np.where(np.sign(plane.x) == np.sign(x), fluid, 99.0), 11.0, lungs * (depth > 0))
            return
        angle = np.arctan2(plane.y - y, plane.x - x)
        outline = 1 + 0.08 * np.sin(5 * angle + lesion.spicules[0]) + 0.06 * np.sin(9 * angle + lesion.spicules[1])
        r = np.sqrt((plane.x - x) ** 2 + (plane.y - y) ** 2 + dz * dz) - lesion.radius * outline
        if lesion.kind == "nodule":
            plane.paint(r, 48.0, lungs)
            return
        plane.paint((r - 9 + 7 * grain) * 0.25, -560.0, lungs)  # ground glass around
        bronchograms = np.abs(np.sin((plane.x + 0.4 * plane.y) / 7.5 + grain * 0.5)) < 0.09
        plane.paint((r + 7 * grain) * 0.5, np.where(bronchograms & (r < -6), -650.0, 38.0), lungs)

    def _table(self, plane: _Plane) -> None:
        for gap, hu in ((9.0, -250.0), (24.0, 60.0)):
            curve = self.depth + 4 + gap - 0.0011 * plane.x**2
            line = np.maximum(np.abs(plane.y - curve) - 1.4, np.abs(plane.x) - 170)
            plane.paint(line, hu)


def _draw_lesion(seed: int, kind: FindingKind, spacing: float) -> _Lesion:
    """Where a finding lies; of its own random stream, so that the same seed is the same patient with or without it."""
    rng = np.random.default_rng((seed, 1))
    side = float(rng.choice([-1.0, 1.0]))
    x, y, z = {
        "nodule": (side * rng.uniform(66, 92), rng.uniform(0, 45), rng.uniform(70, 160)),
        "consolidation": (side * rng.uniform(70, 90), rng.uniform(20, 45), rng.uniform(120, 170)),
        "effusion": (side * 75.0, 0.0, 205.0),
    }[kind]
    radius = {"nodule": rng.uniform(9, 17), "consolidation": rng.uniform(38, 52), "effusion": 75.0}[kind]
    centre = (x, y, (math.floor(z / spacing) + 0.5) * spacing)
    return _Lesion(kind, centre, float(radius), (rng.uniform(0, 6), rng.uniform(0, 6)))


def _mediastinum(blood: float) -> tuple[_Tube, ...]:
    """Airways, great vessels, oesophagus and clavicles."""
    soft, air = 40.0, -985.0
    return (
        _Tube((12, 34, 0), (14, 34, 200), 6.5, soft),  # oesophagus
        _Tube((-20, -14, 55), (-24, -14, 150), 9, blood),  # superior vena cava
        _Tube((-10, -22, 88), (-12, -24, 150), 15, blood),  # ascending aorta
        _Tube((-8, -20, 84), (20, 30, 80), 13, blood),  # arch
        _Tube((22, 36, 84), (20, 42, 290), 11.5, blood),  # descending aorta
        _Tube((-10, -14, 0), (-8, -18, 75), 6, blood),  # brachiocephalic artery
        _Tube((12, -6, 0), (8, -4, 75), 4.5, blood),  # left carotid
        _Tube((24, 6, 0), (16, 14, 75), 4.5, blood),  # left subclavian
        _Tube((14, -38, 122), (10, -34, 150), 14, blood),  # pulmonary trunk
        _Tube((14, -36, 118), (44, 12, 122), 10, blood),
        _Tube((12, -30, 122), (-40, 8, 126), 10, blood),
        _Tube((0, 6, 0), (0, 12, 106), 9.2, soft),  # trachea and main bronchi: wall, then air
        _Tube((0, 12, 104), (36, 18, 136), 7.2, soft),
        _Tube((0, 12, 104), (-34, 16, 130), 7.6, soft),
        _Tube((0, 6, 0), (0, 12, 106), 7.6, air),
        _Tube((0, 12, 104), (36, 18, 136), 5.4, air),
        _Tube((0, 12, 104), (-34, 16, 130), 5.8, air),
        _Tube((-16, -52, 30), (-130, -20, 8), 6.5, 480.0),  # clavicles
        _Tube((16, -52, 30), (130, -20, 8), 6.5, 480.0),
    )


def _vessel_tree(rng: np.random.Generator, side: float, blood: float) -> Iterable[_Tube]:
    """Pulmonary vessels: from the hilum, each branch splits in two, thinner and shorter, seven times."""
    stack: list[tuple[Floats, Floats, float, float, int]] = []
    for k in range(12):  # spread evenly over the half sphere that faces the lung
        up, turn = 1.3 - 2.3 * (k + rng.uniform()) / 12, 2.4 * k + rng.uniform(-0.4, 0.4)
        direction = np.array([side * (0.35 + abs(math.cos(turn))), math.sin(turn), -up])
        stack.append((np.array([side * 34.0, 10.0, 126.0]), direction, rng.uniform(2.6, 4.6), 27.0, 0))
    while stack:
        start, direction, radius, length, depth = stack.pop()
        direction = direction / np.linalg.norm(direction)
        end = start + direction * length * rng.uniform(0.75, 1.25)
        (ax, ay, az), (bx, by, bz) = start.tolist(), end.tolist()
        yield _Tube((ax, ay, az), (bx, by, bz), radius, min(blood, 120.0))
        if depth < 6:
            for _ in range(2):
                bend = direction + rng.normal(0, 0.36, 3)
                stack.append((end, bend, max(0.55, radius * rng.uniform(0.66, 0.82)), length * 0.85, depth + 1))
