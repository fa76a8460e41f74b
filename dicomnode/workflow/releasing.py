"""Release of held images by a person who looked at them: masks given by hand, or the word that nothing identifies.

Everything is checked before anything is changed or written down; the objects then go through de-identification and
audit once more. Numbers only leave this module: no UID, no path. Facts: docs/quarantine.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dicomnode.archive.quarantine import Item
from dicomnode.deid import faces, pixel_policy
from dicomnode.deid.by_hand import MAX_MASKS, ByHand, check_masks, parse_mask
from dicomnode.deid.pixel_frames import Frames
from dicomnode.deid.quiet import silenced
from dicomnode.deid.source import Source, open_source
from dicomnode.errors import QuarantineError, UsageError
from dicomnode.scp.records import Job, SpoolInstance
from dicomnode.scp.schema import JobState

TEXT_REASON, AUDIT_REASON = "burned-in", "audit"
AUDIT_OF_PIXELS = "pixel data"  # the auditor's place where it could read a name
_MASKABLE_BITS = (8, 16)
_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Release:
    """What is released, checked. ``decisions``: row id of each instance -> the decision as text."""

    decisions: dict[int, str]
    detail: str


def is_finished(item: Item, job: Job) -> bool:
    """Whether an earlier release of a held item let its objects go on and only did not close the item any more.

    Raises
    ------
    UsageError
        Neither that, nor does its job hold anything that could be released.
    """
    place = f"quarantine {item.id}"
    if job.state == JobState.DONE:
        return True
    if job.state != JobState.QUARANTINED:
        raise UsageError(f"the spool has its objects as {job.state.value}, not as held", place=place)
    if not job.instances:
        raise UsageError("it holds no objects any more", place=place, advice=f"dicomnode quarantine discard {item.id}")
    return False


def prepare(item: Item, job: Job, masks: Sequence[str], *, clean: bool, which: str, reason: str) -> Release:
    """Check a release by hand.

    Parameters
    ----------
    masks : sequence of str
        As ``deid.by_hand.parse_mask`` takes them.
    clean : bool
        The person says that what is left does not identify: no text, or of an item that is held for it, no face.
    which : str
        Numbers of the item's objects, like ``1,3-5``; may be empty where there is one.
    reason : str
        Why; needed.

    Raises
    ------
    UsageError
        The first thing that is wrong, with the option that says it.
    """
    place = f"quarantine {item.id}"
    if is_finished(item, job):
        raise UsageError("its objects were released already", place=place)
    if not masks and not clean:
        raise UsageError("--instance and --reason go with --mask or --clean", place=place)
    if not reason.strip():
        raise UsageError("--reason is needed with --mask and --clean", place=place)
    _check_reason(item, place, masked=bool(masks), clean=clean)
    if len(masks) > MAX_MASKS:
        raise UsageError(f"at most {MAX_MASKS} masks in one release", place=place)
    chosen = _chosen(job.instances, which, place)
    is_face = item.reason == faces.REASON
    made = ByHand(tuple(map(parse_mask, masks)), no_text=clean and not is_face, no_face=clean and is_face)
    decisions: dict[int, str] = {}
    stay = False
    for number, instance in chosen:
        _check_pixels(instance, made, f"{place} object {number}")
        earlier = ByHand.from_text(instance.by_hand)
        stay = stay or bool(earlier.masks)
        decisions[instance.id] = made.after(earlier).as_text()
    numbers = ",".join(str(number) for number, _ in chosen)
    said = [f"objects {numbers} of {len(job.instances)}", *(["earlier masks stay"] if stay else [])]
    said += (f"mask {mask}" for mask in made.masks)
    if clean:
        other = "other " if masks or stay else ""
        said.append("no face" if is_face else f"no {other}text that identifies")
    return Release(decisions, "; ".join(said))


def _check_reason(item: Item, place: str, *, masked: bool, clean: bool) -> None:
    of_pixels = item.reason == AUDIT_REASON and item.place == AUDIT_OF_PIXELS
    if item.reason == faces.REASON:
        if masked:
            raise UsageError("a face is not masked: --clean says that there is none", place=place)
    elif item.reason != TEXT_REASON and not of_pixels:
        option = "--mask" if masked else "--clean"
        raise UsageError(f"{option} is for what pixels show, and it is held as {item.reason}", place=place)
    elif of_pixels and clean:
        raise UsageError("the audit can read a name or an id in the pixels: mask it", place=place)


def _chosen(instances: Sequence[SpoolInstance], which: str, place: str) -> list[tuple[int, SpoolInstance]]:
    """Number and instance, as ``quarantine show --instance`` counts them."""
    if not which.strip():
        if len(instances) > 1:
            line = f"it holds {len(instances)} objects: say with --instance which of them you looked at (1,3-5)"
            raise UsageError(line, place=place)
        return list(enumerate(instances, start=1))
    numbers: set[int] = set()
    for part in which.replace(" ", "").split(","):
        match = _PART.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= len(instances):
            line = f"it holds {len(instances)} objects; say which, like 1,3-5"
            raise UsageError(line, place=f"{place} --instance {which}")
        numbers.update(range(first, last + 1))
    return [(number, instances[number - 1]) for number in sorted(numbers)]


def _check_pixels(instance: SpoolInstance, made: ByHand, place: str) -> None:
    """Whether the pixels can be seen here at all, and have what the masks name."""
    try:
        with silenced():
            source = open_source(instance.path)
            try:
                pixel_policy.refuse_hidden_overlays(source.ds)
                next(iter(Frames.of(source)))
                _check_masks(source, made, place)
            finally:
                source.stream.close()
    except QuarantineError as error:
        raise UsageError(f"it cannot be released by hand: {error.line}", place=place) from None


def _check_masks(source: Source, made: ByHand, place: str) -> None:
    ds = source.ds
    if not made.masks:
        return
    if int(ds.BitsAllocated) not in _MASKABLE_BITS:
        raise UsageError("only pixels of 8 or 16 bits can be masked", place=place)
    check_masks(made.masks, int(ds.Rows), int(ds.Columns), source.frames())
