"""The sentences about an answer, a case and a slice, in the report's language: one wording for SR, sheet, PDF and page.

Never says more than the answer does: unknown and none are written out, never left blank. Pure functions; light to
import, so that the web side can draw a sheet without the libraries of the Structured Report.
"""

from __future__ import annotations

from typing import Final

from dicomnode.domain import Answer, Case, FindingStatus, VerdictKind, cases_searched, reason_in
from dicomnode.report.codes import SPANISH, Texts
from dicomnode.report.header import clean_text
from dicomnode.report.spec import QueryImage

BELOW_THRESHOLD: Final = frozenset({VerdictKind.NONE, VerdictKind.REPOSITORY_TOO_SMALL})


def verdict_sentence(answer: Answer, t: Texts) -> str:
    """The verdict in one or two sentences, with what follows below it."""
    verdict = answer.verdict
    p = t.p_value.format(p=f"{verdict.p:.3g}".replace(".", t.decimal)) if verdict.p is not None else ""
    language = "es" if t is SPANISH else "en"
    reason = clean_text(reason_in(verdict.reason, language))
    first = {
        VerdictKind.SIMILAR: t.similar,
        VerdictKind.NONE: t.none,
        VerdictKind.REPOSITORY_TOO_SMALL: t.too_small,
        VerdictKind.NOT_SEARCHABLE: t.not_searchable,
    }[verdict.kind].format(
        searched=answer.searched,
        cases=cases_searched(answer.searched, language),
        p=p,
        reason=f": {reason.rstrip('.')}" if reason else "",
    )
    if not answer.cases:
        return f"{first} {t.no_case_listed}"
    rest = [t.listed_below] if verdict.kind in BELOW_THRESHOLD else []
    if answer.other_modality:
        rest = [t.other_modality.format(modality=clean_text(answer.other_modality))]
    if answer.untaught is not None:
        said = answer.untaught.words(language)
        rest.append(t.untaught.format(**{name: clean_text(words) for name, words in said.items()}))
    return " ".join((first, *rest))


def case_link(link: str, rank: int) -> str:
    """Address of one case on the answer's page."""
    return f"{link}#case={rank}"


def query_slice(image: QueryImage, t: Texts) -> str:
    """How a reader finds the query slice on the workstation: series and image number."""
    if image.series_number is None or image.instance_number is None:
        return t.query_slice_unnumbered
    return t.query_slice.format(series=image.series_number, image=image.instance_number)


def finding_text(case: Case, t: Texts) -> list[str]:
    """What is known of a case, one line a finding; unknown and none are said, never left blank."""
    if case.status is FindingStatus.UNKNOWN:
        return [t.finding_unknown]
    if case.status is FindingStatus.NONE:
        return [t.finding_none]
    said = [clean_text(f.display) or clean_text(f.code) or t.finding_uncoded for f in case.findings]
    return list(dict.fromkeys(said)) or [t.finding_uncoded]
