"""The viewer on a node with sign-in and a small repository: what a user sees, and what the holder of one link sees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from pages import AXE, BROWSER_MARKS, link_of
from pages import violations as found_by_axe
from playwright.sync_api import Browser, Page, expect

from dicomnode.testing import Pacs, RunningNode, sample_repository, sample_study, write_study

PASSWORD = "correct horse battery"
PATIENTS = 5

pytestmark = BROWSER_MARKS


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A link of a node with users, whose repository has too few patients for a verdict."""
    base = tmp_path_factory.mktemp("signed")
    findings = sample_repository(base / "repository", PATIENTS, slices=3, matrix=64)
    study = write_study(sample_study(3, patient_id="ASKS-3", seed=9, matrix=64), base / "study")
    auth = 'auth = {method = "users", links = "open"}'
    with Pacs() as pacs, RunningNode(base / "node", pacs, quiet_s=0.5, receivers=1, sections=auth) as node:
        command = [sys.executable, "-m", "dicomnode.cli", "user", "add", "anna", "--password-stdin"]
        subprocess.run([*command, "--config", str(node.settings)], input=f"{PASSWORD}\n", text=True, check=True)
        added = node.run("index", "add", base / "repository", "--findings", findings)
        assert added.returncode == 0, added.stderr
        yield link_of(node, pacs, study)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(locale="en", viewport={"width": 1440, "height": 900}, bypass_csp=True)
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    context.close()


def violations(page: Page) -> list[str]:
    return found_by_axe(page) if AXE.exists() else []


def test_the_holder_of_one_link_is_offered_nothing_else(link: str, page: Page) -> None:
    page.goto(link)
    page.get_by_role("button").click()
    page.wait_for_function("() => window.__viewer && window.__viewer.ready && window.__viewer.nodes.length > 1")
    page.wait_for_load_state("networkidle")
    expect(page.locator("h1")).to_have_text("This repository is too small to tell")
    expect(page.locator(".caption")).to_contain_text("5 patients in the repository; a statement needs 20")
    assert page.get_by_role("link", name="New query").count() == 0
    assert page.locator("#sign-out").count() == 0
    page.locator("#case-next").click()
    expect(page.locator("#panel-case .tag")).to_have_text("below threshold")
    assert violations(page) == []


def test_a_user_is_named_asks_and_signs_out(link: str, page: Page) -> None:
    base = link[: link.index("/v/")]
    page.goto(f"{base}/sign-in")
    page.fill("#name", "anna")
    page.fill("#password", PASSWORD)
    page.get_by_role("button").click()
    page.goto(link)
    expect(page.get_by_role("link", name="New query")).to_be_visible()
    expect(page.locator(".account-name")).to_have_text("anna")
    assert violations(page) == []
    page.get_by_role("link", name="New query").click()
    expect(page.locator(".account-name")).to_have_text("anna")
    assert violations(page) == []
    page.locator("#sign-out").click()
    page.wait_for_url(f"{base}/sign-in")
    page.goto(f"{base}/v/")
    assert "/sign-in" in page.url
