"""The model card as Markdown: what was trained, on what, under which terms, how well, and what it is not.

Renders only what it is given; every number comes from a measurement of the pack it describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dicomnode.domain import Shows
from dicomnode.models.networks.embedding import averages_flips
from dicomnode.models.networks.lesion import LESION_DIM
from dicomnode.models.training.figures import table

MODEL_ROW = "this pack"
RAW_ROW = "control: raw 32x32 pixels"
DIM = 256  # of a vector, where the manifest says nothing else
CURVE_COLUMNS = {  # by the name in the training's curves
    "classify": "classification loss",
    "contrast": "contrastive loss",
    "accuracy": "accuracy",
    "segmentation": "segmentation loss",
}


WORDS = (
    "Words: *vector*, the {dim} numbers that stand for a slice; *control*, what is reached without knowledge"
    " of disease, for comparison; P@10, share of the first ten that have the query's label; mAP, the same idea over"
    " the whole order; nDCG, 1 where the order is the best possible (chance is not 0); macro, both classes weigh the"
    " same; 95 % interval, what other patients might have given; Dice, overlap of two outlines, 1 is perfect;"
    " compaction, the shortening from the full embedding to {dim} numbers.\n"
)
SCORE = (
    "## The score\n\n"
    "It goes from 0 to 1 and does one thing: it puts the cases of **one** answer in order. .8 is not 80 % of"
    " anything, neither of a disease nor of the same disease nor of likeness; scores of two answers cannot be"
    " compared. How well the order agrees with what radiologists call similar was not measured. See"
    " docs/for-radiologists.md.\n"
)


def render_card(name: str, status: str, about: Mapping[str, Any], architecture: Mapping[str, Any]) -> str:
    """The whole card; ``{model_id}`` stays for the writer of the pack to fill in."""
    measured = [_data(about), _figures(about["metrics"]), _segmentation(about["dice_by_volume"]), _repeats(about)]
    return _card(name, status, about, architecture, measured)


def render_own_card(name: str, status: str, about: Mapping[str, Any], architecture: Mapping[str, Any]) -> str:
    """The card of a pack of a site's own images."""
    measured = [_own_data(about), _own_figures(about["metrics"])]
    if about["dice_by_volume"]:
        measured.append(_segmentation(about["dice_by_volume"], "volumes that were not trained on"))
    return _card(name, status, about, architecture, measured)


def _card(
    name: str, status: str, about: Mapping[str, Any], architecture: Mapping[str, Any], measured: Sequence[str]
) -> str:
    parts = [
        f"# Model card: {name}\n",
        _summary(status, about),
        SCORE,
        _intended(about),
        _architecture(architecture, about),
        *measured,
        _curves(about["curves"]),
        _commands(about),
    ]
    return "\n".join(p for p in parts if p)


def _own_data(about: Mapping[str, Any]) -> str:
    shown = ", ".join(Shows(**one).words() for one in about["taught"])
    told = (
        f"The images show {shown}; answers to anything else carry a caution."
        if shown
        else "What the images show is not told in the manifest, so answers to other kinds of images carry no caution."
    )
    return (
        f"## Training data and terms\n\n{_terms(about)}\n\nThe weights hold what these images taught: whether they may"
        f" leave the site is for the site to say. {told}\n"
    )


