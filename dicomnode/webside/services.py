"""Builds what the web application is given, from the parts of one node."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import structlog
from PIL import Image

from dicomnode import __version__
from dicomnode.archive.cases import Cases
from dicomnode.domain import ModelId, PseudoUid
from dicomnode.errors import DicomnodeError, NotFound, PackError
from dicomnode.index.repository import VectorIndex
from dicomnode.models.threads import wait_passively
from dicomnode.node import Node
from dicomnode.report.codes import Language
from dicomnode.telemetry.audit import AuditEvent
from dicomnode.web.handles import Handles
from dicomnode.webside.graph import Graphs
from dicomnode.webside.images import Images
from dicomnode.webside.opened import DAY_S, Opened, OpenResult, still_shown
from dicomnode.webside.outlines import Outliner, Outlines
from dicomnode.webside.results import Embed, Results
from dicomnode.workflow.models import Model
from dicomnode.workflow.uploads import Uploads

if TYPE_CHECKING:  # it brings the networks along
    from dicomnode.models.embedder import Embedder

log = structlog.get_logger(__name__)

WARM_AFTER_S = 2.0
SHEETS = 16  # drawn sheets and documents kept in memory, about 1 MB each

Readiness = Mapping[str, Any]
Shown = tuple[PseudoUid, ...]  # the cases that a sheet shows


class WebSide:
    """What the web application calls (``web.options.WebServices``), with ``results`` and ``queries``.

    Parameters
    ----------
    node : Node
    readiness : callable
        State of the node's processes.
    """

    def __init__(self, node: Node, readiness: Callable[[], Readiness]) -> None:
        self._node = node
        self._readiness = readiness
        self._loading = threading.Lock()
        self._warming = threading.Lock()
        self._drawing = threading.Lock()
        self._sheets: OrderedDict[tuple[str, str, str], tuple[Shown, bytes]] = OrderedDict()

    def readiness(self) -> Readiness:
        """State of the parts by name."""
        return self._readiness()

    def answer(self, token: str, actor: str) -> dict[str, Any] | Literal["expired"] | None:
        """The answer behind a link, recorded as an opening."""
        try:
            stored = self._node.answers.by_token(token)
        except NotFound:
            return None
        if time.time() - stored.created > self._node.settings.web.link_days * DAY_S:
            return "expired"
        self._node.audit.record(AuditEvent.ANSWER_VIEWED, actor=actor, row=stored.id)
        return still_shown(stored.answer, self._cases).as_json()

    def link_state(self, token: str) -> Literal["open", "expired", "unknown"]:
        """Whether a link leads somewhere."""
        created = self._node.answers.created_of(token)
        if created is None:
            return "unknown"
        return "expired" if time.time() - created > self._node.settings.web.link_days * DAY_S else "open"

    def thumbnail(self, token: str, instance_uid: str) -> bytes | None:
        """PNG of a slice that an answer shows."""
        answer = still_shown(self._node.answers.by_token(token).answer, self._cases)
        shown = {m.instance for c in answer.cases for m in c.matches}
        if instance_uid not in shown:  # a link opens its own answer and nothing else
            return None
        pixels = self._node.case_picture(PseudoUid(instance_uid), 0)
        if pixels is None:
            return None
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    def metrics(self) -> bytes:
        """The Prometheus text of the whole node."""
        return self._node.metrics.render()

    @cached_property
    def _cases(self) -> Cases:
        return Cases(self._node.catalogue.engine)

    @cached_property
    def results(self) -> Results:
        """Services below ``/api/v1/results``; opens the index by the pack's manifest, without its networks."""
        node = self._node
        handles = Handles(bytes.fromhex(node.vault.keyed_hash("web", "cases")))
        opened = Opened(
            node.answers, node.catalogue.patient_of, node.folders.results, node.audit, node.settings.web.link_days
        )
        opened.uploads = self.queries
        images = Images(self._cases, node.objects, node.thumbnails)
        return Results(
            opened,
            self._cases,
            Graphs(self._index_of, node.catalogue, self._cases, handles, node.settings.retrieval.k),
            images,
            handles,
            Outlines(images, self._outliner),
            embed=self._embed,
            explains=lambda model_id: node.models.of(model_id) is not None,
            warm=self.warm,
            sheet=self._sheet,
            organisation=node.settings.node.organisation,
        )

    @cached_property
    def queries(self) -> Uploads:
        """Queries made in the browser; what a former process left is swept."""
        node, web = self._node, self._node.settings.web
        return Uploads(
            self._context,
            node.settings.identified_dir / "uploads",
            node.folders.work / "uploads",
            max_bytes=web.upload_mb << 20,
            minutes=web.upload_minutes,
            audit=node.audit,
            default_issuer=node.settings.node.default_issuer,
            shown=lambda answer: still_shown(answer, self._cases),
        )

    def _index_of(self, model_id: ModelId) -> VectorIndex:
        return self._node.models.answering(model_id).index

    def _context(self) -> Any:
        """With the model in force now, its networks loaded: all of one query is done with it."""
        model = self._node.models.active()
        self._load(model)
        return model.context

    def warm(self) -> None:
        """Load the networks soon, so that who asks for an explanation does not wait; the first images come before."""
        if not self._node.models.active().is_loaded and self._warming.acquire(blocking=False):
            timer = threading.Timer(WARM_AFTER_S, self._warm)
            timer.daemon = True
            timer.start()

    def _warm(self) -> None:
        try:
            self._load(self._node.models.active())
        except DicomnodeError as exc:  # told to who asks for an explanation
            log.warning("networks_not_loaded", code=exc.code, line=exc.line)
        finally:
            self._warming.release()

    def _embed(self, model_id: ModelId) -> Embed:
        """What embeds prepared slices as an answer's model does.

        Raises
        ------
        NotFound
            The model is no longer here.
        PackError
            Its networks cannot be loaded.
        """
        model = self._node.models.of(model_id)
        if model is None:
            raise NotFound("the model that gave this answer is no longer here, so it cannot be explained")
        return self._load(model).embed

    def _outliner(self, model_id: ModelId) -> Outliner | None:
        """What outlines for an answer's model, by its manifest; the networks are loaded when they are needed."""
        model = self._node.models.of(model_id)
        if model is None or model.manifest.segmentation is None:
            return None
        return Outliner(
            model.manifest.segmentation, model.manifest.dice, lambda images: self._load(model).masks(images)
        )

    def _load(self, model: Model) -> Embedder:
        with self._loading:
            try:
                wait_passively()
                return model.embedder()
            except DicomnodeError:
                raise
            except (ImportError, OSError) as exc:
                raise PackError(f"the networks cannot be loaded ({type(exc).__name__})") from exc

    def _sheet(self, result: OpenResult, kind: str, language: str) -> bytes:
        """The contact sheet of a stored answer; drawn once, and again when cases of it are gone."""
        key, shown = (result.id, kind, language), tuple(case.study_uid for case in result.answer.cases)
        with self._drawing:
            held = self._sheets.get(key)
            if held is None or held[0] != shown:
                held = self._sheets[key] = (shown, self._draw(result, kind, Language(language)))
            self._sheets.move_to_end(key)
            while len(self._sheets) > SHEETS:
                self._sheets.popitem(last=False)
            return held[1]

    def _draw(self, result: OpenResult, kind: str, language: Language) -> bytes:
        from dicomnode.report.document import draw_document
        from dicomnode.report.sheet_image import draw_sheet
        from dicomnode.workflow.reporting import tiles_of

        node = self._node
        tiles = tiles_of(result.answer, node.query_picture, node.case_picture)
        if kind == "pdf":
            created = datetime.fromtimestamp(result.created).astimezone()
            return draw_document(tiles, language, __version__, f"{node.link_base}/v/r/{result.id}", created=created)
        buffer = BytesIO()
        draw_sheet(tiles, language, __version__).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def close(self) -> None:
        """Stop the queries and delete what is left of them."""
        if "queries" in self.__dict__:
            self.queries.close()
        self._node.close()
