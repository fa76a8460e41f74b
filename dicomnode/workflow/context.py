"""What the workflow's steps are given: the parts, by their interfaces, and the folders between steps.

``Context`` is built once by the composition root (``node.py``). The work folder of a job holds only de-identified
things; what identifies is read from the spool and written to the outbox, both in the identified zone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # every process of the node needs the folders, only a worker the parts
    import numpy as np
    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from dicomnode.archive.answers import Answers, StoredAnswer
    from dicomnode.archive.catalogue import Catalogue
    from dicomnode.archive.objects import ObjectStore
    from dicomnode.archive.quarantine import Quarantine
    from dicomnode.deid.pool import DeidTask
    from dicomnode.deid.result import DeidResult
    from dicomnode.deid.vault import Vault
    from dicomnode.domain import Answer, ModelId, OriginalUid, Pseudonym, PseudoUid, Shows, SliceRef
    from dicomnode.errors import DicomnodeError
    from dicomnode.index.cases import QueryStudy
    from dicomnode.index.takeover import Source
    from dicomnode.models.gate import Seen
    from dicomnode.models.study import See, StudyEmbedding
    from dicomnode.scp.spool import Spool
    from dicomnode.telemetry.metrics import Metrics
    from dicomnode.workflow.models import Models
    from dicomnode.workflow.peers import Destination


Progress = Callable[[int, int], None]  # done, total


class DeidPort(Protocol):
    """De-identification of files in recycled processes."""

    def run(self, tasks: Sequence[DeidTask]) -> list[DeidResult | DicomnodeError]: ...


class EmbedPort(Protocol):
    """Series choice, key slices, input gate and embedding of a study's de-identified files."""

    @property
    def model_id(self) -> ModelId: ...

    @property
    def taught(self) -> tuple[Shows, ...]: ...

    @property
    def modalities(self) -> frozenset[str]: ...

    def embed_study(self, paths: Sequence[Path], see: See | None = None, *, gated: bool = True) -> StudyEmbedding: ...

    def embed_images(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...

    def judge(
        self,
        images: npt.NDArray[np.float32],
        *,
        claimed: bool = False,
        colours: Sequence[float] = (),
        modality: str = "",
    ) -> tuple[Seen, ...]: ...


class VectorPort(Protocol):
    """The vector store."""

    def add(
        self, refs: Sequence[SliceRef], vectors: npt.NDArray[np.float32], *, beside: Sequence[int] | None = None
    ) -> int: ...

    def vectors_of(self, uid: PseudoUid) -> npt.NDArray[np.float32]: ...

    def to_embed(self, uid: PseudoUid) -> list[Source]: ...

    def has_study(self, uid: PseudoUid) -> bool: ...

    def remove_study(self, uid: PseudoUid) -> int: ...

    def remove_patient(self, pseudonym: Pseudonym) -> int: ...

    def move_patient(self, former: Pseudonym, kept: Pseudonym) -> int: ...


class ThumbnailPort(Protocol):
    """Small pictures of embedded slices, for the viewer."""

    def put(self, study: PseudoUid, instance: PseudoUid, frame: int, pixels: npt.NDArray[np.uint8]) -> object: ...

    def remove_study(self, study: PseudoUid) -> None: ...


class RetrievePort(Protocol):
    """From a query's vectors to an answer."""

    def retrieve(self, query: QueryStudy, k: int, *, allow: set[PseudoUid] | None = None) -> Answer: ...


@dataclass(frozen=True, slots=True)
class QueryImageRef:
    """An original image that the report may point at (identified zone)."""

    pseudo: PseudoUid
    sop_instance_uid: OriginalUid
    sop_class_uid: str
    series_instance_uid: OriginalUid
    path: Path


class ReportPort(Protocol):
    """Builds the objects of an answer as encoded files (PS3.10), the same bytes for the same input."""

    def build(
        self,
        kind: str,
        header: Dataset,
        stored: StoredAnswer,
        images: Sequence[QueryImageRef],
        predecessor: StoredAnswer | None,
        started: float,
    ) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Folders:
    """Where things lie between steps. ``work`` and ``results`` are de-identified, ``outbox`` is not."""

    work: Path
    results: Path
    outbox: Path

    def job(self, job_id: int) -> Path:
        return self.work / str(job_id)

    def sent(self, result_id: int) -> Path:
        return self.outbox / f"{result_id}.dcm"

    def sent_enhanced(self, result_id: int) -> Path:
        """The same report as Enhanced SR, for a peer that takes no Comprehensive SR."""
        return self.outbox / f"{result_id}.enhanced.dcm"

    def remove_sent(self, results: Iterable[int]) -> None:
        """Delete the objects of results in both forms, where they are there: never to be sent again."""
        for result_id in results:
            self.sent(result_id).unlink(missing_ok=True)
            self.sent_enhanced(result_id).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that steps depend on."""

    k: int
    default_issuer: str
    answer_rejected: bool
    recipe: str  # hash of the compiled de-identification recipe, for provenance


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a step may call: embedder, vectors and retriever of one model, and ``models`` for the others."""

    spool: Spool
    vault: Vault
    deid: DeidPort
    objects: ObjectStore
    thumbnails: ThumbnailPort
    catalogue: Catalogue
    answers: Answers
    quarantine: Quarantine
    embedder: EmbedPort
    vectors: VectorPort
    retriever: RetrievePort
    reporter: ReportPort
    destinations: Sequence[Destination]
    folders: Folders
    policy: Policy
    metrics: Metrics
    models: Models
