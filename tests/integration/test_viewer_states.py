"""Every state of the viewer and of the pages beside it, at four sizes: its words, the notice, its place, and axe-core.

What a small repository does not answer (200 cases, cases about which nothing is known) is the node's own answer,
changed on its way to the page.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pages import AXE, BROWSER_MARKS, DESKTOP, LARGE, NOTICE, PHONE, TABLET, Site, link_of, violations
from playwright.sync_api import Browser, Page, Route, expect

from dicomnode.testing import Pacs, RunningNode, sample_repository, sample_study, write_study

PATIENTS = 22  # fewer than 20 would be "repository too small"
MANY = 200
SIZES = {"desktop": DESKTOP, "large": LARGE, "tablet": TABLET, "phone": PHONE}
NOWHERE = "0" * 32
PASSWORD = "correct horse battery"
GRAPH, RESULT, CASE = (re.compile(r) for r in (r"/graph(\?|$)", r"/results/[0-9a-f]+$", r"/cases/(?!query$)[\w-]+$"))
AT_REST = "() => document.querySelector('.area')?.getAttribute('aria-busy') === 'false' && window.__viewer?.ready"

pytestmark = [*BROWSER_MARKS, pytest.mark.skipif(not AXE.exists(), reason="axe-core is missing (npm ci in viewer)")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Site]:
    """A node with sign-in that has answered; its link is open to whoever presses the button."""
    base = tmp_path_factory.mktemp("states")
    findings = sample_repository(base / "repository", PATIENTS, slices=2, matrix=64)
    study = write_study(sample_study(4, patient_id="ASKS-4", seed=502, matrix=64), base / "study")
    auth = 'auth = {method = "users", links = "open"}'
    with Pacs() as pacs, RunningNode(base / "node", pacs, quiet_s=0.5, receivers=1, sections=auth) as node:
        command = [sys.executable, "-m", "dicomnode.cli", "user", "add", "anna", "--password-stdin"]
        subprocess.run([*command, "--config", str(node.settings)], input=f"{PASSWORD}\n", text=True, check=True)
        added = node.run("index", "add", base / "repository", "--findings", findings)
        assert added.returncode == 0, added.stderr
        yield Site(node, link_of(node, pacs, study), study, browser)


@pytest.fixture(params=list(SIZES))
def page(site: Site, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of each size, of nobody who is signed in."""
    page = site.page(SIZES[request.param], bypass_csp=True)
    yield page
    page.unroute_all(behavior="ignoreErrors")
    page.context.close()


@pytest.fixture(scope="module")
def cookies(site: Site) -> list[Any]:
    """Of a session of anna: signed in once, as the node takes few sign-ins a minute."""
    page = site.page()
    page.goto(f"{site.node.url}/sign-in")
    page.fill("#name", "anna")
    page.fill("#password", PASSWORD)
    page.get_by_role("button").click()
    page.wait_for_url(f"{site.node.url}/v/")
    found = page.context.cookies()
    page.context.close()
    return found


@pytest.fixture
def inside(page: Page, cookies: list[Any]) -> Page:
    """The page, of somebody who is signed in."""
    page.context.add_cookies(cookies)
    return page


def is_well(page: Page, *, notice: bool = True) -> None:
    """The notice is in view, nothing is wider than the screen, nothing breaks WCAG 2.2 AA."""
    if notice:
        expect(page.get_by_text(NOTICE["en"]).first).to_be_in_viewport(ratio=1)
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    page.wait_for_timeout(300)  # what fades in has its full contrast only then
    assert violations(page) == []


def many(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many cases as the page asks for at most, without pictures."""
    made = []
    for n in range(MANY):
        similarity = 0.9 - n / 500
        told = {"id": f"x{n}", "rank": n + 1, "similarity": similarity, "distance": 1 - similarity, "angle": 2.4 * n}
        made.append({**nodes[n % len(nodes)], **told, "has_picture": False})
    return made


def bare(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases of which there is no picture and of which nothing is known."""
    nothing = {"modality": "", "body_part": "", "subject": "", "findings": [], "status": "unknown"}
    return [{**node, **nothing, "has_picture": False} for node in nodes]


Cases = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
ANSWERS: dict[str, tuple[str, float | None, Cases, str]] = {  # verdict, p, cases, what the page says
    "none": ("none", 0.01, lambda cases: cases, "No similar case in this repository"),
    "not searchable": ("not-searchable", None, lambda _: [], "This image could not be searched"),
    "no cases": ("similar", 0.5, lambda _: [], "There is no case to show"),
    "one case": ("similar", 0.5, lambda cases: cases[:1], "A similar case was found"),
    "200 cases": ("similar", 0.5, many, "Similar cases found: the 200 nearest are shown"),
    "bare cases": ("similar", 0.5, bare, "Similar cases found"),
}


def answers(page: Page, verdict: str, p: float | None, cases: Cases) -> None:
    """Change what the node answers to this page."""

    def graph(route: Route) -> None:
        response = route.fetch()
        told = response.json()
        first, *others = told["nodes"]
        told |= {"verdict": verdict, "p": p, "nodes": [first, *cases(others)], "edges": []}
        route.fulfill(response=response, json=told)

    def result(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "verdict": verdict, "p": p})

    def detail(route: Route) -> None:
        response = route.fetch()
        nothing = dict.fromkeys(("manufacturer", "organisation", "age_band", "sex", "subject", "source"), "")
        told = {**response.json(), **nothing, "modality": "", "body_part": "", "series": [], "best": []}
        route.fulfill(response=response, json={**told, "findings": [], "status": "unknown"})

    page.route(GRAPH, graph)
    page.route(RESULT, result)
    if cases is bare:
        page.route(CASE, detail)


