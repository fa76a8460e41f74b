"""Which series of a study are embedded, and which of their slices: decided from headers alone, never from pixels.

A study has five to ten series; at most two are taken: axial originals first, a lung kernel before others. Localizers,
dose screens and other modalities are never taken, reformats only where nothing else is there, and the choice says so.
What the repository held before that rule (``gated`` False) is chosen from as it was. Slices are ordered by
ImagePositionPatient along the normal, never by InstanceNumber where geometry exists. Facts: PS3.3 C.7.6.1.1.2
(ImageType), C.7.6.2.1.1 (orientation), C.8.2.1 (kernel).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from dicomnode.domain import NO_DICOM, NO_IMAGES, ONLY_OTHERS, PseudoUid
from dicomnode.models.headers import Plane, SeriesHeader, Tier, read_planes

KEY_SLICES = 24
KEY_SLICES_MIN, KEY_SLICES_MAX = 16, 32
MAX_SERIES = 2
# Key slices come from this central part of the volume: the ends of a chest CT are neck and abdomen.
CENTRAL = (0.05, 0.95)
SAME_POSITION_MM = 0.01
# A series shorter than this share of the longest of its kind is a part of it (a slab, a perfusion run).
ENOUGH_COVERAGE = 0.5


class NoSearch(StrEnum):
    """Why a study cannot be searched."""

    NO_IMAGES = "no-images"
    UNSUPPORTED_KIND = "unsupported-kind"
    UNREADABLE = "unreadable"
    NO_SLICE = "no-slice"  # by its pixels: the input gate


@dataclass(frozen=True, slots=True)
class KeySlice:
    """A slice to embed: file, instance, frame (from 0), z in 0..1 from feet to head (or along the normal)."""

    path: Path
    instance_uid: PseudoUid
    frame: int
    z: float


@dataclass(frozen=True, slots=True)
class SeriesChoice:
    """A chosen series. ``reason`` is a stable word, ``why`` the sentence for the report, ``modality`` its header's."""

    series_uid: PseudoUid
    why: str
    reason: str
    n_instances: int
    key: tuple[KeySlice, ...]
    modality: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """A series or file that is not embedded, with a stable reason; ``series_uid`` empty for a file that is no DICOM."""

    series_uid: PseudoUid
    reason: str
    why: str
    n_instances: int = 1


@dataclass(frozen=True, slots=True)
class StudyChoice:
    """What of a study is embedded. ``not_searchable`` is set where nothing can be."""

    choices: tuple[SeriesChoice, ...]
    passed: tuple[Passed, ...]
    not_searchable: NoSearch | None = None
    why_not: str = ""


_WHY = {
    Tier.AXIAL: ("axial-original", "axial original images"),
    Tier.PROJECTION: ("projection", "images without slice geometry, as this modality makes them"),
    Tier.AXIAL_DERIVED: ("axial-derived", "axial derived images, as there are no axial originals"),
    Tier.OTHER_PLANE: ("other-plane", "originals in another plane, as there are no axial images"),
    Tier.REFORMAT: ("reformat", "reformatted images, as there are no originals"),
    Tier.NO_GEOMETRY: ("no-geometry", "images without slice geometry, as there are no others"),
    Tier.LOCALIZER: ("localizer-only", "localizers, as the study holds nothing else"),
}


def choose(
    paths: Iterable[Path], key_slices: int = KEY_SLICES, *, gated: bool = True, taught: Set[str] = frozenset()
) -> StudyChoice:
    """Choose series and key slices of one study.

    Parameters
    ----------
    paths : the study's files, in any order.
    key_slices : slices a series, 16 to 32; a shorter series gives all it has.
    gated : refuse other modalities than CT and MR, and localizers, even where the study holds nothing else.
    taught : modalities that are not refused either.

    Returns
    -------
    StudyChoice
        At most two series, all of the best kind the study holds, and why each other series was passed over.

    Raises
    ------
    ValueError
        ``key_slices`` outside 16..32.
    """
    if not KEY_SLICES_MIN <= key_slices <= KEY_SLICES_MAX:
        raise ValueError(f"key_slices must be {KEY_SLICES_MIN} to {KEY_SLICES_MAX}, not {key_slices}")
    read = read_planes(paths, gated=gated, taught=taught)
    passed = [Passed(PseudoUid(uid), reason, why, n) for uid, reason, why, n in read.passed]
    by_series: dict[str, list[Plane]] = defaultdict(list)
    for plane in read.planes:
        by_series[plane.series.uid].append(plane)
    stacks = [_Stack.of(planes) for planes in by_series.values()]
    if gated:
        passed += [_localizer(s) for s in stacks if s.tier is Tier.LOCALIZER]
        stacks = [s for s in stacks if s.tier is not Tier.LOCALIZER]
    if not stacks:
        return _nothing(passed)
    best = min(s.tier for s in stacks)
    candidates = sorted((s for s in stacks if s.tier == best), key=_preference(stacks, best))
    chosen = candidates[:MAX_SERIES]
    # A second series must show something else: the same kernel and description again is a repeat.
    if len(chosen) == MAX_SERIES and chosen[0].looks_like(chosen[1]):
        chosen = [chosen[0], next((s for s in candidates[1:] if not chosen[0].looks_like(s)), chosen[1])]
    for s in stacks:
        if s not in chosen:
            reason, why = _passed_over(s, best)
            passed.append(Passed(PseudoUid(s.series.uid), reason, why, s.n_instances))
    return StudyChoice(tuple(s.choice(key_slices) for s in chosen), tuple(passed))


