"""Takes a study, or all that there is of a patient, out of the node for good: wherever the node keeps it.

Vectors first, so that no answer can show what is going; rows last, so that the same command again finishes what a kill
left; the vault's entry at the very end, as it is what leads to the rest. What stays: the audit trail, with the
pseudonym that leads nowhere any more, and what was sent to a PACS. Never logs more than numbers.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from dicomnode.archive.amending import Amended, Amending
from dicomnode.deid.vault import PatientKey
from dicomnode.domain import Pseudonym, PseudoUid
from dicomnode.errors import Busy, QuarantineError
from dicomnode.scp.records import HeldStudy
from dicomnode.scp.schema import JobState
from dicomnode.workflow.context import Context
from dicomnode.workflow.identity import NOBODY, study_identity

log = structlog.get_logger(__name__)

ANSWER_S = 300.0  # a large study on a slow machine; the command says so and may be given again
POLL_S = 0.2


@dataclass(slots=True)
class Removed:
    """What was there and is gone. ``scrubbed``: the databases hold no bytes of it either."""

    studies: int = 0
    answers: int = 0
    changed_answers: int = 0
    originals: int = 0
    ids: int = 0
    scrubbed: bool = True

    @property
    def anything(self) -> bool:
        return bool(self.studies or self.answers or self.originals or self.ids)


def remove_studies(ctx: Context, studies: Sequence[PseudoUid], *, worker_runs: bool = False) -> Removed:
    """Take studies out: objects, vectors, thumbnails, the answers about them, and their place in answers to others.

    Raises
    ------
    Busy
        ``worker_runs``, and one of them is in its hands. Nothing was changed.
    """
    held = [_Part(one, one.files, True) for one in ctx.spool.held_studies() if ctx.vault.uid(one.study_uid) in studies]
    there = [study for study in studies if ctx.catalogue.patient_of(study) is not None]
    done = _remove(ctx, studies, (), held, worker_runs=worker_runs)
    for study in there:
        ctx.catalogue.note(study, "removed", {})
    return done


def remove_patient(
    ctx: Context, names: Sequence[Pseudonym], keys: Sequence[PatientKey], *, worker_runs: bool = False
) -> Removed:
    """Take a patient out, the entry of the vault included, and nothing of anybody else.

    Of a study that the spool holds with images of several patients only this one's go. A study that the catalogue
    knows as another patient's stays, whatever was once asked under this one's id.

    Parameters
    ----------
    names : sequence of Pseudonym
        All pseudonyms of the patient; none where the vault does not know them.
    keys : sequence of PatientKey
        All ids of the patient: originals in the spool are found by them.

    Raises
    ------
    Busy
        ``worker_runs``, and a study of the patient is in its hands (nothing was changed), or another one that may show
        the patient does not end.
    """
    owned = {study for name in names for study in ctx.catalogue.studies_of(name)}
    asked = set(Amending(ctx.catalogue.engine).studies_of(names))
    studies = owned | _nobody_elses(ctx, asked, names)
    held = []
    for one in ctx.spool.held_studies():
        study = ctx.vault.uid(one.study_uid)
        found = _part_of(one, keys, ctx.policy.default_issuer, known=study in studies)
        if found is None:
            continue
        held.append(found)
        if found.whole and one.study_uid:
            studies |= _nobody_elses(ctx, {study}, names)
    done = _remove(ctx, sorted(studies), names, held, worker_runs=worker_runs)
    for name in names[:1]:
        done.ids = ctx.vault.forget(name)
        done.scrubbed = ctx.vault.swept() and done.scrubbed
    log.info("patient_removed", studies=done.studies)
    return done


@dataclass(frozen=True, slots=True)
class _Part:
    """What goes of a study that the spool holds: ``files``, or all of it with its jobs."""

    held: HeldStudy
    files: tuple[Path, ...]
    whole: bool


def _nobody_elses(ctx: Context, studies: Collection[PseudoUid], names: Collection[Pseudonym]) -> set[PseudoUid]:
    """Those that the catalogue does not know as another patient's."""
    owners = {study: ctx.catalogue.patient_of(study) for study in studies}
    return {study for study, owner in owners.items() if owner is None or owner in names}


