"""The way of a study, from spool to outbox: deid, archive, embed, index, retrieve, report.

Each step is a function ``step(ctx, job_id)`` that may run again after a kill at any point, so each is idempotent:
it writes the same files and rows under the same names. Between steps only files in the job's work folder and rows
are handed on, never values through the durable log. See docs/architecture.md for the picture.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog

from dicomnode.archive.answers import PENDING, QuerySlice, StoredAnswer
from dicomnode.archive.catalogue import StoredInstance
from dicomnode.archive.objects import sha256_of
from dicomnode.archive.records import InstanceRecord, read_record, said_of_study
from dicomnode.deid.by_hand import ByHand
from dicomnode.deid.faces import Face
from dicomnode.deid.pool import DeidTask
from dicomnode.deid.result import MASKED
from dicomnode.domain import Answer, ModelId, OriginalUid, Pseudonym, PseudoUid, Shows, SliceRef, Verdict, VerdictKind
from dicomnode.durable import sync_folder
from dicomnode.errors import DicomnodeError, QuarantineError, StorageFull
from dicomnode.index.cases import QueryStudy
from dicomnode.scp.records import Job
from dicomnode.workflow.context import Context, QueryImageRef
from dicomnode.workflow.identity import NOBODY, study_identity
from dicomnode.workflow.peers import destinations_for
from dicomnode.workflow.reporting import SR, SR_ENHANCED, read_header, result_kinds
from dicomnode.workflow.takeover import settle

if TYPE_CHECKING:
    from dicomnode.models.study import StudyEmbedding

log = structlog.get_logger(__name__)

LOOP_ROUNDS = 5
LOOP_PAUSE_S = 600.0
STAGED, SUBJECT, EMBEDDING, CHOICES = "staged", "subject.json", "embedding.npz", "choices.json"


def deidentify(ctx: Context, job_id: int) -> None:
    """Spool -> de-identified, audited objects in the job's work folder.

    What cannot pass is split off into a quarantined job of its own, so that a dose screen or one damaged image does
    not cost the study its answer.

    Raises
    ------
    QuarantineError
        If the study mixes patients, or nothing of it may pass.
    """
    job = ctx.spool.job(job_id)
    first = [i for i in job.instances if i.image and i.version == 1]
    later = [i for i in job.instances if i.image and i.version > 1]
    if later:
        line = f"{len(later)} images came again with the same UID and other bytes; the first were used"
        advice = "where the later ones are right, have them sent under new UIDs; then: dicomnode quarantine discard ID"
        error = QuarantineError("version-conflict", line, advice=advice)
        _hold(ctx, job_id, "version-conflict", [i.id for i in later], error)
    issuer, patient_id = study_identity([i.path for i in first], job.study_uid, ctx.policy.default_issuer)
    readable = bool(first) and (issuer, patient_id) != NOBODY
    subject = ctx.vault.subject_for(issuer, patient_id, create=job.role.keeps and readable)

    folder = ctx.folders.job(job_id)
    shutil.rmtree(folder, ignore_errors=True)
    staged = folder / STAGED
    staged.mkdir(parents=True)
    outcomes = ctx.deid.run(
        [DeidTask(i.path, staged / f"{i.id}.dcm", subject, by_hand=ByHand.from_text(i.by_hand)) for i in first]
    )

    faces, pixels = 0, Counter[str]()
    refused: dict[str, list[int]] = {}
    lines: dict[str, DicomnodeError] = {}
    for instance, outcome in zip(first, outcomes, strict=True):
        if isinstance(outcome, StorageFull):
            raise outcome  # heals: the step is tried again, nothing is held for it
        if isinstance(outcome, DicomnodeError):
            reason = getattr(outcome, "reason", outcome.code)
            refused.setdefault(reason, []).append(instance.id)
            lines.setdefault(reason, outcome)
        else:
            faces += outcome.face != Face.NONE
            pixels[outcome.pixels] += 1
    if first and sum(map(len, refused.values())) == len(first):
        worst = max(refused, key=lambda r: len(refused[r]))
        raise QuarantineError(worst, lines[worst].line, place=lines[worst].place, advice=lines[worst].advice)
    for reason, ids in refused.items():
        _hold(ctx, job_id, reason, ids, lines[reason])
    _write_json(folder / SUBJECT, {"pseudonym": subject.pseudonym})
    passed = len(first) - sum(map(len, refused.values()))
    for word, images in pixels.items():
        ctx.metrics.deidentified(word, images)
    log.info("deidentified", job=job_id, instances=passed, held=len(refused), faces=faces, masked=pixels[MASKED])


def _hold(ctx: Context, job_id: int, reason: str, ids: Sequence[int], error: DicomnodeError) -> None:
    held = ctx.spool.split_off(job_id, ids, note=reason)
    line = error.line if reason == "version-conflict" else f"{len(ids)} of the study's objects: {error.line}"
    item = ctx.quarantine.hold(reason, line, place=error.place, advice=error.advice, job_id=held)
    ctx.metrics.quarantined(reason)
    log.warning("quarantined", job=held, item=item, reason=reason, instances=len(ids))


def archive(ctx: Context, job_id: int) -> None:
    """De-identified objects -> archive and catalogue (not for role "query")."""
    job = ctx.spool.job(job_id)
    if not job.role.keeps:
        return
    records = _staged(ctx, job_id)
    archive_records(ctx, records, source="received")
    decided = sum(bool(i.by_hand) for i in job.instances)
    if records and decided:
        ctx.catalogue.note(records[0][1].study_uid, "released-by-hand", {"instances": decided})


def archive_records(ctx: Context, records: Sequence[tuple[Path, InstanceRecord]], *, source: str) -> None:
    """Copy de-identified files of one study into the archive and catalogue them.

    An object that came again with other bytes replaces the old one, and the study's vectors with it.
    """
    if not records:
        return
    study = records[0][1].study_uid
    known = {k.uid: k.sha256 for k in ctx.catalogue.known_instances(study)}
    stored = []
    for path, record in records:
        digest = sha256_of(path)
        if known.get(record.uid) != digest:
            stored.append(StoredInstance(record, ctx.objects.put(path, record.study_uid, record.uid), digest))
    if any(s.record.uid in known for s in stored):
        ctx.vectors.remove_study(study)
        ctx.thumbnails.remove_study(study)
    ctx.catalogue.add_study(stored, source=source)
    ctx.catalogue.note(study, "deidentified", {"recipe": ctx.policy.recipe, "instances": len(records)})


def embed(ctx: Context, job_id: int) -> Context:
    """Series choice, key slices, embedding by the model in force -> vectors in the work folder.

    Returns the context with that model.
    """
    ctx = ctx.models.active().context
    job = ctx.spool.job(job_id)
    records = _staged(ctx, job_id)
    paths = [path for path, _ in records]
    study = None
    if job.role.keeps and records:  # late images are read together with what the archive has of the study
        study = records[0][1].study_uid
        paths = [ctx.objects.path(k.path) for k in ctx.catalogue.known_instances(study)]
    embed_paths(ctx, paths, ctx.folders.job(job_id), study)
    return ctx


def embed_paths(
    ctx: Context, paths: Sequence[Path], folder: Path, study: PseudoUid | None, *, gated: bool = True
) -> StudyEmbedding:
    """Embed de-identified files of one study; writes ``embedding.npz`` and ``choices.json``.

    ``study``: of the repository, where thumbnails of its key slices are kept; None: nothing is kept. ``gated`` False:
    what the input gate thinks of it does not count.
    """

    def see(instance: PseudoUid, frame: int, pixels: np.ndarray) -> None:
        if study is not None:
            ctx.thumbnails.put(study, instance, frame, np.rint(pixels * 255).astype(np.uint8))

    found = ctx.embedder.embed_study(paths, see, gated=gated)
    rows = [(s.instance_uid, s.series_uid, s.frame, s.z) for s in found.slices]
    part = folder / (EMBEDDING + ".part")
    with part.open("wb") as f:
        np.savez(
            f,
            vectors=found.vectors,
            instance=np.array([r[0] for r in rows], dtype=str),
            series=np.array([r[1] for r in rows], dtype=str),
            frame=np.array([r[2] for r in rows], dtype=np.int64),
            z=np.array([r[3] for r in rows], dtype=np.float64),
        )
    part.replace(folder / EMBEDDING)
    _write_json(
        folder / CHOICES,
        {
            "model_id": ctx.embedder.model_id,
            "chosen": [{"series": c.series_uid, "reason": str(c.reason), "why": c.why} for c in found.choices],
            "not_searchable": found.why_not,
        },
    )
    return found


def index(ctx: Context, job_id: int) -> None:
    """Vectors -> index (not for role "query")."""
    if not ctx.spool.job(job_id).role.keeps:
        return
    records = _staged(ctx, job_id)
    if records:
        ctx = _embedded_by(ctx, job_id)
        index_folder(ctx, ctx.folders.job(job_id), records[0][1].study_uid, records[0][1].patient)
        why = _embedding(ctx.folders.job(job_id))[2]["not_searchable"]
        if why and not ctx.spool.job(job_id).role.answers:  # whom an answer tells nothing, a person must be told
            raise QuarantineError("not-searchable", f"nothing of it can be a case: {why}")


def index_folder(ctx: Context, folder: Path, study: PseudoUid, patient: Pseudonym) -> int:
    """Add a work folder's vectors to the index; returns how many were new."""
    slices, vectors, choices = _embedding(folder)
    refs = [SliceRef(s.instance, s.series, study, patient, s.frame, s.z) for s in slices]
    ctx.catalogue.mark_chosen({PseudoUid(c["series"]): c["reason"] for c in choices["chosen"]})
    added = ctx.vectors.add(refs, vectors) if refs else 0
    ctx.catalogue.note(study, "indexed", {"model_id": choices["model_id"], "vectors": len(refs)})
    settle(ctx, study)
    return added


