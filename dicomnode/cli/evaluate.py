"""``dicomnode evaluate``: how good packs are on labelled images, a protocol or this repository, beside controls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli.options import Config, Json, err, open_node, out, print_json, print_table, progress_bar
from dicomnode.errors import EXIT_FAILED, UsageError

if TYPE_CHECKING:
    from dicomnode.evaluation.candidates import Candidate
    from dicomnode.evaluation.protocols import Protocol
    from dicomnode.evaluation.run import Evaluation, Options, Progress
    from dicomnode.node import Node

_MODES = "--index with --queries, --protocol with --data, --repository, or --ledger with --out"


def evaluate_command(
    index: Annotated[Path | None, typer.Option(help="LABELS.csv of the images searched.")] = None,
    queries: Annotated[Path | None, typer.Option(help="LABELS.csv of the images asked about.")] = None,
    pack: Annotated[
        list[str] | None,
        typer.Option(
            help="Pack to measure: a name or folder, may be repeated; else the active one. Controls use the first. "
            "With --ledger alone: the row that the others are compared to, the first of these that a protocol has."
        ),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="New folder for the page, the figures and the JSON.")
    ] = None,
    lung_model: Annotated[
        Path | None,
        typer.Option(
            help="CE-Net checkpoint that finds the lungs for the masked control; else a classical segmentation."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Runs of the controls that draw something at random.")] = 1,
    protocol: Annotated[
        str | None, typer.Option(help="in-domain, published, lesion, organs, leaky, or a TOML file of one.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets that a protocol names.")] = None,
    repository: Annotated[
        bool, typer.Option("--repository", help="Leave one patient out over this repository's findings.")
    ] = False,
    ledger: Annotated[
        Path | None,
        typer.Option(help="Folder of the ledger: entries are added; alone with --out, tables are made of it."),
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Measure retrieval: precision, recall, mAP and nDCG with intervals, negative controls beside every figure.

    Example: dicomnode evaluate --index train.csv --queries test.csv --out report
    Example: dicomnode evaluate --protocol in-domain --data data --pack packs/mine --ledger docs/evaluation/ledger
    Example: dicomnode evaluate --repository --json
    Example: dicomnode evaluate --ledger docs/evaluation/ledger --out tables --pack "CE-Net + Xception"
    """
    node = open_node(config)
    modes = [bool(index or queries), protocol is not None, repository]
    if sum(modes) > 1 or (not any(modes) and not (ledger and out_dir)):
        raise UsageError(f"give one of: {_MODES}", place="evaluate")
    if bool(index) != bool(queries):
        raise UsageError("--index and --queries belong together", place="evaluate")
    if (protocol is None) != (data is None):
        raise UsageError("--protocol and --data belong together", place="evaluate")
    others = {"--pack": pack, "--ledger": ledger, "--lung-model": lung_model, "--seeds": seeds > 1}
    _refuse(repository, "--repository measures the model in force by its stored vectors: without", others)
    images = {"--lung-model": lung_model, "--seeds": seeds > 1}
    _refuse(not any(modes), "tables of a ledger are made without", images)
    from dicomnode.evaluation.files import check_out, check_writable, write_ledger_report
    from dicomnode.evaluation.run import Options

    if out_dir:
        check_out(out_dir, make=any(modes))
    if ledger and any(modes):
        check_writable(ledger)
    if not any(modes):
        assert ledger is not None and out_dir is not None
        text, files = write_ledger_report(out_dir, ledger, pack or [])
        print_json({"tables": text, "files": files}) if json else out.print(text)
        return
    if repository:
        result = _of_repository(node, out_dir, json)
    else:
        with progress_bar("images", quiet=json) as update:
            options = Options(lung_model, seeds)
            result = _of_images(node, (index, queries), (protocol, data), pack or [], options, update, out_dir, ledger)
    _print(result, json)
    if result["skipped"]:
        raise typer.Exit(EXIT_FAILED)


def _refuse(unfit: bool, why: str, given: Mapping[str, object]) -> None:
    """An option that would be passed over is refused: what it names is not what would be measured."""
    if unfit and (named := [option for option, value in given.items() if value]):
        raise UsageError(f"{why} {' and '.join(named)}", place="evaluate")


