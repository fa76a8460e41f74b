"""``dicomnode quarantine``: what it says of received objects that are held."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from workflow_samples import receive

from dicomnode.config import load_settings
from dicomnode.node import Node
from dicomnode.scp.schema import JobState
from dicomnode.testing import sample_study


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "node.toml"
    peers = "".join(
        f'[[dicom.peers]]\nname = "{name}"\nae_title = "{title}"\nport = 11999\n'
        for name, title in (("ct-1", "CT"), ("ct-2", "CT"), ("pacs", "PACS"))
    )
    file.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n{peers}', "utf-8")
    return file


def run(*arguments: str) -> str:
    """What a command prints; it must succeed."""
    command = [sys.executable, "-m", "dicomnode.cli", "quarantine", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def hold(node: Node, calling: str, slices: int, seed: int) -> int:
    study = receive(node.spool, sample_study(slices, seed=seed, matrix=32), calling=calling)
    job = node.spool.claim(study)
    assert job is not None
    node.spool.set_job_state(job, JobState.QUARANTINED)
    return node.quarantine.hold("audit", "something was left", job_id=job)


def test_held_items_name_their_sender_and_how_many_objects_they_are(settings):
    node = Node(load_settings(settings))
    held = [hold(node, "PACS", 3, 1), hold(node, "CT", 2, 2), hold(node, "GONE", 1, 3)]
    file = node.quarantine.hold("input", "a file of 'index add'", place="x")
    items = json.loads(run("list", "--json", "--config", str(settings)))["items"]
    assert {i["id"]: (i["sender"], i["instances"]) for i in items} == {
        held[0]: ("pacs", 3),
        held[1]: ("ct-1, ct-2", 2),  # two peers under one AE title
        held[2]: ("GONE", 1),  # no longer a peer
        file: (None, None),
    }
    assert "sender: pacs\ninstances: 3\n" in run("show", str(held[0]), "--config", str(settings))
