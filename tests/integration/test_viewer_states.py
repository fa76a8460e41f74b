"""Every state of the page violates nothing of WCAG 2.2 AA and shows the notice: those that a test must bring about.

The page's own answers come from a real node; where a state would need another repository (no similar case, one case,
two hundred), the answer is changed on its way to the browser, so that the page is what is tested.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect
from test_viewer import AXE, NOTICE, SIZES, Site, browser, site, violations

__all__ = ["browser", "site"]  # fixtures: the same node for all that is here

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed (npm ci in viewer)"),
]
Graph = dict[str, Any]
SETTLED = "() => document.querySelector('.area')?.getAttribute('aria-busy') === 'false'"
MANY = 200


def _verdict(kind: str) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        graph["verdict"] = kind
        graph["p"] = 0.01 if kind == "none" else None
        if kind == "not-searchable":
            _first(0)(graph)

    return change


def _first(cases: int) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        graph["nodes"], graph["edges"] = graph["nodes"][: cases + 1], []
        graph["total"] = cases

    return change


def _many(graph: Graph) -> None:
    some = graph["nodes"][1:]
    more = [
        {
            **some[i % len(some)],
            "id": f"case{i}",
            "rank": i + 1,
            "similarity": 0.9 - i / 500,
            "distance": 0.1 + i / 500,
            "angle": i * 2.4,
            "has_picture": False,
        }
        for i in range(MANY)
    ]
    graph["nodes"], graph["edges"], graph["total"] = [graph["nodes"][0], *more], [], MANY


def _bare(graph: Graph) -> None:
    for node in graph["nodes"][1:]:
        node |= {"has_picture": False, "modality": "", "body_part": "", "findings": [], "status": "unknown"}


CHANGES: dict[str, Callable[[Graph], None]] = {
    "no similar case": _verdict("none"),
    "repository too small": _verdict("repository-too-small"),
    "not searchable": _verdict("not-searchable"),
    "no case": _first(0),
    "one case": _first(1),
    "two hundred cases": _many,
    "cases without picture or metadata": _bare,
}


def _changed(page: Page, change: Callable[[Graph], None]) -> None:
    def graph(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        change(body)
        route.fulfill(response=answer, json=body)

    def about(route: Route) -> None:
        answer = route.fetch()
        body, probe = answer.json(), {"verdict": "", "nodes": [], "edges": []}
        change(probe)
        if probe["verdict"]:
            body["verdict"] = probe["verdict"]
        route.fulfill(response=answer, json=body)

    page.route(re.compile(r"/graph(\?|$)"), graph)
    page.route(re.compile(r"/results/[0-9a-f]+$"), about)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("state", CHANGES)
def test_answers_of_every_kind(site: Site, state: str, size: tuple[int, int]) -> None:
    page = site.page(size, bypass_csp=True)
    _changed(page, CHANGES[state])
    page.goto(site.link)
    page.wait_for_function(SETTLED)
    expect(page.get_by_text(NOTICE["en"])).to_be_visible()
    assert violations(page) == []
    for tab in ("list", "query", "compare", "case"):
        page.locator(f"#tab-{tab}").click()
        expect(page.locator(f"#tab-{tab}")).to_have_attribute("aria-selected", "true")
        assert violations(page) == [], tab
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
    page.context.close()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_loading_unknown_links_and_the_page_without_script(site: Site, size: tuple[int, int]) -> None:
    page = site.page(size, bypass_csp=True)
    page.route(re.compile(r"/graph|/results/[0-9a-f]+$"), lambda route: None)  # never answered
    page.goto(site.link)
    page.locator(".area[aria-busy='true']").wait_for()
    expect(page.get_by_text(NOTICE["en"])).to_be_visible()
    assert violations(page) == []
    page.context.close()
    page = site.page(size, bypass_csp=True)
    for address in (f"/v/q/{'0' * 32}", f"/v/r/{'0' * 32}", f"{site.path}/plain"):
        page.goto(site.node.url + address)
        page.locator("h1").first.wait_for()
        expect(page.get_by_text(NOTICE["en"])).to_be_visible()
        assert violations(page) == [], address
    page.context.close()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_an_upload_under_way_and_one_that_failed(site: Site, size: tuple[int, int]) -> None:
    page = site.page(size, bypass_csp=True)
    page.goto(f"{site.node.url}/v/")
    page.locator("#pick-files").set_input_files([{"name": "a.svg", "mimeType": "image/png", "buffer": b"<svg/>"}])
    page.locator("#start").click()
    page.locator("#again").wait_for()
    assert violations(page) == []
    page.context.close()
    page = site.page(size, bypass_csp=True)
    page.goto(f"{site.node.url}/v/")
    page.route(re.compile(r"/events|/queries/"), lambda route: None)  # it stays under way
    page.locator("#pick-files").set_input_files([str(p) for p in site.study])
    page.locator("#start").click()
    page.locator("#meter").wait_for()
    expect(page.get_by_text(NOTICE["en"])).to_be_visible()
    assert violations(page) == []
    page.context.close()
