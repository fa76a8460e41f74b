"""From an answer to what the page shows. Only what is named here reaches the template.

Of the query that is its modality and number of slices: never its pseudonym, pseudonymous UIDs or dates. Of a case it
is what the report shows too. All text is escaped by the template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import jinja2

from dicomnode.domain import Answer, Case, FindingStatus, VerdictKind, cases_searched, reason_in
from dicomnode.web.texts import LANGUAGES, TEXTS, Language

TALLY_ROWS = 6
MODEL_ID_SHOWN = 12  # hexadecimal digits of the pack's hash: enough to tell packs apart
STATUS_TEXT = {FindingStatus.PRESENT: "present", FindingStatus.NONE: "absent", FindingStatus.UNKNOWN: "unknown"}


@dataclass(frozen=True, slots=True)
class CaseView:
    """A card: strings as shown; ``bar`` is the score's share of full width, 0..100."""

    rank: int
    score: str
    bar: int
    modality: str
    subject: str
    status: str
    findings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TallyRow:
    """How many of the shown cases have a finding; ``status`` picks the symbol."""

    label: str
    status: str
    of: str
    bar: int


class Pages:
    """Renders the pages in both languages; ``static`` gives the paths of style sheet and icon."""

    def __init__(self, static: Mapping[str, str]) -> None:
        self._static = static
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("dicomnode.web"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def answer(self, answer: Answer, language: Language, image_base: str) -> str:
        """The page of an answer; ``image_base`` is the path below which ``1.png`` is the slice of case 1."""
        text = TEXTS[language]
        kind = answer.verdict.kind
        shown = len(answer.cases)
        empty = not shown and kind is not VerdictKind.NOT_SEARCHABLE
        headline = "empty" if empty else kind.value
        if kind is VerdictKind.SIMILAR and shown == 1:
            headline = "similar_one"
        reason = reason_in(answer.verdict.reason, language)
        why = "empty_why" if empty else f"{kind.value}_why"
        return self._render(
            "answer.html",
            language,
            kind="empty" if empty else kind.value,
            headline=text[headline].format(n=shown),
            why=text[why].format(
                searched=answer.searched,
                cases=cases_searched(answer.searched, language),
                few=f"{reason}; " if reason else "",
            ),
            caution=_caution(answer, language),
            reason=reason if kind is VerdictKind.NOT_SEARCHABLE else "",
            below=kind is not VerdictKind.SIMILAR,
            cases=[_case(c, answer.calibrated, language) for c in answer.cases],
            tally=_tally(answer.cases, text),
            calibrated=answer.calibrated,
            image_base=image_base,
            modality=str(answer.query.get("modality", "")),
            slices=answer.query.get("slices", 0),
            p="" if answer.verdict.p is None else _number(answer.verdict.p, language, 3),
            model=str(answer.model_id)[:MODEL_ID_SHOWN],
        )

    def message(self, name: str, language: Language) -> str:
        """A page that says one thing: ``name`` is "unknown", "expired" or "error"."""
        text = TEXTS[language]
        return self._render(
            "message.html", language, kind=name, headline=text[f"{name}_title"], why=text[f"{name}_text"]
        )

    def form(self, template: str, kind: str, language: Language, *, next_path: str = "", **values: object) -> str:
        """A page with a form: ``kind`` gives its headline; ``next_path`` is where it leads."""
        keep = f"&next={quote(next_path, safe='/')}" if kind == "sign_in" else ""
        headline = TEXTS[language][f"{kind}_title"]
        return self._render(template, language, headline=headline, keep=keep, next_path=next_path, **values)

    def _render(self, template: str, language: Language, *, keep: str = "", **values: object) -> str:
        return self._templates.get_template(template).render(
            t=TEXTS[language], language=language, languages=LANGUAGES, static=self._static, keep=keep, **values
        )


def best_instance(answer: Answer, rank: int) -> str | None:
    """The best matching slice of the case with this rank: the only image of it that the page shows."""
    for case in answer.cases:
        if case.rank == rank and case.matches:
            return max(case.matches, key=lambda m: m.similarity).instance
    return None


def _caution(answer: Answer, language: Language) -> str:
    text, said = TEXTS[language], []
    if answer.other_modality:
        said.append(text["other_modality"].format(modality=answer.other_modality))
    if answer.untaught is not None:
        said.append(text["untaught"].format(**answer.untaught.words(language)))
    return " ".join(said)


def _case(case: Case, calibrated: bool, language: Language) -> CaseView:
    percent = round(case.similarity * 100)
    return CaseView(
        rank=case.rank,
        score=f"{percent} %" if calibrated else _number(case.similarity, language, 2),
        bar=percent,
        modality=case.modality,
        subject=case.subject,
        status=STATUS_TEXT[case.status],
        findings=tuple((f.display, f"{f.system} {f.code}") for f in case.findings),
    )


def _tally(cases: Sequence[Case], text: dict[str, str]) -> list[TallyRow]:
    """Findings by how many cases have them, the most frequent first; then those without, and the unknown."""
    total = len(cases)
    displays = Counter(d for c in cases if c.status is FindingStatus.PRESENT for d in {f.display for f in c.findings})
    counted = [(display, "present", n) for display, n in displays.most_common(TALLY_ROWS)]
    for status in (FindingStatus.NONE, FindingStatus.UNKNOWN):
        n = sum(c.status is status for c in cases)
        if n:
            counted.append((text[STATUS_TEXT[status]], STATUS_TEXT[status], n))
    return [
        TallyRow(label, status, text["tally_of"].format(n=n, total=total), round(100 * n / total))
        for label, status, n in counted
    ]


def _number(value: float, language: Language, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.replace(".", ",") if language == "es" else text
