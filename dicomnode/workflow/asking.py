"""A question without a PACS: files at hand, from ``dicomnode query`` or the browser, to an answer.

De-identified first, exactly as a received study is; only what left de-identification is embedded and searched. Nothing
of the query is kept: no object in the archive, no vector in the index, no vault entry. The caller owns the folder.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dicomnode.archive.records import read_record, said_of_study
from dicomnode.deid.pool import DeidTask
from dicomnode.domain import (
    Answer,
    ImageKind,
    OriginalUid,
    Pseudonym,
    PseudoUid,
    Shows,
    SliceRef,
    Verdict,
    VerdictKind,
    refusal,
)
from dicomnode.errors import DeidError, DicomnodeError, InputError, QuarantineError, StorageFull, UploadRefused
from dicomnode.index.cases import QueryStudy
from dicomnode.models.gate import decide
from dicomnode.models.headers import A_MODALITY, READ_ERRORS, claim_of
from dicomnode.models.pictures import clean_picture, is_picture
from dicomnode.models.preprocess import UnusableImage, prepare_picture
from dicomnode.models.series import choose
from dicomnode.workflow.context import Context
from dicomnode.workflow.identity import study_identity
from dicomnode.workflow.ingest import Added, FoundFile, find_files, group_by_study

if TYPE_CHECKING:
    from dicomnode.models.study import StudyEmbedding

PICTURE = PseudoUid("image")
ASK_PREFIX = "ask-"  # of the folders below work/ that commands use
NAMED = 5  # studies of a folder that a line names
DEID_BATCH = 32  # files between two looks at whether the question still stands


class Stage(StrEnum):
    """How far a question is; the words of the API."""

    RECEIVED = "received"
    DEIDENTIFIED = "de-identified"
    EMBEDDED = "embedded"
    SEARCHED = "searched"
    DONE = "done"


Tell = Callable[[Stage, float], None]  # the stage reached, and how far the whole is, 0..1


def _quiet(_stage: Stage, _progress: float) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files of one question, sorted out: the images of one study, or one picture."""

    study_uid: OriginalUid = field(repr=False)  # "" for a picture
    files: tuple[Path, ...] = field(repr=False)
    identity: tuple[str, str] = field(repr=False)
    skipped: dict[str, int]

    @property
    def is_picture(self) -> bool:
        return not self.study_uid


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The de-identified files of a question; of a picture, the share of its pixels that had a colour of their own.

    Where the headers alone say that nothing can be searched there is no file; ``why_not`` and ``modality`` tell it.
    """

    files: tuple[Path, ...]
    colour: float = 0.0
    why_not: str = ""
    modality: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A de-identified query, ready to be searched as often as one likes.

    Attributes
    ----------
    query : QueryStudy
        Slices, vectors float32 [n, dim], and the patient to leave out where the vault knows one.
    refs : tuple of SliceRef
        ``query.slices`` with all that is known of them.
    files : tuple of Path
        The de-identified file of each slice.
    said : dict
        What the answer says of the query.
    why_not : str
        Why it cannot be searched, where there is no slice.
    """

    query: QueryStudy
    refs: tuple[SliceRef, ...]
    files: tuple[Path, ...]
    said: dict[str, object]
    why_not: str = ""