def _of_images(
    node: Node,
    files: tuple[Path | None, Path | None],
    of_protocol: tuple[str | None, Path | None],
    packs: list[str],
    options: Options,
    update: Progress,
    out_dir: Path | None,
    ledger: Path | None,
) -> dict[str, Any]:
    from dicomnode.evaluation.files import write_evaluation
    from dicomnode.evaluation.labels import TRAINED_ON, Checks, read_rows
    from dicomnode.evaluation.protocols import find_protocol, open_protocol
    from dicomnode.evaluation.run import evaluate

    checks, about = Checks(), ""
    if files[0] is not None and files[1] is not None:
        index, queries = read_rows(files[0], checks), read_rows(files[1], checks)
        checks.notes.append(TRAINED_ON)
        title = f"Index {files[0].name}, queries {files[1].name}"
        found = evaluate(
            "labels", title, index, queries, _packs(node, packs), options=options, checks=checks, progress=update
        )
    else:
        assert of_protocol[0] is not None and of_protocol[1] is not None
        protocol = find_protocol(of_protocol[0])
        about = " ".join(protocol.about.split())
        with open_protocol(protocol, of_protocol[1], checks) as (index, queries):
            loaded = _packs(node, packs, protocol)
            checks.notes += [f"{c.name}: {c.note}" for c in loaded if c.note]
            found = evaluate(
                protocol.name, protocol.title, index, queries, loaded,
                rules=protocol.rules, options=options, checks=checks, progress=update,
            )  # fmt: skip
    result = found.as_json()
    if out_dir:
        write_evaluation(out_dir, found, result, about)
    if ledger:
        _keep(ledger, found)
    return result


def _keep(folder: Path, found: Evaluation) -> None:
    """Add to the ledger; a line for what it keeps of another pack, as its tables have one line for a control."""
    from dicomnode.evaluation.ledger import add_entries, entries_of, pack_of_control

    kept = add_entries(folder, entries_of(found))
    if not kept:
        return
    controls = ", ".join(dict.fromkeys(e["method"].removeprefix("control: ") for e in kept))
    packs = " and ".join(dict.fromkeys(pack_of_control(e) or "a pack that is not named" for e in kept))
    err.print(
        f"{folder}: controls left as they are ({controls}): they are those of {packs};"
        f" for those of {found.packs[0].name} give another --ledger"
    )


def _packs(node: Node, named: list[str], protocol: Protocol | None = None) -> list[Candidate]:
    """The packs that are named, else the active one; with a note on those that do not follow the protocol."""
    from dicomnode.evaluation.candidates import of_pack
    from dicomnode.models.embedder import Embedder
    from dicomnode.models.manifest import find_pack
    from dicomnode.node import packs_folder

    folders = [find_pack(name, (packs_folder(), node.data_dir / "packs")) for name in named]
    loaded = [(folder.name, Embedder.load(folder, node.settings.models.device)) for folder in folders]
    loaded = loaded or [(node.pack_dir.name, node.embedder)]
    return [of_pack(n, e, protocol.broken_by(e.pack.manifest.about) if protocol else "") for n, e in loaded]


def _of_repository(node: Node, out_dir: Path | None, json: bool) -> dict[str, Any]:
    from dicomnode.evaluation.files import write_repository
    from dicomnode.evaluation.repository import KnownStudy, evaluate_repository

    known = [KnownStudy(*row) for row in node.catalogue.known_findings()]
    with progress_bar("studies", quiet=json) as update:
        result = evaluate_repository(node.index, known, update, name=node.pack_dir.name)
    if out_dir:
        write_repository(out_dir, result, node.index, known)
    return result


def _print(result: Mapping[str, Any], json: bool) -> None:
    if json:
        print_json(result)
        return
    from dicomnode.evaluation.report import COLUMNS, lines, plain_words

    for note in result["notes"]:
        err.print(note)
    queries = f"{result['n_queries_counted']} of {result['n_queries']} queries, {result['n_query_patients']} patients"
    out.print(f"{result['title']}: index {result['n_index']}, {queries}")
    rows = [[line.name, *line.cells, line.difference] for line in lines(result)]
    print_table("retrieval", ["method", *(name for name, _ in COLUMNS), "first minus this, P@10"], rows)
    for sentence in plain_words(result):
        out.print(sentence)
