"""A model pack of a site's own images: made as the shipped one is, and measured on images that were not trained on.

The compaction is fitted on the training images only. Figures are of the rows of other splits, else of the part that was
kept apart to stop early; where nothing was kept apart the card says that nothing was measured. Card and manifest hold
counts and the words of the labels, no path and no patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from dicomnode.domain import Shows
from dicomnode.errors import InputError
from dicomnode.models.embedder import Embedder
from dicomnode.models.manifest import sha256_of
from dicomnode.models.pack import Pack, write_pack
from dicomnode.models.training import figures
from dicomnode.models.training.build import (
    MADE_OF,
    as_shipped,
    compaction_of,
    encoder_terms,
    fit_compaction,
    load_trained,
    retrieval,
)
from dicomnode.models.training.card import MODEL_ROW, render_own_card
from dicomnode.models.training.cenet import dice_by_volume
from dicomnode.models.training.data import LabelledData, SegmentationData
from dicomnode.models.training.run import load_checkpoint
from dicomnode.models.training.xception import XceptionOptions, labelled_for, load_cenet, masks_for, split_training

log = structlog.get_logger(__name__)

LEAST_IMAGES = 16  # to fit a compaction to
STATUS = "research"
OF_OTHER_SPLITS = "the rows of other splits than train"
OF_VALIDATION = (
    "the part kept apart to stop early. The epoch was chosen by its loss, so the figures are a little optimistic"
)
INTENDED_USE = (
    "Finding similar slices of the kind that it was trained on, in a repository for research and teaching. Not for"
    " diagnosis, and no medical device: the vector is no classifier, and a list of similar cases says nothing about a"
    " patient by itself. One of its parts was taught to tell the classes of its labels apart, so likeness leans towards"
    " that question. Measured slice by slice; a node compares whole studies, which was not measured."
)
LICENCE = (
    "Weights: trained on images of a site, which says who may use them, and begun from a CE-Net whose training has"
    " terms of its own (those of the folder of data sets: research use only)."
)


@dataclass(frozen=True, slots=True)
class OwnPackOptions:
    """Options of a pack of a site's own images.

    Attributes
    ----------
    training : as the run was trained.
    out : folder of the pack. ``checkpoint`` : of the run.
    taught : what the training images show; nothing where it is not said.
    commands : the exact commands that made it, for the card.
    """

    training: XceptionOptions
    out: Path
    checkpoint: Path
    name: str
    taught: tuple[Shows, ...] = ()
    dim: int = 256
    commands: tuple[str, ...] = ()


def build_own_pack(options: OwnPackOptions) -> Pack:
    """Fit the compaction, write the pack, measure it, and write it again with the figures on its card.

    With fewer images than ``dim`` the vectors get as many dimensions as can be fitted. The lesion profile and outlines
    are part of it where the run has outlined slices or left the CE-Net as it was: else its outlines were lost.

    Raises
    ------
    InputError
        Fewer than ``LEAST_IMAGES`` images to fit to, or the data can no longer be read.
    """
    training = options.training
    begun = None if training.cenet is None else load_cenet(training.cenet)
    labelled, _ = labelled_for(training, begun)
    masks = masks_for(training)
    place = str(training.scans or training.data)
    trained, held = split_training(labelled, training.validate, training.seed, training.batch, place, told=False)
    outlined = masks is not None or training.freeze
    cenet, network, identity, epochs = load_trained(options.checkpoint, lesion=outlined)
    as_shipped(network)
    as_shipped(cenet)
    images = [trained.images] if masks is None else [trained.images, masks.images[~masks.held_out]]
    fitted = np.concatenate(images)
    if len(fitted) < LEAST_IMAGES:
        raise InputError(f"holds {len(fitted)} images to fit a pack to; {LEAST_IMAGES} are needed", place=place)
    dim = min(options.dim, len(fitted) - 1)
    kept = fit_compaction(network, fitted, dim)
    state = load_checkpoint(options.checkpoint)
    encoder_weights = state.get("about", {}).get("cenet_run", {}).get("encoder_weights")
    about: dict[str, Any] = {
        "data": _data_of(trained, masks, cenet.config.encoder, encoder_weights),
        "taught": [shows.as_json() for shows in options.taught],
        "licence": LICENCE,
        "intended_use": INTENDED_USE,
        "training": {**identity, "epochs_done": epochs, "commands": list(options.commands)},
        "dim": dim,
        "variance_kept": round(kept, 4),
        "dice_by_volume": {} if masks is None or not masks.held_out.any() else dice_by_volume(cenet, masks),
        "curves": state["curves"],
        MADE_OF: sha256_of(options.checkpoint),
    }

    def write(card: str) -> Pack:
        return write_pack(
            options.out,
            network,
            name=options.name,
            status=STATUS,
            card=card,
            about=about,
            compaction=compaction_of(network, dim),
        )

    embedder = Embedder(write("figures are being measured\n"), "cpu")
    of_other = labelled.part(~labelled.train)
    asked, told = (of_other, OF_OTHER_SPLITS) if len(of_other.labels) else (held, OF_VALIDATION)
    about["metrics"] = {}
    if len(asked.labels):
        about["metrics"] = {
            "of": told,
            "index": len(trained.labels),
            "queries": len(asked.labels),
            "query_patients": len(np.unique(asked.groups)),
            "chance": round(figures.chance(trained.labels, asked.labels), 4),
            "rows": retrieval(embedder, cenet if outlined or begun is None else begun, trained, asked),
        }
        log.info("pack_measured", map=about["metrics"]["rows"][MODEL_ROW]["map"]["mean"])
    return write(render_own_card(options.name, STATUS, about, network.architecture))


def _data_of(
    trained: LabelledData, masks: SegmentationData | None, encoder: str, encoder_weights: str | None
) -> list[dict[str, str]]:
    counts = ", ".join(f"{word}: {int((trained.labels == i).sum())}" for i, word in enumerate(trained.classes))
    patients = len(np.unique(trained.groups))
    rows = [{"name": f"{len(trained.labels)} labelled images of {patients} patients ({counts})", "terms": "the site's"}]
    if masks is not None:
        used = ~masks.held_out
        volumes = len(np.unique(masks.volumes[used]))
        rows.append({"name": f"{int(used.sum())} outlined slices of {volumes} volumes", "terms": "the site's"})
    rows.append({"name": "what the CE-Net was trained on before", "terms": "those of that data"})
    return [*rows, *encoder_terms(encoder, encoder_weights)[0]]
