"""Fixtures of the unit tests: an empty catalogue, a node in a folder, and one loaded model pack for all tests."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from prometheus_client.values import close_all_multiprocess_files
from sqlalchemy import Engine

from dicomnode.archive.database import open_engine
from dicomnode.archive.migrate import upgrade
from dicomnode.config import Settings
from dicomnode.models.embedder import Embedder
from dicomnode.node import Node, packs_folder
from dicomnode.testing import Pacs, free_port
from dicomnode.testing.packs import outlining_pack

MakeNode = Callable[..., Node]
DESCRIPTORS = 200  # of a process between two modules of tests; about 50 where nothing is left


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
def sample_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped pack with a decoder for phantoms."""
    return outlining_pack(tmp_path_factory.mktemp("packs") / "outlining", dice={"lungs": {"1": 0.88, "2": 0.92}})


@pytest.fixture(scope="session")
def made_nodes() -> list[Node]:
    """Every node that a test or a module's fixture made and that is open."""
    return []


@pytest.fixture(scope="module", autouse=True)
def _nodes_of_a_module(made_nodes: list[Node]) -> Iterator[None]:
    yield from _closed_after(made_nodes)
    close_all_multiprocess_files()
    gc.collect()
    left = len(os.listdir("/proc/self/fd"))
    assert left < DESCRIPTORS, f"{left} descriptors are open: tests or what they test leave some behind"


@pytest.fixture(autouse=True)
def _nodes_of_a_test(made_nodes: list[Node]) -> Iterator[None]:
    yield from _closed_after(made_nodes)


@pytest.fixture(autouse=True)
def _logging_put_back() -> Iterator[None]:
    """Every command sets logging up for its process, on what is its standard error then: closed for later tests."""
    root = logging.getLogger()
    before = (root.handlers, root.level, sys.excepthook, threading.excepthook, logging.raiseExceptions)
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        logging.captureWarnings(capture=False)
        root.handlers, root.level, sys.excepthook, threading.excepthook, logging.raiseExceptions = before


def _closed_after(made: list[Node]) -> Iterator[None]:
    """Closes what was made meanwhile: pynetdicom's associations end where a descriptor is past 1,023 (``select``)."""
    before = len(made)
    yield
    while len(made) > before:
        made.pop().close()


@pytest.fixture(scope="session")
def make_node(embedder: Embedder, made_nodes: list[Node]) -> MakeNode:
    """``make_node(folder, pacs, **sections)``: the parts of a node, without its processes; the model is shared."""

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
        shared, load = packs_folder() / "cenet-xception", node.load_pack
        node.load_pack = lambda pack: embedder if pack == shared else load(pack)  # type: ignore[method-assign]
        made_nodes.append(node)
        return node

    return make


@pytest.fixture
def node(make_node: MakeNode, tmp_path: Path) -> Node:
    """A fresh node in the test's own folder; nobody takes its results."""
    return make_node(tmp_path)