@pytest.mark.parametrize("state", ANSWERS)
def test_an_answer(site: Site, inside: Page, state: str) -> None:
    verdict, p, cases, said = ANSWERS[state]
    answers(inside, verdict, p, cases)
    inside.goto(site.link)
    inside.wait_for_function(AT_REST)
    expect(inside.locator("h1")).to_contain_text(said)
    shown = inside.evaluate("() => window.__viewer.nodes.filter(n => n.rank > 0).length")
    if state in ("not searchable", "no cases"):
        assert shown == 0
        expect(inside.locator(".over-box")).to_be_in_viewport(ratio=1)
    else:
        assert shown == {"one case": 1, "200 cases": MANY}.get(state, 10)
    is_well(inside)
    for tab in ("case", "compare", "list", "query"):
        inside.locator(f"#tab-{tab}").click()
        is_well(inside)
    if shown:
        inside.locator("#tab-case").click()
        inside.locator("#case-next").click()
        expect(inside.locator("#panel-case h2")).to_have_text("Case 1")
    if state == "bare cases":
        expect(inside.locator("#panel-case .no-picture")).to_be_visible()
        expect(inside.locator("#panel-case .facts .unknown")).to_have_count(8)
        is_well(inside)
        inside.locator("#case-compare").click()
        is_well(inside)


def test_loading(site: Site, inside: Page) -> None:
    inside.route(GRAPH, lambda _: None)  # never answered
    inside.goto(site.link)
    expect(inside.locator(".area")).to_have_attribute("aria-busy", "true")
    is_well(inside)


def test_the_plain_page(site: Site, inside: Page) -> None:
    inside.goto(f"{site.link}/plain")
    expect(inside.locator(".case")).to_have_count(10)
    is_well(inside)
    inside.mouse.wheel(0, 900)
    inside.wait_for_function("() => scrollY > 100")
    expect(inside.get_by_text(NOTICE["en"])).to_be_in_viewport(ratio=1)


def test_the_door_of_a_link(site: Site, page: Page) -> None:
    page.goto(site.link)
    expect(page.get_by_role("button", name="Open the result")).to_be_in_viewport(ratio=1)
    is_well(page)


def test_sign_in(site: Site, page: Page) -> None:
    page.goto(f"{site.node.url}/sign-in")
    expect(page.get_by_role("button", name="Sign in")).to_be_in_viewport(ratio=1)
    is_well(page)
    page.fill("#name", "anna")
    page.fill("#password", "wrong password!")
    page.get_by_role("button").click()
    expect(page.get_by_role("alert")).to_be_in_viewport(ratio=1)
    is_well(page)


def test_an_unknown_link(site: Site, inside: Page) -> None:
    for address in (f"/v/q/{NOWHERE}", f"/v/r/{NOWHERE}"):  # made by the page's script; by the node
        inside.goto(site.node.url + address)
        expect(inside.locator("h1")).to_have_text("This link leads nowhere")
        is_well(inside)


def test_an_upload_under_way_and_one_that_failed(site: Site, inside: Page) -> None:
    inside.goto(f"{site.node.url}/v/")
    is_well(inside)
    inside.locator("#pick-files").set_input_files([{"name": "a.svg", "mimeType": "image/png", "buffer": b"<svg/>"}])
    inside.locator("#start").click()
    expect(inside.locator("#again")).to_be_in_viewport(ratio=1)
    expect(inside.locator(".message")).to_contain_text("not a kind of file")
    is_well(inside)
    inside.route(re.compile(r"/queries/\w+"), lambda _: None)  # no word of how far it is
    inside.locator("#again").click()
    inside.locator("#pick-files").set_input_files([str(p) for p in site.study])
    inside.locator("#start").click()
    expect(inside.locator(".step-done").first).to_be_visible()
    expect(inside.locator("#cancel")).to_be_in_viewport(ratio=1)
    is_well(inside)


def test_an_expired_link(site: Site, cookies: list[Any]) -> None:
    """Last: no test after it may use the answer's link."""
    pages = [site.page(size, bypass_csp=True) for size in SIZES.values()]
    for page in pages:
        page.context.add_cookies(cookies)
        page.goto(site.link)
        page.wait_for_function(AT_REST)
    site.node.stop()
    with sqlite3.connect(site.node.var / "catalogue.sqlite3") as catalogue:
        long_ago = time.time() - 400 * 86400  # links work for link_days from then
        catalogue.execute("UPDATE answers SET created = ? WHERE token = ?", (long_ago, site.link.rsplit("/", 1)[1]))
    site.node.start()
    for page in pages:
        page.evaluate("() => { location.hash = '#k=12' }")  # of a page that is open; then of one being opened
        expect(page.locator("h1")).to_have_text("This link has expired", timeout=60_000)
        is_well(page)
        answer = page.goto(site.link)
        assert answer is not None
        assert answer.status == 410
        expect(page.locator("h1")).to_have_text("This link has expired")
        is_well(page)
        page.context.close()