def _own_figures(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return (
            "## Retrieval\n\n**Not measured**: every image was trained on. Keep rows apart (column `split`), or measure"
            " with other images: `dicomnode evaluate --index ... --queries ...`.\n"
        )
    return (
        f"## Retrieval\n\nIndex = the {metrics['index']} images that were trained on, queries ="
        f" {metrics['queries']} images of {metrics['query_patients']} patients that were not: {metrics['of']}. Macro"
        " over the classes; 95 % intervals from a bootstrap over query patients. Expected P@k of a random order:"
        f" {metrics['chance']:.3f}.\n\n{table(metrics['rows'])}\n\n"
        "Read the masked row before the first one: the lungs (as the CE-Net segments them, widened by 4 px) were"
        " replaced by the mean of the rest. What remains above chance there is not what the lungs show. The index is"
        " what the model learnt from, with its labels: a repository of other cases is harder. More controls (metadata,"
        " taught ones): `dicomnode evaluate`.\n"
    )


def _summary(status: str, about: Mapping[str, Any]) -> str:
    training = about["training"]
    lines = [f"`{{model_id}}`, status **{status}**, seed {training['seed']}.\n"]
    if status != "research":
        lines.append(
            f"**This pack is not finished**: {training['epochs_done']} of {training['epochs']} epochs of the joint"
            " training were done when it was built. Use it to try the software, not to judge the model.\n"
        )
    return "\n".join([*lines, WORDS.format(dim=_dim(about))])


def _dim(about: Mapping[str, Any]) -> int:
    return int(about.get("dim", DIM))


def _intended(about: Mapping[str, Any]) -> str:
    return f"## Intended use\n\n{about['intended_use']}\n\n{about['licence']}\n"


LESION_WORDS = (
    " and the lesion profile (the infected fraction of the lung in six regions, left and right, three heights, by the"
    " CE-Net's own outlines; weighted to a third of the variance),"
)
GRID_CELLS = 49  # 7x7 at 224 pixels
PUBLISHED_MIDDLE = 8  # middle blocks of the published Xception


def _architecture(architecture: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    c, x = architecture["cenet"], architecture["xception"]
    encoder = c["encoder"] if c["width"] == 1 else f"{c['encoder']} of width {c['width']}"
    literal = x.get("form") == "literal"
    form = "its literal form (the encoding as one plane)" if literal else "its native form"
    values = 2 * GRID_CELLS * x["in_channels"]
    lesion = "" if "lesion" not in architecture else LESION_WORDS
    values += LESION_DIM if lesion else 0
    halves = "both halves flip-averaged" if averages_flips(architecture) else "both halves"
    return (
        "## Architecture\n\n"
        f"CE-Net (DAC, RMP) on a {encoder} encoder, and an Xception in {form} on the RMP encoding"
        f" ({x['in_channels']} channels on 7x7 at 224 px): stem {x['stem']}, entry {x['entry']}, {x['middle']} middle"
        f" blocks, exit {x['exit']}. {_widths(c, x)}\n\n"
        f"Vector: {halves}, each of length 1,{lesion} joined ({values:,} values), PCA to {_dim(about)}, length"
        f" 1; cosine. The PCA keeps {about['variance_kept']:.1%} of the variance of the training images. Input: see"
        " `dicomnode/models/preprocess.py`; plain pictures are scaled to 224x224, CT goes through the lung window"
        " -600/1500 HU and a body-centred square.\n"
    )


def _widths(cenet: Mapping[str, Any], xception: Mapping[str, Any]) -> str:
    if cenet["encoder"] == "resnet34" and cenet["width"] == 1 and xception["middle"] == PUBLISHED_MIDDLE:
        return "The widths are the published ones; the published system uses 512 px (516 channels on 16x16)."
    return (
        "**Not the published width**: the published system uses ResNet34 and 512 px"
        " (516 channels on 16x16) and the full Xception; those networks are in `dicomnode.models.networks` and are"
        " trained by the same commands, but no ImageNet weights come with them."
    )


def _data(about: Mapping[str, Any]) -> str:
    return (
        f"## Training data and terms\n\n{_terms(about)}\n\n"
        f"The validation split of COVID-CT was used neither for training nor for stopping: {_epoch(about)} is shipped."
        " COVID-CT's slices were cut out of papers, ct-lung-seg is equalised to 8 bits: no labelled training image was"
        " in Hounsfield units, and how well the model finds disease in images as scanners send them was not measured.\n"
    )


def _terms(about: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {d['name']} | {d['terms']} |" for d in about["data"])
    return f"| data | terms |\n|---|---|\n{rows}"


def _epoch(about: Mapping[str, Any]) -> str:
    share = about["training"].get("validate", 0)
    if not share:
        return "the last epoch"
    return f"the epoch with the lowest loss on {share:.0%} of the patients of the training split, kept apart for that,"


def _figures(metrics: Mapping[str, Any]) -> str:
    return (
        "## Retrieval\n\n"
        f"COVID-CT: index = official train split ({metrics['index']} slices), queries = official val split"
        f" ({metrics['queries']} slices of {metrics['query_patients']} patients, none in the index). Macro over the two"
        " classes; 95 % intervals from a bootstrap over query patients. Expected P@k of a random order:"
        f" {metrics['chance']:.3f}.\n\n{table(metrics['rows'])}\n\n"
        "Read the masked row before the first one: the lungs (as this CE-Net segments them, widened by 4 px) were"
        " replaced by the mean of the rest. What remains above chance there is mostly how slices of the two classes"
        " came into papers; disease outside the lungs, or not outlined, may play a part. The index is what the model"
        " learnt from, with its labels: a repository of other cases is harder.\n\n"
        "Across data sets: SARS-CoV-2 CT-scan, whose labels this model never saw. Index = blocks of neighbouring files,"
        f" queries = {metrics['sars_queries']} slices of held-out blocks; there are no patient ids, so near-twins at"
        " block borders remain and lift P@1 most. Expected P@k of a random order: about 0.5."
        f"\n\n{table(metrics['sars'])}\n\n{_transfer(metrics['sars'])}\n"
    )


def _transfer(rows: Mapping[str, Any]) -> str:
    """The sentence that the table of the other data set comes to."""
    ours, raw = (rows[name]["precision"]["10"] for name in (MODEL_ROW, RAW_ROW))
    if ours["ci"][0] > raw["mean"]:
        return "Here too the pack is better than raw pixels."
    return (
        "Here the pack is not shown to be better than raw pixels: what it learnt on COVID-CT does not carry over by"
        " itself. The labels were never seen; the pictures helped to fit the compaction."
    )


def _segmentation(
    dice: Mapping[str, Mapping[int, float]], volumes_told: str = "the held-out volumes of ct-lung-seg"
) -> str:
    volumes = sorted({v for by in dice.values() for v in by}, key=int)  # JSON makes words of them
    head = "| | " + " | ".join(f"volume {v}" for v in volumes) + " | mean |"
    lines = [head, "|---" * (len(volumes) + 2) + "|"]
    for name, by in dice.items():
        cells = " | ".join(f"{by[v]:.3f}" if v in by else "-" for v in volumes)
        lines.append(f"| {name} | {cells} | {sum(by.values()) / max(len(by), 1):.3f} |")
    return (
        f"## Segmentation\n\nDice of the joint network on {volumes_told}, all slices of a volume"
        " together, with the weights as shipped. The viewer shows these outlines; they are not findings.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _repeats(about: Mapping[str, Any]) -> str:
    if not about.get("repeats"):
        return ""
    rows = "\n".join(f"| {name} | {p10:.3f} | {m:.3f} |" for name, p10, m in about["repeats"])
    choice = f"\n{about['choice']}\n" if about["choice"] else ""
    return f"## Other runs\n\n| run | P@10 | mAP |\n|---|---|---|\n{rows}\n{choice}"


def _curves(curves: list[Mapping[str, float]]) -> str:
    names = [n for n in CURVE_COLUMNS if any(n in c for c in curves)]
    lines = ["| epoch | " + " | ".join(CURVE_COLUMNS[n] for n in names) + " |", "|---" * (len(names) + 1) + "|"]
    for i, c in enumerate(curves, start=1):
        lines.append(f"| {i} | " + " | ".join(f"{c[n]:.3f}" if n in c else "-" for n in names) + " |")
    return (
        "## Curves\n\nMeans over each epoch, under augmentation: losses and training"
        " accuracy.\n\n" + "\n".join(lines) + "\n"
    )


def _commands(about: Mapping[str, Any]) -> str:
    commands = about["training"]["commands"]
    if not commands:
        return ""
    return "## Commands\n\n" + "\n".join(f"    {c}" for c in commands) + "\n"
