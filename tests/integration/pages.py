"""What the tests of the viewer share: a node that has answered, its page in Chromium, and the story told there.

Every picture, distance and finding on the page comes from the node; nothing is stubbed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loop import reports, storescu, walk
from playwright.sync_api import Browser, Page, expect

from dicomnode.testing import Pacs, RunningNode

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "dicomnode" / "web" / "viewer" / "index.html"
AXE = ROOT / "viewer" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-software-rasterizer", "--disable-background-networking",
    "--disable-component-update", "--no-first-run",
]  # fmt: skip
DESKTOP, LARGE, TABLET, PHONE = (1440, 900), (1920, 1080), (820, 1180), (390, 844)
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
NOTICE = {
    "en": "Similar image of another patient, not a diagnosis",
    "es": "Imagen similar de otro paciente, no es un diagnóstico",
}
LANGUAGES = list(NOTICE)
UNKNOWN = {"en": "not known", "es": "desconocido"}
WAIT_MS = 30_000
SEARCH_MS = 300_000

BROWSER_MARKS = [
    pytest.mark.integration,
    pytest.mark.skipif(not BUNDLE.exists(), reason="the viewer is not built (make viewer)"),
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="Debian's chromium is not installed"),
    pytest.mark.skipif(shutil.which("storescu") is None, reason="needs the Debian package dcmtk"),
]


@dataclass
class Site:
    """A node that has answered a study, the link its report holds, and the study."""

    node: RunningNode
    link: str
    study: list[Path]
    browser: Browser

    def page(self, size: tuple[int, int] = DESKTOP, language: str = "en", *, bypass_csp: bool = False) -> Page:
        context = self.browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            locale=language,
            bypass_csp=bypass_csp,
            has_touch=size == PHONE,
        )
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        return page

    @property
    def path(self) -> str:
        return self.link[len(self.node.url) :]


def link_of(node: RunningNode, pacs: Pacs, study: Sequence[Path], seconds: float = 90) -> str:
    """Send a study with DCMTK; the link in the report that comes back."""
    storescu(node, *study)
    pacs.wait_for(1, timeout=seconds)
    sr = reports(pacs.received, str(pacs.datasets()[0].StudyInstanceUID))[0]
    texts = [str(item.TextValue) for item in walk(sr) if "TextValue" in item]
    return next(found[0] for text in texts if (found := re.search(r"http://\S+/v/r/\w+", text)))


def opened(page: Page, address: str) -> Page:
    """Open and wait for a graph that rests."""
    page.goto(address)
    rests(page)
    return page


def rests(page: Page) -> None:
    page.wait_for_function("() => window.__viewer && window.__viewer.ready && window.__viewer.nodes.length > 0")


def nodes(page: Page) -> list[dict[str, Any]]:
    return page.evaluate("() => window.__viewer.nodes.filter(n => n.rank > 0)")


def inversions(page: Page) -> int:
    """Pairs of cases of which the less similar is drawn nearer to the centre (half a pixel is rounding)."""
    centre = page.evaluate("() => window.__viewer.query")
    drawn = [(n["similarity"], ((n["x"] - centre["x"]) ** 2 + (n["y"] - centre["y"]) ** 2) ** 0.5) for n in nodes(page)]
    return sum(a[0] > b[0] and a[1] > b[1] + 0.5 for a in drawn for b in drawn)


def graph_of(site: Site, page: Page, asked: str = "") -> dict[str, Any]:
    token = site.link.rsplit("/", 1)[1]
    answer = page.request.get(f"{site.node.url}/api/v1/results/{token}/graph{asked}")
    assert answer.ok
    return answer.json()


def case_of(site: Site, page: Page, case: str) -> dict[str, Any]:
    answer = page.request.get(f"{site.node.url}/api/v1/results/{site.link.rsplit('/', 1)[1]}/cases/{case}")
    assert answer.ok
    return answer.json()


def select(page: Page, rank: int) -> None:
    """Click a case in the graph."""
    node = next(n for n in nodes(page) if n["rank"] == rank)
    page.mouse.click(node["x"], node["y"])


def painted(page: Page) -> list[float]:
    """How much the pixels of each pane differ: 0 is an empty canvas."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.pane-image')].map(c => {
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            let n = 0, s = 0, q = 0; for (let i = 0; i < d.length; i += 4) { n++; s += d[i]; q += d[i] * d[i]; }
            return Math.sqrt(q / n - (s / n) ** 2); })"""
    )


def violations(page: Page) -> list[str]:
    page.evaluate(AXE.read_text("utf-8"))
    found = page.evaluate("rules => axe.run({runOnly: rules})", RULES)["violations"]
    return [f"{v['id']}: {[n['target'] for n in v['nodes']]}" for v in found]


def tell_the_story(site: Site, language: str) -> None:
    """From the link in the report through graph, metadata, compare and "more like this" to a search of one's own."""
    page = site.page(language=language)
    policy: list[str] = []
    page.on("console", lambda m: policy.append(m.text) if "Content Security Policy" in m.text else None)
    faults: list[str] = []
    page.on("pageerror", lambda e: faults.append(str(e)))
    opened(page, site.link)
    expect(page.get_by_text(NOTICE[language])).to_be_visible()
    assert page.evaluate("() => document.documentElement.lang") == language
    assert not page.evaluate("() => document.createElement('canvas').getContext('webgl') !== null")
    stored = graph_of(site, page)
    assert [n["id"] for n in nodes(page)] == [n["id"] for n in stored["nodes"][1:]]

    select(page, 2)
    case = stored["nodes"][2]
    panel = page.locator("#panel-case")
    expect(panel.get_by_role("heading", level=2)).to_have_text({"en": "Case 2", "es": "Caso 2"}[language])
    score = f"{case['similarity']:.3f}".replace(".", "." if language == "en" else ",")
    expect(panel).to_contain_text(score)
    expect(panel).to_contain_text(case["subject"])
    known = case_of(site, page, case["id"])
    for fact in ("modality", "body_part", "manufacturer", "organisation", "age_band"):
        expect(panel.locator(".facts")).to_contain_text(known[fact] or UNKNOWN[language])
    for finding in case["findings"]:
        expect(panel).to_contain_text(finding["code"])

    page.locator("#case-compare").click()
    page.wait_for_function("() => document.querySelectorAll('.pane-image').length === 2")
    page.wait_for_function("() => [...document.querySelectorAll('.pane-message')].every(m => m.hidden)")
    assert all(spread > 5 for spread in painted(page))
    assert page.locator(".best").count() > 0
    expect(page.get_by_text(NOTICE[language])).to_be_visible()

    page.locator("#tab-case").click()
    page.locator("#case-more").click()
    page.wait_for_function("() => location.hash.includes('from=')")
    expect(page.locator(".crumb")).to_be_visible()
    expect(page.locator(".area")).to_have_attribute("aria-busy", "false")
    rests(page)
    assert case["id"] not in [n["id"] for n in nodes(page)]
    assert inversions(page) == 0
    page.go_back()
    expect(page.locator(".crumb")).to_be_hidden()

    page.get_by_role("link", name={"en": "New query", "es": "Nueva consulta"}[language]).click()
    page.locator("#pick-files").set_input_files([str(p) for p in site.study])
    page.locator("#start").click()
    page.wait_for_url(re.compile(r"/v/q/[0-9a-f]{32}"), timeout=SEARCH_MS)
    rests(page)
    assert nodes(page)
    assert inversions(page) == 0
    expect(page.get_by_text(NOTICE[language])).to_be_visible()
    assert policy == []
    assert faults == []
    page.context.close()
