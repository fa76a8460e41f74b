"""The results part of the API: what ``dicomnode.web.options.ResultServices`` asks, answered from the node's parts."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dicomnode.archive.cases import CaseRow, Cases
from dicomnode.domain import ModelId
from dicomnode.errors import Busy, InputError, NotFound
from dicomnode.models.display import FrameAt
from dicomnode.models.explain import occlusion
from dicomnode.web.access import Principal
from dicomnode.web.handles import QUERY, Handles
from dicomnode.web.options import FrameData, GraphAsk, WhyAsk
from dicomnode.webside.graph import Graphs
from dicomnode.webside.images import Images, Shown, render_png, series_json
from dicomnode.webside.opened import Opened, OpenResult, own_patients, still_shown
from dicomnode.webside.outlines import Outlines

PAIRS = 8  # slice pairs of a case that are named
EXPLAINED = 128  # explanations kept in memory, each some kilobytes
WAITING = 4  # that compute or wait for it; each holds a thread of the server

Embed = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
Sheet = Callable[[OpenResult, str, str], bytes]
_Pair = tuple[str, str, int, str, int]  # result, file and frame of the query, file and frame of the case


class Results:
    """Services below ``/api/v1/results``; safe for threads.

    Parameters
    ----------
    embed : callable
        Loads the networks of a model when first called: returns what embeds prepared slices.
    explains : callable
        Whether the networks of a model are still here.
    warm : callable
        Loads them in the background: somebody may soon ask why.
    sheet : callable
        (result, "png" or "pdf", language) to the file.
    """

    def __init__(
        self,
        opened: Opened,
        cases: Cases,
        graphs: Graphs,
        images: Images,
        handles: Handles,
        outlines: Outlines,
        *,
        embed: Callable[[ModelId], Embed],
        explains: Callable[[ModelId], bool],
        warm: Callable[[], None],
        sheet: Sheet,
        organisation: str,
    ) -> None:
        self._opened = opened
        self._cases = cases
        self._graphs = graphs
        self._images = images
        self._handles = handles
        self._outlines = outlines
        self._embed = embed
        self._explains = explains
        self._warm = warm
        self._sheet = sheet
        self._organisation = organisation
        self._explaining = threading.Lock()  # around what is kept
        self._computing = threading.Lock()  # one at a time has the processor
        self._places = threading.BoundedSemaphore(WAITING)
        self._explained: OrderedDict[_Pair, dict[str, Any]] = OrderedDict()

    def result(self, result_id: str, who: Principal) -> dict[str, Any]:
        """``Result`` of the API; recorded as an opening."""
        found = self._opened.find(result_id, who, opening=True)
        answer = found.answer
        return {
            "id": found.id,
            "kind": found.kind,
            "expires": found.expires,
            "verdict": answer.verdict.kind.value,
            "reason": answer.verdict.reason,
            "p": answer.verdict.p,
            "calibrated": answer.calibrated,
            "searched": answer.searched,
            "k": len(answer.cases),
            "query": {
                "modality": str(answer.query.get("modality", "")),
                "slices": int(answer.query.get("slices", 0)),
                "untaught": None if answer.untaught is None else answer.untaught.as_json(),
            },
            "model_id": answer.model_id,
            "explains": self._explains(answer.model_id),
            "outlines": self._outlines.said(answer.model_id),
            "organisation": self._organisation,
            "text": found.text,
        }

    def graph(self, result_id: str, ask: GraphAsk, who: Principal) -> dict[str, Any]:
        """``Graph`` of the API."""
        found = self._opened.find(result_id, who)
        start = self._case(found, ask.start) if ask.start else None
        return self._graphs.graph(found, ask, start)

    def case(self, result_id: str, case: str, who: Principal) -> dict[str, Any]:
        """``CaseDetail`` of the API; recorded as a view of the case."""
        found = self._opened.find(result_id, who)
        if case == QUERY:
            return self._query_detail(found)
        row = self._case(found, case)
        self._opened.viewed(found, row.patient, who, opening=True)
        self._warm()
        shown = self._images.of_case(row)
        rank = next((c.rank for c in found.answer.cases if c.study_uid == row.study), None)
        return {
            "id": case,
            "rank": rank,
            "subject": row.patient,
            "modality": row.modality,
            "body_part": row.body_part,
            "manufacturer": row.manufacturer,
            "organisation": row.organisation,
            "age_band": row.age_band,
            "sex": row.sex,
            "source": row.source,
            "status": row.status.value,
            "findings": [{**f.as_json(), "source": f.source} for f in row.findings],
            "series": self._series(found, shown),
            "best": self._best(found, row, shown),
        }

    def _query_detail(self, found: OpenResult) -> dict[str, Any]:
        shown = self._images.of_query(found)
        empty = ("subject", "body_part", "manufacturer", "organisation", "age_band", "sex", "source")
        return {
            "id": QUERY,
            "rank": None,
            **dict.fromkeys(empty, ""),
            "modality": str(found.answer.query.get("modality", "")),
            "status": "unknown",
            "findings": [],
            "series": self._series(found, shown),
            "best": [],
        }

    def _series(self, found: OpenResult, shown: Shown) -> list[dict[str, Any]]:
        model_id = found.answer.model_id
        return [series_json(i, s, outlined=self._outlines.offered(model_id, s)) for i, s in enumerate(shown.series)]

    def _best(self, found: OpenResult, row: CaseRow, shown: Shown) -> list[dict[str, Any]]:
        query = self._images.of_query(found)
        best = []
        for number, (instance, frame), similarity in self._graphs.pairs(found, row, PAIRS):
            here = shown.places.get((instance, frame))
            one = found.slices[number] if 0 <= number < len(found.slices) else None
            there = None if one is None else query.places.get((str(one.path), one.frame))
            if here is None:
                continue
            best.append(
                {
                    "series": here[0],
                    "frame": here[1],
                    "query_series": None if there is None else there[0],
                    "query_frame": None if there is None else there[1],
                    "similarity": similarity,
                }
            )
        return best

    def frame(self, result_id: str, case: str, series: int, frame: int, who: Principal) -> FrameData:
        """Values of one frame."""
        _, _, shown = self._shown(result_id, case, who)
        one, at = shown.frame(series, frame)
        tag = self._images.tag(shown, one, at)
        return FrameData(tag, lambda: self._images.values(one, at, shown.digests.get(at.path, "")).tobytes())

    def rendered(
        self,
        result_id: str,
        case: str,
        series: int,
        frame: int,
        window: tuple[float | None, float | None],
        who: Principal,
    ) -> FrameData:
        """One frame as PNG; its own window where none is given."""
        _, _, shown = self._shown(result_id, case, who)
        one, at = shown.frame(series, frame)
        default = one.window or (128.0, 256.0)
        centre = default[0] if window[0] is None else window[0]
        width = default[1] if window[1] is None else window[1]
        tag = f"{self._images.tag(shown, one, at)}-{centre:g}-{width:g}"
        digest = shown.digests.get(at.path, "")
        return FrameData(
            tag, lambda: render_png(self._images.values(one, at, digest), (centre, width), inverted=one.monochrome1)
        )

    def masks(self, result_id: str, case: str, series: int, frame: int, who: Principal) -> FrameData:
        """What the network outlines in one frame, as PNG."""
        found, row, shown = self._shown(result_id, case, who)
        one, at = shown.frame(series, frame)
        return self._outlines.png(found.answer.model_id, shown, one, at, row)

    def _shown(self, result_id: str, case: str, who: Principal) -> tuple[OpenResult, CaseRow | None, Shown]:
        """A case of a result, or its query (no row), and its series; recorded as a view of the case."""
        found = self._opened.find(result_id, who)
        if case == QUERY:
            return found, None, self._images.of_query(found)
        row = self._case(found, case)
        self._opened.viewed(found, row.patient, who)
        return found, row, self._images.of_case(row)

    def atlas(self, result_id: str, cases: Sequence[str], size: int, who: Principal) -> bytes:
        """Thumbnails as one picture; unknown handles are empty squares, as missing pictures are."""
        found = self._opened.find(result_id, who)
        rows = self._find_cases(found, [case for case in cases if case != QUERY])
        places = self._graphs.best_places(found, list(rows.values()))
        paths = self._cases.paths([place[0] for place in places.values()])
        pictures = []
        for case in cases:
            row = rows.get(case)
            if case == QUERY:
                one = self._graphs.best_slice(found)
                pictures.append(None if one is None else self._images.query_thumbnail(one))
            elif row is None or row.study not in places:
                pictures.append(None)
            else:
                instance, frame = places[row.study]
                pictures.append(self._images.thumbnail(row, instance, frame, paths.get(instance)))
        return self._images.atlas(pictures, size)

    def why(self, result_id: str, case: str, ask: WhyAsk, who: Principal) -> dict[str, Any]:
        """``Why`` of the API: one at a time, and kept."""
        if case == QUERY:
            raise NotFound("no such case")
        found = self._opened.find(result_id, who)
        row = self._case(found, case)
        self._opened.viewed(found, row.patient, who)
        mine, theirs = self._pair(found, row, ask)
        key = (result_id, str(mine.path), mine.frame, str(theirs.path), theirs.frame)
        with self._explaining:
            if key in self._explained:
                return self._explained[key]
        if not self._places.acquire(blocking=False):
            raise Busy("other explanations are being computed", advice="try again in a moment")
        try:
            return self._explain(key, found.answer.model_id, row, mine, theirs)
        finally:
            self._places.release()

    def _explain(self, key: _Pair, model_id: ModelId, row: CaseRow, mine: FrameAt, theirs: FrameAt) -> dict[str, Any]:
        with self._computing:
            with self._explaining:
                if key in self._explained:  # who came first has just computed it
                    return self._explained[key]
            case, query = self._images.prepared(theirs, row), self._images.prepared(mine)
            explained = occlusion(self._embed(model_id), case.pixels, query.pixels)
            made = {
                "rows": explained.case.shape[0],
                "columns": explained.case.shape[1],
                "case": explained.case.tolist(),
                "query": explained.query.tolist(),
                "case_place": list(case.place),
                "query_place": list(query.place),
                "similarity": explained.similarity,
            }
            with self._explaining:
                self._explained[key] = made
                while len(self._explained) > EXPLAINED:
                    self._explained.popitem(last=False)
            return made

    def _pair(self, found: OpenResult, row: CaseRow, ask: WhyAsk) -> tuple[FrameAt, FrameAt]:
        """The query's and the case's frame that are asked about; where not said, those that match best."""
        shown, query = self._images.of_case(row), self._images.of_query(found)
        best = self._best(found, row, shown)
        first: dict[str, Any] = best[0] if best else {}

        def pick(given: int | None, name: str) -> int:
            return given if given is not None else int(first.get(name) or 0)

        _, theirs = shown.frame(pick(ask.series, "series"), pick(ask.frame, "frame"))
        _, mine = query.frame(pick(ask.query_series, "query_series"), pick(ask.query_frame, "query_frame"))
        return mine, theirs

    def contact_sheet(self, result_id: str, kind: str, language: str, who: Principal) -> bytes:
        """The contact sheet of a stored answer, as "png" or "pdf"."""
        found = self._opened.find(result_id, who)
        if found.kind != "answer":
            raise NotFound("a query of the browser has no contact sheet")
        answer = still_shown(found.answer, self._cases)
        if not answer.cases:
            raise InputError("this answer has no cases to show")
        return self._sheet(replace(found, answer=answer), kind, language)

    def _case(self, found: OpenResult, handle: str) -> CaseRow:
        row = self._find_cases(found, [handle]).get(handle)
        if row is None:
            raise NotFound("no such case")
        return row

    def _find_cases(self, found: OpenResult, handles: Sequence[str]) -> dict[str, CaseRow]:
        """The cases behind handles, without those unknown, removed, excluded, or the query's own patient's."""
        named = {handle: name for handle in handles if (name := self._handles.open(found.id, handle)) is not None}
        rows = self._cases.by_ids(name.row for name in named.values())
        there = {handle: rows[name.row] for handle, name in named.items() if name.row in rows}
        there = {handle: row for handle, row in there.items() if named[handle].is_of(row.study)}
        own = own_patients(found, self._cases, {row.patient for row in there.values()})
        return {handle: row for handle, row in there.items() if row.study != found.study and row.patient not in own}
