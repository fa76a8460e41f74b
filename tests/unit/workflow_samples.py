"""Studies on their way through the workflow, without a network or a durable worker: spooled, claimed, stepped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from torch import Tensor, nn

from dicomnode.archive import schema
from dicomnode.deid.iod import is_image
from dicomnode.domain import Role
from dicomnode.models.packing import CARD_SECTIONS, PackOptions, pack_module
from dicomnode.node import Node
from dicomnode.scp.records import ReceivedFile
from dicomnode.scp.spool import Spool
from dicomnode.testing import sample_study
from dicomnode.testing.phantom import Thorax
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


def slice_picture(seed: int = 0, size: tuple[int, int] = (90, 70)) -> Image.Image:
    """An 8-bit grey picture of a slice of the computed thorax, one for each seed, as the input gate lets in."""
    hounsfield = Thorax.draw(seed, None, 10.0).cut(90.0 + 13.0 * (seed % 8), 128)
    return Image.fromarray(np.clip((hounsfield + 1350) / 1500 * 255, 0, 255).astype(np.uint8)).resize(size)


def page_picture(size: tuple[int, int] = (300, 400)) -> Image.Image:
    """A page of text, as the input gate refuses it."""
    page = Image.new("L", (700, 900), 255)
    draw = ImageDraw.Draw(page)
    for n in range(40):
        line = "Findings: the lungs are clear. Dose length product 412.7 mGycm, exposure 3.1 s"
        draw.text((40, 30 + 21 * n), line[: 30 + 7 * (n % 8)], fill=10, font_size=17)
    return page.resize(size)


def pages_in_ct(slices: int = 3, **attributes: object) -> list[Dataset]:
    """A study that claims to be CT, all of whose images show a page of text."""
    study = sample_study(slices, matrix=256, **attributes)
    for image in study:
        image.PixelData = (np.asarray(page_picture((256, 256))).astype(np.int16) * 5 - 1200).tobytes()
        image.RescaleSlope, image.RescaleIntercept, image.PixelRepresentation = "1", "0", 1
    return study


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
