"""Plants identities into objects, lets the product's own engine and vault de-identify them, and judges the results."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.recipe import compile_recipe
from dicomnode.deid.source import identify
from dicomnode.deid.vault import KeySource, Vault
from dicomnode.errors import QuarantineError

from .identities import Names, people
from .judge import Judge
from .objects import carriers
from .pixels import PlantedImage
from .plants import Planted, Planter

OBJECTS_PER_PATIENT = 3
P = TypeVar("P", Planted, PlantedImage)


@dataclass
class Run:
    """One set of options over all objects. ``withheld`` are those that the product refused, with its reason."""

    options: frozenset[str]
    judge: Judge
    recipe_sha256: str
    done: dict[str, int] = field(default_factory=dict)  # by modality
    withheld: list[tuple[str, str]] = field(default_factory=list)
    pixels: dict[str, int] = field(default_factory=dict)  # images with text in their pixels, by modality


def plant_all(folder: Path, names: Names, rounds: int, seed: int) -> list[Planted]:
    """Each object ``rounds`` times, each patient with three objects; files in ``folder``."""
    rng = random.Random(seed)
    count = sum(1 for _ in carriers()) * rounds
    patients = people(names, -(-count // OBJECTS_PER_PATIENT), seed)
    order = [number // OBJECTS_PER_PATIENT for number in range(count)]
    rng.shuffle(order)
    planted, seen = [], dict.fromkeys(range(len(patients)), 0)
    for number, carrier in enumerate(carrier for _ in range(rounds) for carrier in carriers()):
        patient = order[number]
        seen[patient] += 1
        who = patients[patient]
        planter = Planter(carrier, who, seen[patient], _uids(seed, patient), seed * 100_000 + number)
        planted.append(planter.write(folder / f"{number:04d}.dcm", patient, names.also_words))
    return planted


def _uids(seed: int, patient: int) -> dict[str, str]:
    root = f"1.2.826.0.1.3680043.9997.{seed}.{patient + 1}"
    return {"study": f"{root}.1001", "frame": f"{root}.1002"}


def deidentify_all(folder: Path, planted: list[Planted], options: tuple[str, ...]) -> Run:
    """De-identify every object with one set of options and one vault, and judge what came out."""
    run = Run(frozenset(options), Judge(frozenset(options)), compile_recipe("basic", options).sha256)
    for one, out in _written(folder, planted, run):
        run.judge.judge(one, out)
        run.done[one.modality] = run.done.get(one.modality, 0) + 1
    return run


def judge_pixels(folder: Path, images: list[PlantedImage], run: Run) -> None:
    """De-identify the images with text in their pixels with the options of ``run``, and add to its checks."""
    for one, out in _written(folder, images, run):
        run.judge.judge_pixels(one, out)
        run.pixels[one.modality] = run.pixels.get(one.modality, 0) + 1


def _written(folder: Path, planted: list[P], run: Run) -> Iterator[tuple[P, Path]]:
    """Each object with its de-identified file, which is deleted afterwards; what is refused is added to ``run``."""
    vault = Vault.open(folder / "vault.sqlite3", KeySource(folder / "vault.key"))
    engine = Deidentifier(compile_recipe("basic", tuple(sorted(run.options))), vault.uid_key, fsync=False)
    for one in planted:
        identity = identify(one.file)
        subject = vault.subject_for(identity.issuer, identity.patient_id, create=True)
        out = folder / "out" / one.file.name
        try:
            engine.deidentify(one.file, out, subject)
        except QuarantineError as refused:
            run.withheld.append((one.title, f"{refused.reason}: {refused}"))
            continue
        yield one, out
        out.unlink()