def _embedded_by(ctx: Context, job_id: int) -> Context:
    """With the model that embedded the job's study, so that its answer is of one model whatever happens meanwhile.

    Where that model has gone since, the study is embedded again by the one in force.
    """
    model_id = ModelId(_embedding(ctx.folders.job(job_id))[2]["model_id"])
    active = ctx.models.active()
    if model_id == active.model_id:
        return active.context
    model = ctx.models.of(model_id)
    if model is not None and model.index.store.count():
        return model.context
    return embed(ctx, job_id)


def retrieve(ctx: Context, job_id: int) -> int | None:
    """Vectors -> answer. The answer to (study, set of instances, model) is computed once; else the stored one.

    Returns the answer's row, None for role "index".
    """
    job = ctx.spool.job(job_id)
    records = _staged(ctx, job_id)
    if not job.role.answers or not records:
        return None
    ctx = _embedded_by(ctx, job_id)
    study, patient = records[0][1].study_uid, records[0][1].patient
    instances = [r.uid for _, r in records]
    if job.role.keeps:
        instances = [k.uid for k in ctx.catalogue.known_instances(study)]
    earlier = ctx.answers.latest(study)
    if earlier is not None:
        instances = sorted({*instances, *earlier.instances})
    stored = ctx.answers.find(study, instances, ctx.embedder.model_id)
    if stored is None:
        stored = _compute(ctx, job, records, study, patient, instances, earlier)
    log.info("answered", job=job_id, answer=stored.id, verdict=stored.answer.verdict.kind.value)
    ctx.spool.set_answer(job_id, stored.id)
    return stored.id


