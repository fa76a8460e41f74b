"""Which model answers: the one in force, noticed within a query, and those whose vectors are still kept.

A process asks for the model in force at the beginning of each piece of work and does all of it with that one, so that
no answer mixes two. Networks are loaded when they are first needed; a search needs none. The index of the model before
stays open, for what was begun with it and for going back. Never decides which model is in force.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dicomnode.domain import ModelId
from dicomnode.index.repository import VectorIndex
from dicomnode.models.manifest import Manifest, read_manifest

if TYPE_CHECKING:  # a receiver searches without networks
    from dicomnode.models.embedder import Embedder
    from dicomnode.workflow.context import Context

OPEN = 3  # models that are held open: the one in force, the one before, and one that a page asks for


class Model:
    """One model: its pack, its index, and the networks once somebody needs them; safe for threads."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        index: VectorIndex,
        load: Callable[[Path], Embedder],
        context: Callable[[Model], Context],
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.index = index
        self._load = load
        self._make_context = context
        self._lock = threading.Lock()
        self._embedder: Embedder | None = None

    @property
    def model_id(self) -> ModelId:
        """Identity of the pack."""
        return self.manifest.model_id

    @property
    def is_loaded(self) -> bool:
        """Whether the networks are in memory."""
        return self._embedder is not None

    def embedder(self) -> Embedder:
        """The networks, loaded by the first call.

        Raises
        ------
        PackError
            The pack cannot be loaded.
        """
        with self._lock:
            if self._embedder is None:
                self._embedder = self._load(self.folder)
            return self._embedder

    @cached_property
    def context(self) -> Context:
        """What the workflow's steps call, with this model."""
        return self._make_context(self)


class Models:
    """The models of one node; safe for threads.

    Parameters
    ----------
    active : callable
        Folder of the pack in force; asked each time.
    find : callable
        Folder of the pack with a model id, None where there is none.
    open_index : callable
        The index of a model.
    load : callable
        Loads a pack's networks.
    context : callable
        Everything that the workflow's steps call, with a model.
    """

    def __init__(
        self,
        active: Callable[[], Path],
        find: Callable[[ModelId], Path | None],
        open_index: Callable[[Manifest], VectorIndex],
        load: Callable[[Path], Embedder],
        context: Callable[[Model], Context],
    ) -> None:
        self._active = active
        self._find = find
        self._open_index = open_index
        self._load = load
        self._context = context
        self._lock = threading.Lock()
        self._held: dict[ModelId, Model] = {}  # used last comes last
        self._in_force: Model | None = None

    def active(self) -> Model:
        """The model in force now.

        Raises
        ------
        DicomnodeError
            Its pack or the catalogue cannot be read.
        """
        with self._lock:
            folder = self._active()
            if self._in_force is None or self._in_force.folder != folder:
                self._in_force = self._open(folder)
            return self._in_force

    def of(self, model_id: ModelId) -> Model | None:
        """A model by its id; None where its pack is not here."""
        with self._lock:
            held = self._held.get(model_id)
            if held is not None:
                return held
            folder = self._find(model_id)
            return None if folder is None else self._open(folder)

    def answering(self, model_id: ModelId) -> Model:
        """The model that gave an answer, where its vectors are still kept; else the one in force."""
        active = self.active()
        if active.model_id == model_id:
            return active
        found = self.of(model_id)
        return found if found is not None and found.index.store.count() else active

    def kept(self) -> list[Model]:
        """The model in force, then the others whose packs are here and whose vectors are kept."""
        active = self.active()
        others = [self.of(ModelId(name)) for name in active.index.store.other_models()]
        return [active, *(m for m in others if m is not None)]

    def open(self, folder: Path) -> Model:
        """The model of a pack's folder, whether it is in force or not."""
        with self._lock:
            return self._open(folder)

    def _open(self, folder: Path) -> Model:
        manifest = read_manifest(folder)
        held = self._held.pop(manifest.model_id, None)
        if held is None or held.folder != folder:
            index = self._open_index(manifest) if held is None else held.index
            held = Model(folder, manifest, index, self._load, self._context)
        self._held[manifest.model_id] = held
        for name in list(self._held):
            if len(self._held) > OPEN and self._held[name] not in (held, self._in_force):
                self._held.pop(name).index.close()
        return held

    def close(self) -> None:
        """End the search processes."""
        with self._lock:
            for model in self._held.values():
                model.index.close()
            self._held, self._in_force = {}, None
