"""A vector index with a catalogue of its own in one folder: for measuring, beside any node.

The same store, segments and search as a node's; the catalogue knows no studies, so that it never answers with cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicomnode.archive.database import open_engine
from dicomnode.archive.schema import metadata
from dicomnode.domain import ModelId
from dicomnode.index.repository import VectorIndex


@contextmanager
def standalone_index(folder: Path, model_id: ModelId, dim: int) -> Iterator[VectorIndex]:
    """An empty index of one model in ``folder``, searched exactly; closed at the end, the folder is the caller's."""
    engine = open_engine(folder / "catalogue.sqlite3")
    try:
        metadata.create_all(engine)
        index = VectorIndex(folder / "index", engine, model_id, dim, backend="exact")
        yield index
        index.close()
    finally:
        engine.dispose()
