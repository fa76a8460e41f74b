"""A model pack that outlines, made in seconds: the shipped pack with a decoder trained on the phantoms alone.

For tests and for pictures of phantoms; nobody's images are outlined with it. It keeps the shipped pack's vectors and so
its ``model_id``, and has no Dice of its own.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dicomnode.models.manifest import PACK_FOLDERS, SEGMENTATION, find_pack, read_manifest
from dicomnode.models.preprocess import prepare_dicom
from dicomnode.testing.studies import sample_study, write_study

if TYPE_CHECKING:
    from dicomnode.models.networks import CENet

PATIENTS = (11, 12, 13)  # seeds of the phantoms
LUNG = 0.55  # of a prepared slice: darker is air or lung
CHANGED = 0.15  # what a finding changes by more than that is its place
STEPS, BATCH, RATE = 100, 4, 5e-3

Floats = npt.NDArray[np.float32]


def outlining_pack(folder: Path, name: str = "cenet-xception", dice: dict[str, dict[str, float]] | None = None) -> Path:
    """A copy of a CE-Net pack in ``folder`` that offers outlines; ``dice``: what its manifest shall say of them."""
    import torch

    from dicomnode.models.networks import CENet, CENetConfig
    from dicomnode.models.pack import Pack, synthetic_images, write_manifest
    from dicomnode.models.segmentation import write_segmentation

    source = find_pack(name, PACK_FOLDERS)
    shutil.copytree(source, folder)
    (folder / SEGMENTATION).unlink(missing_ok=True)
    manifest = read_manifest(folder)
    encoder = Pack.load(source).embedding_net.encoder
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cenet = CENet(CENetConfig(**manifest.identity["architecture"]["cenet"]))
        cenet.encoder = encoder
        _train(cenet, *_phantoms())
    write_segmentation(folder, cenet, encoder, synthetic_images())
    names = [n for n in manifest.files if n != SEGMENTATION]
    about = {**manifest.about, "dice_by_volume": dice or {}}
    write_manifest(folder, manifest.name, manifest.status, manifest.identity, [*names, SEGMENTATION], about)
    return folder


def _phantoms() -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Prepared slices [n, 224, 224], and lungs and finding in them [n, 2, 224, 224]."""
    images: list[Floats] = []
    masks: list[npt.NDArray[np.bool_]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in PATIENTS:
            with_finding, without = (
                [prepare_dicom(p).pixels for p in write_study(study, Path(scratch) / f"{seed}-{n}")]
                for n, study in enumerate(
                    sample_study(6, finding=finding, seed=seed, matrix=256) for finding in ("consolidation", None)
                )
            )
            for image, healthy in zip(with_finding, without, strict=True):
                images.append(image)
                masks.append(np.stack([_lungs(healthy), np.abs(image - healthy) > CHANGED]))
    return np.stack(images), np.stack(masks)


def _lungs(image: Floats) -> npt.NDArray[np.bool_]:
    """What is dark and not joined to the outside."""
    dark = Image.fromarray(np.pad((image < LUNG).astype(np.uint8) * 255, 1, constant_values=255)).copy()
    ImageDraw.floodfill(dark, (0, 0), 0)
    return np.asarray(dark)[1:-1, 1:-1] > 0


def _train(cenet: CENet, images: Floats, masks: npt.NDArray[np.bool_]) -> None:
    """Train the decoder; the encoder stays as it is."""
    import torch
    from torch.nn import functional

    from dicomnode.models.tensors import standardise

    cenet.train()
    cenet.encoder.eval()
    own = [p for n, p in cenet.named_parameters() if not n.startswith("encoder.")]
    optimiser = torch.optim.Adam(own, RATE)
    truth = torch.from_numpy(masks).float()
    with torch.no_grad():
        seen = cenet.encoder.features(standardise(torch.from_numpy(images)[:, None]))
    for step in range(STEPS):
        at = [(step * BATCH + i) % len(images) for i in range(BATCH)]
        logits = cenet.decode(*(s[at] for s in seen))
        likely = logits.sigmoid()
        overlap = 2 * (likely * truth[at]).sum((0, 2, 3)) / (likely + truth[at]).sum((0, 2, 3)).clamp(min=1)
        loss = functional.binary_cross_entropy_with_logits(logits, truth[at]) - overlap.mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    cenet.eval()
