"""A model takes over: the repository is embedded anew from the archived objects while the one in force answers.

Exactly the slices that the other model has are embedded, study by study, each added whole or not at all: whatever
stops it, the same command goes on where it was. Old vectors stay, so that going back embeds only what came since.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import structlog

from dicomnode.domain import PseudoUid
from dicomnode.errors import DicomnodeError, InputError, NotFound, StorageFull
from dicomnode.index import takeover as index_side
from dicomnode.index.repository import VectorIndex
from dicomnode.index.takeover import Source
from dicomnode.models.preprocess import prepare_dicom
from dicomnode.workflow.captures import LABELS, capture_pixels
from dicomnode.workflow.context import Context, Progress

log = structlog.get_logger(__name__)

BATCH = 16  # prepared slices held at once
ROUNDS = 1000  # in which studies go on arriving faster than they are caught up with

Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class TakenOver:
    """What a takeover did.

    Attributes
    ----------
    embedded : studies that were embedded.
    failed : studies that could not be, and why; they have no vectors of the new model.
    """

    embedded: int = 0
    failed: dict[PseudoUid, str] = field(default_factory=dict)


def carry(ctx: Context, study: PseudoUid) -> int:
    """Embed the slices of a study that another model has and ``ctx``'s lacks; how many were added.

    Raises
    ------
    DicomnodeError
        A slice cannot be read or embedded; nothing of the study was added.
    """
    sources = ctx.vectors.to_embed(study)
    if not sources:
        return 0
    captured = ctx.catalogue.source_of(study) == LABELS
    vectors: list[Floats] = []
    for at in range(0, len(sources), BATCH):
        images = [_prepared(ctx, source, captured=captured) for source in sources[at : at + BATCH]]
        vectors.append(ctx.embedder.embed_images(np.stack(images)))
    added = ctx.vectors.add([s.ref for s in sources], np.concatenate(vectors), beside=[s.vector for s in sources])
    if added:
        ctx.catalogue.note(study, "indexed", {"model_id": ctx.embedder.model_id, "vectors": len(sources)})
    return added


def _prepared(ctx: Context, source: Source, *, captured: bool) -> Floats:
    relative = ctx.catalogue.path_of(source.ref.instance)
    if relative is None:
        raise NotFound("an image of the study is no longer in the archive")
    path = ctx.objects.path(relative)
    try:
        return capture_pixels(path) if captured else prepare_dicom(path, source.ref.frame).pixels
    except OSError as exc:
        raise InputError("an image of the study cannot be read", advice="dicomnode index verify") from exc


def settle(ctx: Context, study: PseudoUid) -> None:
    """After a study's vectors were added: where another model was put in force meanwhile, it gets that one's too.

    Together with the writers' lock this leaves no gap: either ``put_in_force`` sees the study, or this sees the switch.
    """
    active = ctx.models.active().context
    if active.embedder.model_id != ctx.embedder.model_id:
        carry(active, study)


def take_over(
    ctx: Context,
    index: VectorIndex,
    commit: Callable[[], None],
    *,
    leave_out: bool = False,
    progress: Progress | None = None,
) -> TakenOver:
    """Embed what the model lacks, then put it in force.

    Parameters
    ----------
    ctx : Context
        With the model that takes over.
    index : VectorIndex
        Of that model.
    commit : callable
        Writes that the model is in force.
    leave_out : bool
        Put it in force without the studies that cannot be embedded.

    Raises
    ------
    InputError
        Studies cannot be embedded; the model was not put in force.
    StorageFull
    """
    index.admit()
    done = TakenOver()
    total = 0
    for _ in range(ROUNDS):
        seen = index_side.last_id(index.store.engine)
        missing = [s for s in index_side.lacking(index.store) if s not in done.failed]
        total += len(missing)
        for study in missing:
            _tell(progress, done, total)
            _carried(ctx, study, done)
        _tell(progress, done, total)
        if done.failed and not leave_out:
            raise InputError(
                f"{len(done.failed)} studies cannot be embedded with this model, the first because: "
                f"{next(iter(done.failed.values()))}; the model before stays in force",
                advice="dicomnode index verify, or --leave-out to go on without them",
            )
        if not missing:
            index.build_if_due()
            if not index_side.put_in_force(index.store, commit, seen, done.failed):
                return done
    raise InputError(
        "studies arrive faster than they can be embedded", advice="run the command again at a quieter time"
    )


def _tell(progress: Progress | None, done: TakenOver, total: int) -> None:
    if progress:
        progress(done.embedded + len(done.failed), total)


def _carried(ctx: Context, study: PseudoUid, done: TakenOver) -> None:
    try:
        carry(ctx, study)
    except StorageFull:
        raise
    except DicomnodeError as exc:
        log.warning("study_not_embedded", code=exc.code, line=exc.line)
        done.failed[study] = exc.line
    else:
        done.embedded += 1
