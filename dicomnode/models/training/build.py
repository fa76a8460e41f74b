"""Build a model pack from a ``train xception`` checkpoint: compaction, figures, card, golden vectors, outlines.

The compaction is fitted on training images only, with the weights as they are shipped (half precision); the figures
are measured with the pack as written, on queries nobody trained on. What was not measured is not on the card.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import nn

from dicomnode.errors import InputError, PackError
from dicomnode.models.embedder import Embedder
from dicomnode.models.manifest import read_manifest, sha256_of
from dicomnode.models.networks import CENet, Compaction, EmbeddingNet, XceptionConfig
from dicomnode.models.pack import Pack, write_pack
from dicomnode.models.preprocess import SIDE
from dicomnode.models.tensors import standardise
from dicomnode.models.training import figures
from dicomnode.models.training.augment import to_unit
from dicomnode.models.training.card import MODEL_ROW, RAW_ROW, render_card
from dicomnode.models.training.cenet import build_cenet, dice_by_volume
from dicomnode.models.training.data import LabelledData, load_covid_ct, load_sars, load_segmentation
from dicomnode.models.training.run import check_finite, checkpoint_in, load_checkpoint

log = structlog.get_logger(__name__)

Bytes = npt.NDArray[np.uint8]
FIT_BATCH = 16
WITHOUT_LESION = "without the lesion profile (full embedding)"
MADE_OF = "checkpoint_sha256"  # in the manifest's "about": a run knows by it the pack that it wrote before
MASK_DILATION = 9  # pixels by which the lung mask is widened for the masked control

LICENCE = (
    "Weights: research use only. They are trained on COVID-CT and ct-lung-seg (research use, no licence file upstream),"
    " the compaction is fitted also on SARS-CoV-2 CT-scan (CC BY-NC-SA){start}."
)
LICENCE_START = ", and the encoder starts from EfficientNet-{name} (ImageNet, Apache-2.0)"
INTENDED_USE = (
    "Finding similar chest-CT slices in a repository for research and teaching. Not for diagnosis, and no medical"
    " device: the vector is no classifier, and a list of similar cases says nothing about a patient by itself."
    " One of its parts was taught to tell the classes of its labels apart, so likeness leans towards that"
    " question. Measured slice by slice; a node compares whole studies, which was not measured."
)
TAUGHT = ({"modality": "CT", "region": "CHEST"},)  # what the images of DATA show
DATA = (
    {"name": "COVID-CT (UCSD), official train split", "terms": "research use; no licence file upstream"},
    {"name": "ct-lung-seg, all volumes but 3, 6, 10, 12, 15", "terms": "research use"},
    {"name": "SARS-CoV-2 CT-scan (Soares et al.), compaction only", "terms": "CC BY-NC-SA"},
)


def terms_of(encoder: str, weights: str | None = None) -> tuple[list[dict[str, str]], str]:
    """Training data and licence of a pack, for its card.

    Parameters
    ----------
    encoder : as in ``CENetConfig``.
    weights : SHA-256 of the file that a site began from instead, if it did.
    """
    began, start = encoder_terms(encoder, weights)
    return [*(dict(d) for d in DATA), *began], LICENCE.format(start=start)


def encoder_terms(encoder: str, weights: str | None) -> tuple[list[dict[str, str]], str]:
    """Of ``terms_of``, what the weights that the encoder began from add: rows of the data, and the licence's end."""
    if weights is not None:
        row = {"name": f"encoder weights of a file (SHA-256 {weights})", "terms": "those of their authors"}
        return [row], ", and the encoder starts from weights with terms of their own"
    if encoder == "resnet34":
        return [], ""
    name = encoder.capitalize()
    row = {"name": f"EfficientNet-{name} ImageNet weights (start of the encoder)", "terms": "Apache-2.0"}
    return [row], LICENCE_START.format(name=name)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of building a pack.

    Attributes
    ----------
    data : folder of the data sets. ``out`` : folder of the pack.
    checkpoint : of ``train xception``.
    status : "research" for a finished pack, "interim" for one whose training is not.
    commands : the exact commands that made it, for the card.
    repeats : other runs that were measured in the same way, for the card: (name, P@10, mAP).
    choice : how this run was chosen among them, for the card.
    lesion : whether the lesion profile is a part of the embedding.
    """

    data: Path
    out: Path
    checkpoint: Path
    name: str = "cenet-xception"
    status: str = "research"
    dim: int = 256
    commands: tuple[str, ...] = ()
    repeats: tuple[tuple[str, float, float], ...] = ()
    choice: str = ""
    lesion: bool = True


def load_trained(
    checkpoint: Path, *, lesion: bool = False, flip_average: bool = False
) -> tuple[CENet, EmbeddingNet, dict[str, Any], int]:
    """CE-Net, embedding network (compaction still empty: dim 1), identity of the run, and epochs done.

    Parameters
    ----------
    lesion, flip_average : as ``EmbeddingNet``'s.

    Raises
    ------
    InputError
        Not a checkpoint of ``train xception``, or weights that are not finite.
    """
    state = load_checkpoint(checkpoint)
    try:
        identity = state["identity"]
        cenet = build_cenet(identity["cenet"]["encoder"], identity["cenet"]["width"], imagenet=False, seed=0)
        cenet.load_state_dict(state["modules"]["cenet"])
        network = EmbeddingNet(cenet.config, XceptionConfig(**identity["xception"]), SIDE, 1, lesion, flip_average)
        network.xception.load_state_dict(state["modules"]["xception"])
    except (KeyError, TypeError, RuntimeError) as e:
        raise InputError("is not a checkpoint of 'train xception'", place=str(checkpoint)) from e
    check_finite(state["modules"], checkpoint)
    network.encoder = cenet.encoder
    if network.decoder is not None:
        network.decoder.load_state_dict({k: v for k, v in cenet.state_dict().items() if not k.startswith("encoder.")})
    return cenet.eval(), network.eval(), identity, len(state["curves"])


def check_pack_target(target: Path, run: Path) -> None:
    """Refuse, before a training, a pack's folder with anything in it but the pack that this very run wrote before.

    Parameters
    ----------
    run : folder of the training, as ``--out``.

    Raises
    ------
    InputError
        The folder is taken.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if _wrote(run, target):
        return
    raise InputError(
        "is there already; nothing is overwritten", place=f"--pack {target}", advice="name another folder, or remove it"
    )