def _compute(
    ctx: Context,
    job: Job,
    records: Sequence[tuple[Path, InstanceRecord]],
    study: PseudoUid,
    patient: Pseudonym,
    instances: Sequence[PseudoUid],
    earlier: StoredAnswer | None,
) -> StoredAnswer:
    slices, vectors, choices = _embedding(ctx.folders.job(job.id))
    if earlier is not None and not job.role.keeps and earlier.model_id == ctx.embedder.model_id:
        # Role "query" keeps no objects: what the study had before is known by the key slices of its last answer.
        new = {s.instance for s in slices}
        kept = [s for s in ctx.answers.slices(earlier.id) if s.instance_uid not in new]
        slices = [*slices, *(SliceRef(s.instance_uid, PseudoUid(""), study, patient, s.frame, s.z) for s in kept)]
        vectors = np.concatenate([vectors, *(s.vector[None] for s in kept)]) if kept else vectors
    said = said_of_study([r for _, r in records], {s.instance for s in slices}, ctx.embedder.taught)
    said |= {"slices": len(slices), "series": [c["why"] for c in choices["chosen"]]}
    if len(slices):
        query = QueryStudy(
            slices=tuple(slices),
            vectors=vectors,
            patient=patient,
            study=study,
            shows=Shows.said_in(said),
            model_id=ModelId(choices["model_id"]),
        )
        answer = replace(ctx.retriever.retrieve(query, ctx.policy.k), query=said)
    else:
        reason = choices["not_searchable"] or "no slice could be read"
        verdict = Verdict(VerdictKind.NOT_SEARCHABLE, None, reason)
        answer = Answer(query=said, model_id=ModelId(choices["model_id"]), verdict=verdict, cases=(), searched=0)
    ctx.metrics.verdict(answer.verdict.kind.value)
    kept_slices = _keep_slices(ctx, study, records, slices, vectors)
    whose = patient if ctx.vault.knows(patient) else None  # a passing pseudonym of role "query" is nobody's
    stored = ctx.answers.add(study, instances, answer, role=job.role, slices=kept_slices, patient=whose)
    ctx.catalogue.note(study, "answered", {"answer": stored.id, "verdict": answer.verdict.kind.value})
    return stored


