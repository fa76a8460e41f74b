"""``query``: an answer for files at hand. Nothing of the query is kept: no object, no vector, no vault entry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom

from dicomnode.domain import Answer, OriginalUid, Pseudonym, PseudoUid, SliceRef, Verdict, VerdictKind
from dicomnode.errors import InputError, QuarantineError
from dicomnode.index.cases import QueryStudy
from dicomnode.models.preprocess import is_dicom, prepare_picture
from dicomnode.workflow.context import Context
from dicomnode.workflow.identity import study_identity
from dicomnode.workflow.ingest import Added, find_files, group_by_study

PICTURE = PseudoUid("image")


def ask(ctx: Context, path: Path, k: int, text: str = "") -> Answer:
    """Similar cases of a DICOM file, a folder that holds one study, or a plain image.

    The patient is looked up, never created, so that the query's own cases are left out.

    Raises
    ------
    InputError
        If a plain image cannot be read, or a folder holds more than one study.
    """
    if path.is_file() and not is_dicom(path):
        pixels = prepare_picture(path).pixels
        query = QueryStudy(
            slices=(SliceRef(PICTURE, PseudoUid(""), PseudoUid(""), Pseudonym("")),),
            vectors=ctx.embedder.embed_images(pixels[None]),
            patient=None,
            study=None,
            modality="",
        )
        said = {"kind": "image", "modality": "", "slices": 1, "series": []}
        return _answer(ctx, query, k, text, said)
    return _ask_study(ctx, path, k, text)


def _ask_study(ctx: Context, path: Path, k: int, text: str) -> Answer:
    skipped = Added()
    studies = group_by_study(find_files([path]), skipped)
    if not studies:
        reason = ", ".join(f"{n} files: {why}" for why, n in skipped.skipped.items()) or "the folder is empty"
        return _not_searchable(ctx, f"no DICOM image found ({reason})")
    if len(studies) > 1:
        raise InputError(f"the folder holds {len(studies)} studies", place=str(path), advice="query one of them")
    study_uid, files = next(iter(studies.items()))
    try:
        issuer, patient_id = study_identity([f.path for f in files], study_uid, ctx.policy.default_issuer)
    except QuarantineError as exc:
        raise InputError(exc.line, place=str(path)) from None
    found = ctx.embedder.embed_study([f.path for f in files])
    if not found.slices:
        return _not_searchable(ctx, found.why_not or "no slice could be read")
    study = ctx.vault.uid(OriginalUid(study_uid))
    patient = ctx.vault.pseudonym_for(issuer, patient_id, create=False)
    slices = tuple(
        SliceRef(
            ctx.vault.uid(OriginalUid(str(s.instance_uid))),
            ctx.vault.uid(OriginalUid(str(s.series_uid))),
            study,
            patient or Pseudonym(""),
            s.frame,
            s.z,
        )
        for s in found.slices
    )
    modality = str(
        pydicom.dcmread(files[0].path, specific_tags=["Modality"], stop_before_pixels=True).get("Modality") or ""
    )
    query = QueryStudy(
        slices=slices, vectors=np.asarray(found.vectors), patient=patient, study=study, modality=modality
    )
    said = {"kind": "study", "modality": modality, "slices": len(slices), "series": [c.why for c in found.choices]}
    return _answer(ctx, query, k, text, said)


def _answer(ctx: Context, query: QueryStudy, k: int, text: str, said: dict[str, object]) -> Answer:
    allow = ctx.catalogue.studies_with_finding(text) if text else None
    found = ctx.retriever.retrieve(query, k, allow=allow)
    return Answer(
        query={**said, **({"text": text} if text else {})},
        model_id=found.model_id,
        verdict=found.verdict,
        cases=found.cases,
        searched=found.searched,
        calibrated=found.calibrated,
        search=found.search,
    )


def _not_searchable(ctx: Context, reason: str) -> Answer:
    verdict = Verdict(VerdictKind.NOT_SEARCHABLE, None, reason)
    return Answer(query={"slices": 0}, model_id=ctx.embedder.model_id, verdict=verdict, cases=(), searched=0)