def _wrote(run: Path, pack: Path) -> bool:
    """Whether a pack is of the checkpoint that a run's folder holds."""
    checkpoint = checkpoint_in(run)
    try:
        return checkpoint.is_file() and read_manifest(pack).about.get(MADE_OF) == sha256_of(checkpoint)
    except (PackError, AttributeError):  # no pack, or one that is damaged
        return False


def build_pack(options: BuildOptions) -> Pack:
    """Fit the compaction, write the pack, measure it, and write it again with the figures on its card.

    Returns
    -------
    Pack
        Loaded back from disk, golden vectors checked.
    """
    cenet, network, identity, epochs = load_trained(options.checkpoint, lesion=options.lesion)
    covid, sars, segmentation = load_covid_ct(options.data), load_sars(options.data), load_segmentation(options.data)
    as_shipped(network)
    as_shipped(cenet)
    dice = dice_by_volume(cenet, segmentation)
    train = [covid.images[covid.train], sars.images[sars.train], segmentation.images[~segmentation.held_out]]
    kept = fit_compaction(network, np.concatenate(train), options.dim)
    state = load_checkpoint(options.checkpoint)
    began = state.get("about", {}).get("cenet_run", {})
    data, licence = terms_of(cenet.config.encoder, began.get("encoder_weights"))
    about: dict[str, Any] = {
        "data": data,
        "taught": [dict(t) for t in TAUGHT],
        "licence": licence,
        "intended_use": INTENDED_USE,
        "training": {**identity, "epochs_done": epochs, "commands": list(options.commands)},
        "variance_kept": round(kept, 4),
        "dice_by_volume": dice,
        "curves": state["curves"],
        MADE_OF: sha256_of(options.checkpoint),
        "repeats": [list(r) for r in options.repeats],
        "choice": options.choice,
    }
    compaction = compaction_of(network, options.dim)

    def write(card: str) -> Pack:
        return write_pack(
            options.out,
            network,
            name=options.name,
            status=options.status,
            card=card,
            about=about,
            compaction=compaction,
            segmentation=cenet,
        )

    embedder = Embedder(write("figures are being measured\n"), "cpu")
    about["metrics"] = measure(embedder, cenet, covid, sars)
    log.info("pack_measured", map=about["metrics"]["rows"][MODEL_ROW]["map"]["mean"])
    return write(render_card(options.name, options.status, about, network.architecture))


def compaction_of(network: EmbeddingNet, dim: int) -> dict[str, Any]:
    """What the manifest says of the compaction."""
    lesion = "" if network.decoder is None else " + lesion profile"
    return {"kind": "pca", "dim": dim, "stored": "int8", "of": f"rmp + xception, flattened{lesion}"}