def sort_out(files: Sequence[Path], default_issuer: str, typed: Path | None = None) -> Inputs:
    """What of these files is asked about. Anything that is no image beside it is skipped and counted.

    ``typed``: the folder of the files where a person named it, so that places below it may be told; never an upload's.

    Raises
    ------
    UploadRefused
        ``empty``, ``no-image``, ``several-pictures``, ``several-studies`` or ``mixed-patients``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes odd values in its warnings
        return _sort_out(files, default_issuer, typed)


def _sort_out(files: Sequence[Path], default_issuer: str, typed: Path | None) -> Inputs:
    skipped = Added()
    plain = {p: None for p in files if _is_plain_picture(p)}
    studies = group_by_study((p for p in files if p not in plain), skipped)
    if len(studies) > 1:
        line = f"these are images of {len(studies)} studies"
        named = "" if typed is None else f": {_one_of_each(studies, typed)}"
        raise UploadRefused("several-studies", line, advice=f"query one of them{named}")
    if studies:
        study_uid, found = next(iter(studies.items()))
        paths = tuple({f.sop_uid: f.path for f in reversed(found)}.values())[::-1]  # the first of each instance
        if len(found) > len(paths):
            skipped.skip("the same instance again", len(found) - len(paths))
        if plain:
            skipped.skip("picture beside a study", len(plain))
        try:
            identity = study_identity(paths, study_uid, default_issuer)
        except QuarantineError as exc:
            raise UploadRefused(exc.reason, exc.line, advice="query the images of one patient") from None
        return Inputs(OriginalUid(study_uid), paths, identity, skipped.skipped)
    if len(plain) > 1:
        raise UploadRefused("several-pictures", f"these are {len(plain)} pictures", advice="query one of them")
    if not plain:
        found_instead = ", ".join(f"{n} files: {why}" for why, n in skipped.skipped.items())
        if not found_instead:
            raise UploadRefused("empty", "there is no file")
        raise UploadRefused("no-image", f"no image found ({found_instead})")
    return Inputs(OriginalUid(""), tuple(plain), ("", ""), skipped.skipped)


def _one_of_each(studies: Mapping[str, Sequence[FoundFile]], typed: Path) -> str:
    """A place below ``typed`` of each study: the highest folder that holds nothing of another, else a file."""
    inside: dict[Path, set[str]] = {}
    for uid, files in studies.items():
        for folder in {parent for f in files for parent in f.path.parents}:
            inside.setdefault(folder, set()).add(uid)
    places = []
    for files in list(studies.values())[:NAMED]:
        first = files[0].path
        above = [p for p in first.parents if p.is_relative_to(typed) and p != typed and len(inside[p]) == 1]
        places.append(str((above[-1] if above else first).relative_to(typed)))
    more = f", and {len(studies) - NAMED} more" if len(studies) > NAMED else ""
    return ", ".join(places) + more


def _is_plain_picture(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            return is_picture(f.read(12))
    except OSError:
        return False


def deidentify(ctx: Context, inputs: Inputs, folder: Path, tell: Tell = _quiet) -> Cleaned:
    """De-identified copies in ``folder``; what may not pass is left out and counted in ``inputs.skipped``.

    Raises
    ------
    QuarantineError
        Nothing of it may pass; the reason is that of most files.
    DicomnodeError
        The disk is full; the picture is damaged, animated or too large.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if inputs.is_picture:
        target = folder / "0.png"
        return Cleaned((target,), clean_picture(inputs.files[0], target).colour)
    nothing = _nothing_to_search(inputs.files, ctx.embedder.modalities)
    if nothing is not None:
        return nothing
    subject = ctx.vault.subject_for(*inputs.identity, create=False)
    refused: dict[str, list[DicomnodeError]] = {}
    passed: list[Path] = []
    for start in range(0, len(inputs.files), DEID_BATCH):
        batch = inputs.files[start : start + DEID_BATCH]
        tasks = [DeidTask(path, folder / f"{start + n}.dcm", subject) for n, path in enumerate(batch)]
        for task, outcome in zip(tasks, ctx.deid.run(tasks), strict=True):
            if isinstance(outcome, StorageFull):
                raise outcome
            if isinstance(outcome, DicomnodeError):
                refused.setdefault(getattr(outcome, "reason", outcome.code), []).append(outcome)
            else:
                passed.append(task.dst)
        tell(Stage.RECEIVED, 0.05 + 0.45 * (start + len(batch)) / len(inputs.files))
    if not passed:
        reason, errors = max(refused.items(), key=lambda item: len(item[1]))
        raise QuarantineError(reason, errors[0].line, place=errors[0].place)
    for reason, errors in refused.items():
        inputs.skipped[reason] = inputs.skipped.get(reason, 0) + len(errors)
    return Cleaned(tuple(passed))


def _nothing_to_search(files: Sequence[Path], taught: Set[str]) -> Cleaned | None:
    """What to say where no header claims a CT or MR slice, nor an image of ``taught``: an ultrasound loop would be
    searched for text, frame by frame, for an answer that is known."""
    modalities = set()
    for path in files:
        try:
            modality, why = claim_of(path, taught)
        except (InputError, *READ_ERRORS):
            return None  # de-identification names what is wrong with it
        if not why:
            return None
        modalities.add(modality if A_MODALITY.fullmatch(modality) else "")
    why_not = choose(files, taught=taught).why_not
    return Cleaned((), why_not=why_not, modality="/".join(sorted(modalities - {""})))