def _keep_slices(
    ctx: Context,
    study: PseudoUid,
    records: Sequence[tuple[Path, InstanceRecord]],
    slices: Sequence[SliceRef],
    vectors: np.ndarray,
) -> list[QuerySlice]:
    """Keep the query's de-identified key slices beside the answer, outside the index."""
    by_uid = {r.uid: p for p, r in records}
    by_uid.update({k.uid: ctx.objects.path(k.path) for k in ctx.catalogue.known_instances(study)})
    kept = []
    for ref, vector in zip(slices, vectors, strict=True):
        relative = f"{study}/{ref.instance}.dcm"
        target = ctx.folders.results / relative
        source = by_uid.get(ref.instance)
        if source is not None and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            part.unlink(missing_ok=True)
            _link_or_copy(source, part)
            part.replace(target)
        kept.append(QuerySlice(ref.instance, ref.frame, relative, vector, ref.z))
    return kept


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def report(ctx: Context, job_id: int) -> None:
    """Answer + identified header -> objects in the outbox, one result row a destination and kind."""
    job = ctx.spool.job(job_id)
    if job.answer_id is None:
        return
    stored = ctx.answers.by_id(job.answer_id)
    if stored.answer.verdict.kind is VerdictKind.NOT_SEARCHABLE and not ctx.policy.answer_rejected:
        raise QuarantineError(
            "not-searchable",
            f"no answer was sent: {stored.answer.verdict.reason}",
            advice="set [retrieval] answer_rejected to report this to the sender; release it to try again",
        )
    images = _query_images(ctx, job)
    header = read_header(_header_path(stored, images))
    accession = str(header.get("AccessionNumber") or "").strip()
    if accession:
        ctx.answers.set_accession(stored.id, ctx.vault.keyed_hash("accession", accession))
    predecessor = None if stored.predecessor_id is None else ctx.answers.by_id(stored.predecessor_id)
    started = ctx.answers.first_created(stored.study_uid)
    # Asked before anything is written: a first object may be delivered while the next one is built.
    came_again = [r.id for r in ctx.answers.results(answer_id=stored.id) if r.state != PENDING]
    for destination in destinations_for(job.calling, ctx.destinations):
        for kind in result_kinds(destination.objects):
            result_id = ctx.answers.add_result(stored.id, kind, destination.name)
            target = ctx.folders.sent(result_id)
            if target.exists():  # the study came again: the stored bytes are sent again, never others
                continue
            if kind == SR:  # a peer may take Enhanced SR only; which, is known when it is connected to
                enhanced = ctx.reporter.build(SR_ENHANCED, header, stored, images, predecessor, started)
                _write_durable(ctx.folders.sent_enhanced(result_id), enhanced)
            _write_durable(target, ctx.reporter.build(kind, header, stored, images, predecessor, started))
    _send_again(ctx, stored, came_again)