def as_shipped(network: nn.Module) -> None:
    """Round the weights to what the pack will hold, so that compaction and figures belong to those."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.dtype == torch.float32 and tensor.ndim > 1:
                tensor.copy_(tensor.half().float())


def fit_compaction(network: EmbeddingNet, images: Bytes, dim: int) -> float:
    """Fit the PCA to images uint8 [n, 224, 224]; the share of their variance that is kept."""
    starts = range(0, len(images), FIT_BATCH)
    with torch.inference_mode():
        full = [network.full(to_unit(images[at : at + FIT_BATCH])[:, 0]) for at in starts]
    network.compaction = Compaction(network.full_dim, dim)
    return network.fit(torch.cat(full).clone())


def measure(embedder: Embedder, cenet: CENet, covid: LabelledData, sars: LabelledData) -> dict[str, Any]:
    """Retrieval on COVID-CT (index train, queries val) and on SARS-CoV-2 (held-out blocks), with controls.

    Returns
    -------
    dict
        ``chance``, ``rows`` (name -> figures with intervals), ``sars`` rows, and the counts.
    """
    index, queries = covid.part(covid.train), covid.part(~covid.train)
    other, asked = sars.part(sars.train), sars.part(~sars.train)
    pairs = {
        MODEL_ROW: (embedder.embed(_unit(other.images)), embedder.embed(_unit(asked.images))),
        RAW_ROW: (figures.raw_pixels(other.images), figures.raw_pixels(asked.images)),
    }
    return {
        "index": len(index.labels),
        "queries": len(queries.labels),
        "query_patients": len(np.unique(queries.groups)),
        "chance": round(figures.chance(index.labels, queries.labels), 4),
        "rows": retrieval(embedder, cenet, index, queries),
        "sars_queries": len(asked.labels),
        "sars": {
            name: figures.with_interval(figures.relevance(x, other.labels, y, asked.labels), asked.labels, asked.groups)
            for name, (x, y) in pairs.items()
        },
    }


def retrieval(embedder: Embedder, cenet: CENet, index: LabelledData, queries: LabelledData) -> dict[str, Any]:
    """Rows of the card's table: the pack, its full embedding, lungs masked out by ``cenet``, and raw pixels."""

    def row(of_index: figures.Floats, of_queries: figures.Floats) -> Any:
        per_query = figures.relevance(of_index, index.labels, of_queries, queries.labels)
        return figures.with_interval(per_query, queries.labels, queries.groups)

    a, b = _unit(index.images), _unit(queries.images)
    full_a, full_b = embedder.full(a), embedder.full(b)
    halves = embedder.pack.embedding_net.parts["activation"].stop
    return {
        MODEL_ROW: row(_compact(embedder, full_a), _compact(embedder, full_b)),
        "before compaction (full embedding)": row(full_a, full_b),
        **({WITHOUT_LESION: row(full_a[:, :halves], full_b[:, :halves])} if halves < full_a.shape[1] else {}),
        "control: lungs masked out": row(
            embedder.embed(without_lungs(cenet, a)), embedder.embed(without_lungs(cenet, b))
        ),
        RAW_ROW: row(figures.raw_pixels(index.images), figures.raw_pixels(queries.images)),
    }


def _compact(embedder: Embedder, full: figures.Floats) -> figures.Floats:
    with torch.inference_mode():
        compact: torch.Tensor = embedder.pack.embedding_net.compaction(torch.from_numpy(full))
    return np.asarray(compact.numpy(), dtype=np.float32)


def _unit(images: Bytes) -> figures.Floats:
    return images.astype(np.float32) / np.float32(255)


def without_lungs(cenet: CENet, images: figures.Floats) -> figures.Floats:
    """Images [n, 224, 224] with the lungs the CE-Net finds, widened, set to the mean of the rest."""
    out = images.copy()
    cenet.eval()
    with torch.inference_mode():
        for at in range(0, len(images), FIT_BATCH):
            x = torch.from_numpy(images[at : at + FIT_BATCH])[:, None]
            lungs = (cenet(standardise(x))[:, :1] > 0).float()
            wide = torch.nn.functional.max_pool2d(lungs, MASK_DILATION, 1, MASK_DILATION // 2)[:, 0].numpy() > 0
            for i, mask in enumerate(wide):
                out[at + i][mask] = out[at + i][~mask].mean() if (~mask).any() else 0
    return out
