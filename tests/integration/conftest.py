"""The browser of the tests that look at pages; one a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pages import CHROMIUM, FLAGS
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without GPU and without WebGL, as in a remote desktop session."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()
