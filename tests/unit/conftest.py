"""Fixtures of the unit tests: an empty catalogue, a node in a folder, and one loaded model pack for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from dicomnode.archive.database import open_engine
from dicomnode.archive.migrate import upgrade
from dicomnode.config import Settings
from dicomnode.models.embedder import Embedder
from dicomnode.node import Node, packs_folder
from dicomnode.testing import Pacs, free_port

MakeNode = Callable[..., Node]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An empty catalogue."""
    engine = open_engine(tmp_path / "catalogue.sqlite3")
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The shipped pack, loaded once."""
    return Embedder.load(packs_folder() / "cenet-xception", "cpu")


@pytest.fixture(scope="session")
def make_node(embedder: Embedder) -> Iterator[MakeNode]:
    """``make_node(folder, pacs, **sections)``: the parts of a node, without its processes; the model is shared."""
    made: list[Node] = []

    def make(folder: Path, *pacs: Pacs, **sections: dict[str, object]) -> Node:
        peers = [
            {"name": f"pacs-{n}", "ae_title": p.ae_title, "port": p.port, "results": True}
            for n, p in enumerate(pacs, start=1)
        ]
        node = Node(
            Settings(
                **{
                    "node": {"data_dir": folder / "var", **sections.pop("node", {})},
                    "dicom": {"port": free_port(), "peers": peers, **sections.pop("dicom", {})},
                    "web": {"port": free_port(), **sections.pop("web", {})},
                    "deid": {"workers": 1, **sections.pop("deid", {})},
                    **sections,
                }
            )
        )
        node.__dict__["embedder"] = embedder
        made.append(node)
        return node

    yield make
    for node in made:
        if "deid" in node.__dict__:
            node.deid.close()
        if "index" in node.__dict__:
            node.index.close()
        if "spool" in node.__dict__:
            node.spool.close()


@pytest.fixture
def node(make_node: MakeNode, tmp_path: Path) -> Node:
    """A fresh node in the test's own folder; nobody takes its results."""
    return make_node(tmp_path)
