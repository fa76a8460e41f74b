"""Shared fixtures: where the shared images are, and folders that tests may fill."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))  # modules that several tests import: planted, validators


def shared_data() -> Path:
    """Folder of the shared images; may be absent."""
    return Path(os.environ.get("DICOMNODE_SHARED", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared images; the test is skipped where they are absent."""
    folder = shared_data()
    if not folder.is_dir():
        pytest.skip(f"shared images are absent ({folder}); set DICOMNODE_SHARED")
    return folder


@pytest.fixture
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder and an environment without dicomnode's variables."""
    for name in list(os.environ):
        if name.startswith("DICOMNODE_") and name != "DICOMNODE_SHARED":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
