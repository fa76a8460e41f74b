"""Studies on their way through the workflow, without a network or a durable worker: spooled, claimed, stepped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import sqlalchemy as sa
from pydicom.dataset import Dataset
from torch import Tensor, nn

from dicomnode.archive import schema
from dicomnode.deid.iod import is_image
from dicomnode.domain import Role
from dicomnode.models.packing import CARD_SECTIONS, PackOptions, pack_module
from dicomnode.node import Node
from dicomnode.scp.records import ReceivedFile
from dicomnode.scp.spool import Spool
from dicomnode.workflow.process_study import STEPS

POOLED_DIM = 8
POOLED_CARD = "".join(f"## {section}\n\nof a test\n\n" for section in CARD_SECTIONS)


def receive(
    spool: Spool,
    instances: Iterable[Dataset | bytes],
    *,
    role: Role = Role.INDEX_QUERY,
    calling: str = "WORKSTATION",
    called: str = "DICOMNODE",
) -> int:
    """Store objects as a receiver does; bytes are stored as an object that could not be read. The study's row."""
    study = 0
    for instance in instances:
        incoming = spool.incoming(b"")
        if isinstance(instance, bytes):
            incoming.write(instance)
            uids = dict.fromkeys(("study_uid", "series_uid", "sop_class", "sop_uid"), "")
            image = True
        else:
            buffer = BytesIO()
            instance.save_as(buffer, enforce_file_format=True)
            incoming.write(buffer.getvalue())
            keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
            names = ("study_uid", "series_uid", "sop_class", "sop_uid")
            uids = {n: str(instance.get(k) or "") for n, k in zip(names, keywords, strict=True)}
            image = is_image(uids["sop_class"])
        incoming.close()
        assert incoming.error is None
        stored = spool.store(
            ReceivedFile(
                path=incoming.path,
                sha256=incoming.sha256,
                size=incoming.size,
                transfer_syntax="1.2.840.10008.1.2.1",
                image=image,
                called=called,
                calling=calling,
                role=role,
                **uids,
            )
        )
        study = stored.study_id
    return study


def job_of(node: Node, instances: Iterable[Dataset | bytes], **how) -> int:
    """A queued job of these objects."""
    job = node.spool.claim(receive(node.spool, instances, **how))
    assert job is not None
    return job


def process(node: Node, job: int, steps: Sequence[str] = tuple(name for name, _ in STEPS)) -> None:
    """The steps of a study, one after the other."""
    for name, step in STEPS:
        if name in steps:
            step(node.context, job)


def rows(node: Node) -> dict[str, list[tuple]]:
    """Every row of the catalogue."""
    with node.catalogue.engine.connect() as db:
        return {
            table.name: sorted(map(repr, map(tuple, db.execute(sa.select(table)))))
            for table in schema.metadata.sorted_tables
        }


def files(node: Node) -> dict[str, bytes]:
    """Every object file of the node: archive, work, results, outbox."""
    folders = (node.objects.folder, node.folders.work, node.folders.results, node.folders.outbox)
    return {str(p.relative_to(node.data_dir)): p.read_bytes() for f in folders for p in f.rglob("*") if p.is_file()}


class Pooled(nn.Module):
    """A model in a few lines: the mean of each of eight bands of a slice."""

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(images.shape[0], POOLED_DIM, -1).mean(2) + 0.01


def pooled_pack(folder: Path) -> Path:
    """A pack of ``Pooled``: quick, of another kind than the shipped one, and it outlines nothing."""
    return pack_module(Pooled(), folder, PackOptions(name="pooled", dim=POOLED_DIM, card=POOLED_CARD)).folder