def _part_of(held: HeldStudy, keys: Sequence[PatientKey], default_issuer: str, *, known: bool) -> _Part | None:
    """What of a held study is the patient's; None where nothing is. ``known``: it is a study of the patient's.

    A file without a Patient ID belongs to whom the rest of the study does, where that is one patient.
    """
    wanted = {(key.issuer, key.patient_id) for key in keys}
    whose = {file: _identity(file, held.study_uid, default_issuer) for file in held.files}
    named = {file: identity for file, identity in whose.items() if not _is_nobody(identity, held.study_uid)}
    mine = {file for file, identity in whose.items() if identity in wanted}
    others = {file for file, identity in named.items() if identity not in wanted}
    if not mine and (not known or others):
        return None
    if not others:
        return _Part(held, held.files, True)
    return _Part(held, tuple(sorted(mine)), False)


def _is_nobody(identity: tuple[str, str], study_uid: str) -> bool:
    return identity in (("", ""), NOBODY, ("study", study_uid))


def _identity(file: Path, study_uid: str, default_issuer: str) -> tuple[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes odd values in its warnings
        try:
            return study_identity([file], study_uid, default_issuer)
        except QuarantineError:
            return ("", "")


def _remove(
    ctx: Context,
    studies: Sequence[PseudoUid],
    names: Collection[Pseudonym],
    held: Sequence[_Part],
    *,
    worker_runs: bool,
) -> Removed:
    if worker_runs and any(part.held.waiting for part in held):
        line = "a study that is to be removed is being worked on"
        raise Busy(line, place="index remove", advice="wait until it is answered, or stop the node")
    done, amending = Removed(), Amending(ctx.catalogue.engine)
    for study in studies:
        ctx.vectors.remove_study(study)
    for name in names:
        ctx.vectors.remove_patient(name)
    if worker_runs:  # whoever searched before the vectors went may still show them
        _wait_for_answers(ctx)
    for study in studies:
        ctx.objects.remove_study(study)
        ctx.thumbnails.remove_study(study)
    _remove_sent(ctx, amending.results_naming(studies, names))
    amended = amending.forget(studies, names)
    done.answers, done.changed_answers = amended.answers, amended.changed
    done.studies = sum([ctx.catalogue.remove_study(study) for study in studies])
    whole = [part.held for part in held if part.whole]
    ctx.catalogue.forget(studies, tuple(names), [job for one in whole for job in one.jobs])
    for part in held:
        done.originals += ctx.spool.forget(part.held) if part.whole else ctx.spool.forget_files(part.held, part.files)
        for job in part.held.jobs if part.whole else ():
            shutil.rmtree(ctx.folders.job(job), ignore_errors=True)
    done.scrubbed = all([ctx.catalogue.scrub(), ctx.spool.scrub()])
    return done


def _wait_for_answers(ctx: Context) -> None:
    """Until the studies that the worker has in hand now are through.

    Raises
    ------
    Busy
        One takes longer than ``ANSWER_S``.
    """
    deadline = time.monotonic() + ANSWER_S
    mine = set(ctx.spool.job_ids(JobState.RUNNING))
    while mine & set(ctx.spool.job_ids(JobState.RUNNING)):
        if time.monotonic() > deadline:
            line = "another study is being worked on that may show what is to be removed; no search finds it any more"
            raise Busy(line, place="index remove", advice="give the command again, or stop the node first")
        time.sleep(POLL_S)


def _remove_sent(ctx: Context, amended: Amended) -> None:
    """Delete what was sent, or is about to be, and the key slices of the questions."""
    ctx.folders.remove_sent(amended.results)
    for relative in amended.paths:
        path = ctx.folders.results / relative
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()
