"""The figures of a run as JSON and as the marked part of ``docs/deid-report.md``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pydicom

from .judge import Tally
from .plants import Planted
from .run import Run

BEGIN, END = "<!-- figures: make deid-report -->", "<!-- end of figures -->"
SHOWN = 25  # failures of one check named on the page; all of them are in the JSON


def summary(title: str, run: Run) -> str:
    """The run as lines for a terminal."""
    lines = [f"{title}: {sum(run.done.values())} objects, {len(run.withheld)} withheld"]
    for check, tally in run.judge.tallies.items():
        lines.append(f"  {check:17} {tally.passed} of {tally.n}")
        lines += [f"    {failure}" for failure in tally.failures[:SHOWN]]
    return "\n".join(lines)


def as_json(runs: dict[str, Run], planted: list[Planted], seed: int, rounds: int) -> dict[str, Any]:
    """Everything that the page tells, and each failure."""
    return {
        "seed": seed,
        "rounds": rounds,
        "pydicom": pydicom.__version__,
        "objects": len(planted),
        "patients": len({one.patient for one in planted}),
        "plants": sum(len(one.plants) for one in planted),
        "modalities": dict(sorted(Counter(one.modality for one in planted).items())),
        "real": sorted({f"{one.modality} {one.source}" for one in planted if "generated" not in one.source}),
        "generated": sorted({one.modality for one in planted if "generated" in one.source}),
        "runs": {title: _run(run) for title, run in runs.items()},
    }


def _run(run: Run) -> dict[str, Any]:
    reasons = Counter((title.split()[0], reason.split(":")[0]) for title, reason in run.withheld)
    return {
        "options": sorted(run.options),
        "recipe": run.recipe_sha256[:12],
        "judged": dict(sorted(run.done.items())),
        "withheld": [{"modality": m, "reason": r, "objects": n} for (m, r), n in sorted(reasons.items())],
        "images_with_text": dict(sorted(run.pixels.items())),
        "checks": {check: _tally(tally) for check, tally in run.judge.tallies.items()},
        "clinical_words": {
            "n": run.judge.words.n,
            "passed": run.judge.words.passed,
            "lost": dict(Counter(run.judge.words.failures)),
        },
        "text_removed_by_place": {
            place: {"n": tally.n, "passed": tally.passed} for place, tally in run.judge.by_place.items()
        },
        "pixels_hidden_by_look": {
            look: {"n": tally.n, "passed": tally.passed} for look, tally in sorted(run.judge.by_look.items())
        },
    }


def _tally(tally: Tally) -> dict[str, Any]:
    return {"n": tally.n, "passed": tally.passed, "failures": tally.failures}


def write(target: Path, data: dict[str, Any]) -> None:
    """Put the figures between the markers of the page; the words around them stay."""
    text = target.read_text("utf-8")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    target.write_text(f"{head}{BEGIN}\n\n{markdown(data)}\n\n{END}{tail}", "utf-8")


def markdown(data: dict[str, Any]) -> str:
    """Tables of every set of options."""
    modalities = ", ".join(f"{name} {count}" for name, count in data["modalities"].items())
    about = (
        f"{data['objects']} objects ({modalities}) of {data['patients']} patients with {data['plants']} planted places;"
        f" seed {data['seed']}, pydicom {data['pydicom']}. Real: {', '.join(data['real'])}. "
        f"Generated: {', '.join(data['generated'])}."
    )
    parts = [about] + [_section(title, run) for title, run in data["runs"].items()]
    return "\n\n".join(parts)


def _section(title: str, run: dict[str, Any]) -> str:
    options = ", ".join(f"`{option}`" for option in run["options"]) or "none"
    lines = [f"### {title.capitalize()}", "", f"Options: {options}. Recipe {run['recipe']}."]
    withheld = ", ".join(f"{row['objects']} {row['modality']} ({row['reason']})" for row in run["withheld"]) or "none"
    lines += [f"Judged: {sum(run['judged'].values())} objects. Withheld by the product, in no figure: {withheld}.", ""]
    lines += ["| check | n | passed | % |", "|---|---|---|---|"]
    for check, tally in run["checks"].items():
        lines.append(f"| {check} | {tally['n']} | {tally['passed']} | {_percent(tally)} |")
    words = run["clinical_words"]
    lost = ", ".join(f"{word} ({count})" for word, count in sorted(words["lost"].items())) or "none"
    if words["n"]:
        share = _percent(words)
        line = f"Of text_retained, clinical words between identities: {words['passed']} of {words['n']} ({share} %)."
        lines += ["", f"{line} Lost: {lost}."]
    places = "; ".join(f"{place} {row['passed']}/{row['n']}" for place, row in run["text_removed_by_place"].items())
    lines += ["", f"text_removed by place: {places}."]
    if run["images_with_text"]:
        images = ", ".join(f"{modality} {count}" for modality, count in run["images_with_text"].items())
        looks = "; ".join(f"{look} {row['passed']}/{row['n']}" for look, row in run["pixels_hidden_by_look"].items())
        lines += ["", f"pixels_hidden, lines in {images} images, by look: {looks}."]
    lines += ["", "Failures:"]
    for check, tally in run["checks"].items():
        for failure, count in list(Counter(tally.get("failures", [])).items())[:SHOWN]:
            lines.append(f"- {check}: {failure}{f' ({count} times)' if count > 1 else ''}")
        if (more := len(set(tally.get("failures", []))) - SHOWN) > 0:
            lines.append(f"- {check}: {more} more in `deid-report.json`")
    if lines[-1] == "Failures:":
        lines[-1] = "Failures: none."
    return "\n".join(lines)


def _percent(tally: dict[str, Any]) -> str:
    """Two decimals, cut and not rounded, so that 100.00 means all of them."""
    if not tally["n"]:
        return ""
    return f"{int(tally['passed'] / tally['n'] * 10_000) / 100:.2f}"