def embed(ctx: Context, inputs: Inputs, cleaned: Cleaned) -> Question:
    """De-identified files to vectors."""
    nothing = QueryStudy(slices=(), vectors=np.empty((0, 0), np.float32), model_id=ctx.embedder.model_id)
    if cleaned.why_not:
        found_none = {"kind": "study", "modality": cleaned.modality, "slices": 0, "series": []}
        return Question(nothing, (), (), found_none, cleaned.why_not)
    if inputs.is_picture:
        said: dict[str, object] = {"kind": "image", "modality": "", "slices": 1, "series": []}
        try:
            pixels = prepare_picture(cleaned.files[0]).pixels
        except UnusableImage as exc:
            if exc.reason != "constant":
                raise
            return Question(nothing, (), (), said | {"slices": 0}, refusal(ImageKind.BLANK, several=False))
        refused = decide(ctx.embedder.judge(pixels[None], colours=[cleaned.colour]))
        if refused is not None:
            return Question(nothing, (), (), said | {"slices": 0}, refused.why)
        one = (SliceRef(PICTURE, PseudoUid(""), PseudoUid(""), Pseudonym("")),)
        query = QueryStudy(slices=one, vectors=ctx.embedder.embed_images(pixels[None]), model_id=ctx.embedder.model_id)
        return Question(query, one, cleaned.files, said)
    records = {record.uid: (path, record) for path in cleaned.files for record in (read_record(path),)}
    found = ctx.embedder.embed_study(cleaned.files)
    patient = ctx.vault.pseudonym_for(*inputs.identity, create=False)
    study = ctx.vault.uid(inputs.study_uid)
    embedded = {s.instance_uid for s in found.slices}
    said = {"kind": "study", **said_of_study([r for _, r in records.values()], embedded, ctx.embedder.taught)}
    said |= {"slices": len(found.slices), "series": [c.why for c in found.choices]}
    slices = _slices(found, study, patient)
    query = QueryStudy(
        slices=slices,
        vectors=np.asarray(found.vectors),
        patient=patient,
        study=study,
        shows=Shows.said_in(said),
        model_id=found.model_id,
    )
    files = tuple(records[s.instance_uid][0] for s in found.slices)
    return Question(query, slices, files, said, found.why_not or ("" if found.slices else "no slice could be read"))


def _slices(found: StudyEmbedding, study: PseudoUid, patient: Pseudonym | None) -> tuple[SliceRef, ...]:
    return tuple(
        SliceRef(s.instance_uid, s.series_uid, study, patient or Pseudonym(""), s.frame, s.z) for s in found.slices
    )


def search(ctx: Context, question: Question, k: int, text: str = "") -> Answer:
    """The answer to a question; ``text`` leaves only cases with a finding that holds its words."""
    said = {**question.said, **({"text": text} if text else {})}
    if question.why_not:
        return _not_searchable(ctx, question.why_not, said)
    allow = ctx.catalogue.studies_with_finding(text) if text else None
    return replace(ctx.retriever.retrieve(question.query, k, allow=allow), query=said)


def ask(ctx: Context, path: Path, k: int, text: str = "", tell: Tell = _quiet) -> Answer:
    """Similar cases of a DICOM file, a folder that holds one study, or a plain image.

    The patient is looked up, never created, so that the query's own cases are left out.

    Raises
    ------
    InputError
        If a plain image cannot be read, or a folder holds more than one study or patient. Names the file or folder.
    QuarantineError
        If nothing of it may pass de-identification. Names the file or folder.
    """
    try:
        inputs = sort_out(list(find_files([path])), ctx.policy.default_issuer, typed=path)
    except UploadRefused as exc:
        if path.is_dir() and exc.reason in ("empty", "no-image"):
            return _not_searchable(ctx, exc.line, {"slices": 0})
        raise UploadRefused(exc.reason, exc.line, place=str(path), advice=exc.advice) from None
    folder = Path(tempfile.mkdtemp(prefix=ASK_PREFIX, dir=ctx.folders.work))
    try:
        cleaned = deidentify(ctx, inputs, folder, tell)
        tell(Stage.DEIDENTIFIED, 0.5)
        question = embed(ctx, inputs, cleaned)
        tell(Stage.EMBEDDED, 0.9)
        answer = search(ctx, question, k, text)
        tell(Stage.SEARCHED, 1.0)
        return answer
    except (InputError, QuarantineError, DeidError) as exc:  # the browser's files have no names; these were typed
        at = inputs.files[0] if inputs.is_picture else path
        exc.place = f"{at}: {exc.place}" if exc.place else str(at)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _not_searchable(ctx: Context, reason: str, said: dict[str, object]) -> Answer:
    verdict = Verdict(VerdictKind.NOT_SEARCHABLE, None, reason)
    return Answer(query=said, model_id=ctx.embedder.model_id, verdict=verdict, cases=(), searched=0)
