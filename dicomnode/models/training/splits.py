"""Splits that do not leak: a seeded share of whole patients or volumes, with near-copies on one side.

Pure functions on arrays. A near-copy is a pair of slices whose 32x32 pixels, each minus its mean, correlate above .98:
no two patients of COVID-CT do (at most .86 across its official splits), copies of one slice always do.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dicomnode.errors import InputError
from dicomnode.models.training.data import SegmentationData, first_rows
from dicomnode.models.training.figures import raw_pixels, unit_rows

TWIN_CORRELATION = 0.98
_CHUNK = 1024  # rows of the correlation matrix at a time

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def near_twins(images: npt.NDArray[np.uint8]) -> Ints:
    """Pairs (i < j) of images uint8 [n, H, W] that are near-copies, int [m, 2]."""
    x = unit_rows(raw_pixels(images))
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for at in range(0, len(x), _CHUNK):
        i, j = np.nonzero(x[at : at + _CHUNK] @ x[at:].T > TWIN_CORRELATION)
        later = j > i
        pairs.append(np.stack([i[later] + at, j[later] + at], axis=1).astype(np.int64))
    return np.concatenate(pairs)


def joined(groups: npt.NDArray[np.str_], pairs: Ints) -> npt.NDArray[np.str_]:
    """Groups [n] in which those that share a pair are one (named after the first of them)."""
    parent = {str(g): str(g) for g in np.unique(groups)}

    def root(g: str) -> str:
        while parent[g] != g:
            g = parent[g]
        return g

    for i, j in pairs:
        a, b = sorted((root(str(groups[i])), root(str(groups[j]))))
        parent[b] = a
    return np.array([root(str(g)) for g in groups])


def too_few(found: int, needed: int, what: str, place: str, share: float, taken: int) -> InputError:
    """The error of a source that leaves less than a batch to train on.

    Parameters
    ----------
    what : of the source, "images". ``taken`` : how many of them the validation ``share`` took.
    """
    took = f", after --validate {share:g} took {taken}" if taken else ""
    enough = found + taken >= needed
    advice = "add more, or train with --validate 0" if enough else f"add {what}"
    return InputError(f"leaves {found} {what} to train on{took}: {needed} are needed", place=place, advice=advice)


def validation_rows(
    labels: Ints, groups: npt.NDArray[np.str_], share: float, seed: int, classes: tuple[str, ...], place: str = ""
) -> Bools:
    """A seeded part of whole groups that holds about ``share`` of each class, bool [n]; ``place`` is for the error.

    Raises
    ------
    InputError
        A class has a single group: it cannot be on both sides.
    """
    rng = np.random.default_rng([seed, 1_000_003])  # not the stream of any epoch
    chosen = np.zeros(len(labels), dtype=np.bool_)
    names = np.unique(groups)
    main = np.array([np.bincount(labels[groups == g], minlength=len(classes)).argmax() for g in names])
    for c in np.unique(labels):
        mine = rng.permutation(names[main == c])
        if len(mine) < 2:
            raise InputError(
                f"class {classes[c]!r} has images of fewer than two patients: no part of it can validate",
                place=place,
                advice="add patients, or train with --validate 0",
            )
        wanted, taken = share * float((labels == c).sum()), 0
        for g in mine[:-1]:  # at least one stays for training
            if taken >= wanted:
                break
            rows = groups == g
            chosen |= rows
            taken += int(rows.sum())
    return chosen


def units_of(data: SegmentationData) -> Ints:
    """What must be on one side, int [n]: volumes of one patient, or that share a near-copy, are one unit.

    A unit is named after one of its volumes. Held-out volumes are units of their own: on their side they are already.
    """
    units = data.volumes.copy()
    free = np.flatnonzero(~data.held_out)
    if not len(free):
        return units
    names, index = np.unique(data.volumes[free], return_inverse=True)
    pairs = near_twins(data.images[free])
    if data.patients is not None:
        first = first_rows(data.patients[free])
        rows = np.flatnonzero(first >= 0)
        pairs = np.concatenate([pairs, np.stack([first[rows], rows], axis=1)])
    pairs = pairs[index[pairs[:, 0]] != index[pairs[:, 1]]]
    roots = joined(np.array([f"{i:08d}" for i in index]), pairs)
    units[free] = names[roots.astype(np.int64)]
    return units


def volumes_apart(data: SegmentationData, counted: Bools, share: float, seed: int, place: str = "") -> tuple[int, ...]:
    """The volumes of a site's training part that validate; none where ``share`` is 0.

    Parameters
    ----------
    counted : bool [n], slices that are trained on or validate, and of which the share is; none is held out.
    place : where they are from, for the error.

    Raises
    ------
    InputError
        As ``validation_volumes``.
    """
    if not share:
        return ()
    free = ~data.held_out
    return validation_volumes(data.volumes[free], share, seed, place, units=units_of(data)[free], counted=counted[free])


def validation_volumes(
    volumes: Ints,
    share: float,
    seed: int,
    place: str = "",
    *,
    units: Ints | None = None,
    counted: Bools | None = None,
) -> tuple[int, ...]:
    """A seeded choice of whole volumes with about ``share`` of the slices, at least one, never all.

    Parameters
    ----------
    place : where they are from, for the error.
    units : int [n], what is chosen as a whole (``units_of``); None: each volume.
    counted : bool [n], the slices that count; a volume without any goes with its unit. None: all.

    Raises
    ------
    InputError
        There is one volume only, or one unit.
    """
    units = volumes if units is None else units
    counted = np.ones(len(volumes), dtype=np.bool_) if counted is None else counted
    rng = np.random.default_rng([seed, 1_000_003])
    names = rng.permutation(np.unique(units[counted]))
    if len(names) < 2:
        one = len(np.unique(volumes[counted])) < 2
        what = "one volume only" if one else "volumes that are all of one patient, or near-copies of each other"
        raise InputError(
            f"has slices of {what}: no part of it can validate",
            place=place,
            advice=f"add {'volumes' if one else 'volumes of others'}, or train with --validate 0",
        )
    out: list[int] = []
    for unit in names[:-1]:
        if out and np.isin(units[counted], out).sum() >= share * counted.sum():
            break
        out.append(int(unit))
    return tuple(int(v) for v in np.unique(volumes[np.isin(units, out)]))
