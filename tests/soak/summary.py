"""One table of what the campaigns have shown so far, from their state files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine

Done = list[dict[str, Any]]
PART = "-from-"  # after a campaign's name: the folder of a part that began with another round than the first
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def _counted(done: Done, key: str) -> str:
    return ", ".join(f"{n} {what}" for what, n in sorted(Counter(d[key] for d in done).items()))


def _kill(done: Done) -> str:
    again = sum(d["second_kill_s"] is not None for d in done)
    sent = sum(d["acknowledged"] + d["sent_again"] for d in done)
    studies = sum(1 + len(d["load"]) for d in done)
    ready = max(d["ready_s"] for d in done)
    return (
        f"killed: {_counted(done, 'victim')}, {again} of them twice; phases: {_counted(done, 'phase')}. "
        f"{studies} studies, {sent} images of the struck ones: 0 acknowledged lost, one answer a study; ready "
        f"again after {ready} s at most"
    )


def _full_disk(done: Done) -> str:
    refused = sum(d.get("refused with A700", d.get("refused", 0)) for d in done)
    acknowledged = sum(d["acknowledged"] for d in done)
    return f"{acknowledged} images acknowledged, 0 lost; {refused} refused, taken later; every study answered once"


def _pacs_down(done: Done) -> str:
    (last,) = done[-1:]
    return (
        f"three PACSs away for {last['down_s']:.0f} s at once (closed, refusing, A700), {last['studies']} studies: "
        f"{last['tries in vain']} tries in vain, then exactly one of each of {last['objects at each PACS']} objects at "
        f"each, all there {last['all there after_s']} s after"
    )


def _flapping(done: Done) -> str:
    return f"slowest round at rest after {max(d['settled_s'] for d in done)} s; one answer a study"


def _clock(done: Done) -> str:
    steps = ", ".join(f"{d['set by_s']:+d} s" for d in done)
    worst = {k: max(d[f"{k} after_s"] for d in done) for k in ("answered", "delivered", "answered again")}
    return f"set by {steps}, three times each; " + ", ".join(f"{k} after {s} s at most" for k, s in worst.items())


def _associations(done: Done) -> str:
    held = done[-1]
    return (
        f"200 held open at once: {held['held open']} given, {held['rejected with local limit exceeded']} told "
        f"'local limit exceeded'; {held['senders at once']} senders at once, {held['senders rejected']} rejected, "
        "0 images lost"
    )


def _in_a_row(done: Done) -> str:
    last = done[-1]
    grown = "; ".join(
        f"{name} {g['rss_mb'][0]} to {g['rss_mb'][1]} MB ({g['bytes_an_association']:+.0f} bytes an association), "
        f"threads {g['threads'][0]} to {g['threads'][1]}, files {g['files'][0]} to {g['files'][1]}"
        for name, g in last["growth"].items()
    )
    return f"{last['associations']} associations in {last['seconds']:.0f} s, 0 refused. {grown}"


def _takeover(done: Done) -> str:
    (last,) = done[-1:]
    return (
        f"{last['slices']} slices: {last['asked']} answers while another model took over ({last['takeover_s']} s) and "
        f"while the first came back ({last['back_s']} s), {last['by the old']} of the old model and "
        f"{last['by the new']} of the new one; 0 failed, 0 mixed"
    )


def _silent(done: Done) -> str:
    alone = max(d["worst_s"] for d in done if d["clients"] == 1)
    many = max((d["worst_s"] for d in done if d["clients"] > 1), default=0.0)
    usual = max(d["usual_s"] for d in done)
    return (
        f"the slowest C-ECHO or C-STORE of somebody else: {alone} s beside one, {many} s beside 40 "
        f"(nobody silent: {usual} s); each dropped in time, slots, threads and files free again"
    )


def _orthanc(done: Done) -> str:
    return (
        f"a real Orthanc routes, the answer comes back once; {done[-1]['rest_s']} s later still one answer, with the "
        "guard rule and without"
    )


def _files(done: Done) -> str:
    reasons = sum((Counter(d["reasons"]) for d in done), Counter[str]())
    passed = reasons.pop("ok", 0)
    held = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    return f"{sum(d['files'] for d in done)} files: {passed} passed, the others held: {held}; no crash"


COLUMNS: dict[str, Callable[[Done], str]] = {
    "kill": _kill,
    "full-disk": _full_disk,
    "pacs-down": _pacs_down,
    "flapping": _flapping,
    "clock": _clock,
    "associations": _associations,
    "in-a-row": _in_a_row,
    "silent": _silent,
    "takeover": _takeover,
    "orthanc": _orthanc,
    "files": _files,
}


def summary(folder: Path) -> str:
    """The table, of the campaigns that have passed a round in ``folder``."""
    lines = [machine(), "", "| campaign | rounds passed | seed | seen |", "|---|---|---|---|"]
    for name, seen in COLUMNS.items():
        states = [folder / name / "state.json", *sorted(folder.glob(f"{name}{PART}*/state.json"))]
        held = [json.loads(state.read_text()) for state in states if state.exists()]
        if held:
            rounds = {number: said for part in held for number, said in part["done"].items()}
            done = [rounds[number] for number in sorted(rounds, key=int)]
            seeds = ", ".join(sorted({str(part["seed"]) for part in held}))
            lines.append(f"| {name} | {len(done)} | {seeds} | {seen(done)} |")
    return "\n".join(lines) + "\n"


def write_page(page: Path, table: str) -> None:
    """Put the table between the marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table}{END}{after}", "utf-8")