def _localizer(stack: _Stack) -> Passed:
    return Passed(PseudoUid(stack.series.uid), "localizer", "localizers are passed over", stack.n_instances)


def _nothing(passed: Sequence[Passed]) -> StudyChoice:
    reasons = {p.reason for p in passed}
    if not reasons:
        return StudyChoice((), (), NoSearch.NO_IMAGES, NO_IMAGES)
    if reasons <= {"unreadable", "not-dicom"}:
        return StudyChoice((), tuple(passed), NoSearch.UNREADABLE, NO_DICOM)
    if "not-an-image" in reasons and reasons <= {"not-an-image", "unreadable", "not-dicom"}:
        return StudyChoice((), tuple(passed), NoSearch.NO_IMAGES, NO_IMAGES)
    return StudyChoice((), tuple(passed), NoSearch.UNSUPPORTED_KIND, ONLY_OTHERS)


def _passed_over(stack: _Stack, best: Tier) -> tuple[str, str]:
    reason, what = _WHY[stack.tier]
    if stack.tier != best:
        return reason.removesuffix(
            "-only"
        ), f"{what.split(', as')[0]} are passed over, as the study has {_WHY[best][1].split(', as')[0]}"
    return "enough-series", "two better series of the same kind were chosen"


@dataclass(frozen=True, slots=True)
class _Stack:
    """The planes of one series that belong together: same kind, same orientation, one at each position."""

    series: SeriesHeader
    planes: tuple[Plane, ...]
    tier: Tier
    n_instances: int
    extent: float
    has_geometry: bool

    @classmethod
    def of(cls, planes: Sequence[Plane]) -> _Stack:
        """The best kind in the series, and of that the orientation and size most slices have."""
        tier = min(p.tier for p in planes)
        same_kind = [p for p in planes if p.tier == tier]
        (group, _), *_ = Counter(p.group for p in same_kind).most_common(1)
        stack = [p for p in same_kind if p.group == group]
        located = all(p.along is not None for p in stack) and len(stack) > 0
        if located:
            stack = _one_a_position(stack)
            places = [p.along or 0.0 for p in stack]
            located = len(stack) == 1 or places[-1] > places[0]
            extent = places[-1] - places[0]
        else:
            stack.sort(key=lambda p: p.order)
            extent = float(len(stack))
        instances = len({p.path for p in planes})
        return cls(planes[0].series, tuple(stack), tier, instances, extent, located)

    def looks_like(self, other: _Stack) -> bool:
        """Same kernel and description: a repeat."""
        mine, theirs = self.series, other.series
        return (mine.kernel, mine.description) == (theirs.kernel, theirs.description)

    def z(self) -> list[float]:
        """Position of each plane in the volume, 0..1; by order where there is no geometry; one slice is at .5."""
        if len(self.planes) == 1:
            return [0.5]
        if self.has_geometry:
            first = self.planes[0].along or 0.0
            return [((p.along or 0.0) - first) / self.extent for p in self.planes]
        return [float(v) for v in np.linspace(0, 1, len(self.planes))]

    def choice(self, key_slices: int) -> SeriesChoice:
        reason, what = _WHY[self.tier]
        z = self.z()
        rows = pick(z, key_slices)
        details = [what]
        if self.series.lung:
            details.append("lung kernel")
            reason = f"{reason}-lung"
        if not self.has_geometry and len(self.planes) > 1:
            details.append("ordered by instance number, as positions are missing or equal")
        details.append(f"{len(rows)} of {len(self.planes)} slices")
        key = tuple(
            KeySlice(self.planes[i].path, PseudoUid(self.planes[i].instance_uid), self.planes[i].frame, z[i])
            for i in rows
        )
        sentence = f"{self.series.modality or 'Unknown modality'}: {', '.join(details)}."
        return SeriesChoice(PseudoUid(self.series.uid), sentence, reason, self.n_instances, key, self.series.modality)


def _one_a_position(planes: Sequence[Plane]) -> list[Plane]:
    """Planes along the normal; of several at one place (phases, echoes, b-values) the first acquired."""
    out: list[Plane] = []
    for plane in sorted(planes, key=lambda p: (p.along or 0.0, p.order)):
        if not out or (plane.along or 0.0) - (out[-1].along or 0.0) > SAME_POSITION_MM:
            out.append(plane)
    # All at one place (a cine, a perfusion slice): position says nothing, order does.
    return out if len(out) > 1 else sorted(planes, key=lambda p: p.order)


Rank = tuple[bool, bool, float, int, str]


def _preference(stacks: Sequence[_Stack], best: Tier) -> Callable[[_Stack], Rank]:
    """A sort key: whole series first, lung kernel before others, then the longest; ties by UID, so always the same."""
    longest = max(s.extent for s in stacks if s.tier == best)

    def key(s: _Stack) -> Rank:
        whole = s.extent >= ENOUGH_COVERAGE * longest
        return (not whole, not s.series.lung, -s.extent, -len(s.planes), s.series.uid)

    return key


def pick(z: Sequence[float], count: int) -> list[int]:
    """Indices of ``count`` slices, evenly over z within the central range; all where there are no more.

    Parameters
    ----------
    z : ascending positions in 0..1.
    """
    if len(z) <= count:
        return list(range(len(z)))
    positions = np.asarray(z)
    taken: list[int] = []
    for target in np.linspace(*CENTRAL, count):
        order = np.argsort(np.abs(positions - target), kind="stable")
        taken.append(next(int(i) for i in order if int(i) not in taken))
    return sorted(taken)