def _send_again(ctx: Context, stored: StoredAnswer, came_again: Collection[int]) -> None:
    """The same study came again: results that were delivered or had failed are sent once more.

    A PACS whose routing rule does not skip our reports sends the study back for each of them: after a few rounds
    such a loop is held down to one round in ``LOOP_PAUSE_S``.
    """
    for result in ctx.answers.results(answer_id=stored.id):
        if result.id not in came_again or result.state == PENDING or not ctx.folders.sent(result.id).exists():
            continue
        recent = result.delivered is not None and time.time() - result.delivered < LOOP_PAUSE_S
        if result.resends >= LOOP_ROUNDS and recent:
            log.warning("resend_held", result=result.id, resends=result.resends)
            continue
        ctx.answers.mark_resend(result.id)


def _query_images(ctx: Context, job: Job) -> list[QueryImageRef]:
    return [
        QueryImageRef(
            pseudo=ctx.vault.uid(OriginalUid(i.sop_uid)),
            sop_instance_uid=OriginalUid(i.sop_uid),
            sop_class_uid=i.sop_class,
            series_instance_uid=OriginalUid(i.series_uid),
            path=i.path,
        )
        for i in job.instances
        if i.image and i.version == 1 and i.sop_uid
    ]


def _header_path(stored: StoredAnswer, images: Sequence[QueryImageRef]) -> Path:
    """The original whose header the report continues: the image of the best match, else any."""
    by_pseudo = {i.pseudo: i.path for i in images}
    for case in stored.answer.cases:
        for match in case.matches:
            if match.query_instance in by_pseudo:
                return by_pseudo[match.query_instance]
    return images[0].path


def _staged(ctx: Context, job_id: int) -> list[tuple[Path, InstanceRecord]]:
    folder = ctx.folders.job(job_id) / STAGED
    return [(p, read_record(p)) for p in sorted(folder.glob("*.dcm"), key=lambda p: int(p.stem))]


def _embedding(folder: Path) -> tuple[list[SliceRef], np.ndarray, dict]:  # type: ignore[type-arg]
    choices = json.loads((folder / CHOICES).read_text())
    with np.load(folder / EMBEDDING) as data:
        vectors = data["vectors"]
        slices = [
            SliceRef(PseudoUid(str(i)), PseudoUid(str(s)), PseudoUid(""), Pseudonym(""), int(f), z)
            for i, s, f, z in zip(data["instance"], data["series"], data["frame"], data["z"].tolist(), strict=True)
        ]
    return slices, vectors, choices


def _write_json(path: Path, value: object) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(path)


def _write_durable(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)
    sync_folder(path.parent)


Step = Callable[[Context, int], object]
STEPS: tuple[tuple[str, Step], ...] = (
    ("deid", deidentify),
    ("archive", archive),
    ("embed", embed),
    ("index", index),
    ("retrieve", retrieve),
    ("report", report),
)
