"""What lies over the slices in Compare: the network's outlines of lungs and infection, and the regions of "why".

A real node with the shipped networks and a decoder trained on phantoms, and its page in Chromium.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from pages import (
    AXE,
    BROWSER_MARKS,
    DESKTOP,
    LANGUAGES,
    PHONE,
    TABLET,
    Site,
    case_of,
    graph_of,
    link_of,
    opened,
    violations,
)
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from dicomnode.testing import Pacs, RunningNode, sample_repository, sample_study, write_study
from dicomnode.testing.packs import outlining_pack

MATRIX, SLICES = 256, 3
WHY_MS = 90_000
DICE = {"lungs": {"3": 0.968}, "infection": {"3": 0.653}}
READY = "() => [...document.querySelectorAll('.pane-image')].filter(c => c.width > 0).length === 2"
VIEW = "#case=1&tab=compare"
NOT_A_FINDING = {"en": "not a finding, not a diagnosis", "es": "no son un hallazgo ni un diagnóstico"}
LABEL = {"en": "Network’s outline, not a finding", "es": "Contorno de la red, no es un hallazgo"}

pytestmark = BROWSER_MARKS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("outlines")
    pack = outlining_pack(base / "pack", dice=DICE)
    findings = sample_repository(base / "repository", 3, slices=SLICES, matrix=MATRIX)
    study = sample_study(SLICES, finding="consolidation", patient_id="ASKS", seed=501, matrix=MATRIX)
    files = write_study(study, base / "study")
    sections = f'[models]\npack = "{pack}"\n'
    with Pacs() as pacs, RunningNode(base / "node", pacs, quiet_s=0.5, receivers=1, sections=sections) as node:
        added = node.run("index", "add", base / "repository", "--findings", findings)
        assert added.returncode == 0, added.stderr
        yield Site(node, link_of(node, pacs, files), files, browser)


def compare(site: Site, size: tuple[int, int] = DESKTOP, language: str = "en", more: str = "", **how: bool) -> Page:
    page = site.page(size, language, **how)
    opened(page, site.link + VIEW + more)
    page.wait_for_function(READY)
    page.wait_for_function("() => !document.querySelector('.pane-stage[data-waiting]')")
    return page


def drawn(page: Page, which: str) -> None:
    """Wait for an outline in the first picture."""
    page.locator(f"#panel-compare .pane-outlines >> nth=0 >> .outline-line-{which}").wait_for(state="attached")


def boxes(page: Page, which: str) -> list[list[float]]:
    """Left, top, right and bottom of an outline in each picture, in shares of it as it is on the screen; [] of none."""
    return page.evaluate(
        """which => [...document.querySelectorAll('#panel-compare .pane')].map(pane => {
            const line = pane.querySelector(`.pane-outlines .outline-line-${which}`);
            if (line === null) return [];
            const canvas = pane.querySelector('.pane-image'), c = canvas.getBoundingClientRect();
            const scale = Math.min(c.width / canvas.width, c.height / canvas.height);
            const left = c.left + (c.width - scale * canvas.width) / 2;
            const top = c.top + (c.height - scale * canvas.height) / 2;
            const b = line.getBBox(), m = line.getScreenCTM();
            const at = (x, y) => { const p = new DOMPoint(x, y).matrixTransform(m);
                return [(p.x - left) / scale / canvas.width, (p.y - top) / scale / canvas.height]; };
            return [...at(b.x, b.y), ...at(b.x + b.width, b.y + b.height)]; })""",
        which,
    )


def given(site: Site, page: Page, who: str, series: int, frame: int, which: str) -> list[float] | None:
    """The same of what the node gives for a slice; None where it outlines nothing."""
    address = f"{site.node.url}/api/v1/results/{site.link.rsplit('/', 1)[1]}/cases/{who}/series/{series}"
    got = page.request.get(f"{address}/frames/{frame}/masks.png")
    mask = np.asarray(Image.open(io.BytesIO(got.body())).convert("RGB"))[..., ("lungs", "infection").index(which)] > 0
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0] / MATRIX, rows[0] / MATRIX, (columns[-1] + 1) / MATRIX, (rows[-1] + 1) / MATRIX]


def near(found: list[float], wanted: list[float] | None) -> bool:
    return wanted is not None and bool(np.abs(np.array(found) - wanted).max() < 0.01)


def test_each_outline_lies_where_the_network_drew_it(site: Site) -> None:
    page = compare(site)
    assert page.locator(".pane-outlines path").count() == 0, "off at first"
    expect(page.locator(".outlines")).to_be_hidden()
    page.locator("#outline-lungs").click()
    drawn(page, "lungs")
    expect(page.locator(".outline-state")).to_be_hidden()
    case = graph_of(site, page)["nodes"][1]["id"]
    best = case_of(site, page, case)["best"][0]
    query, other = boxes(page, "lungs")
    assert near(query, given(site, page, "query", best["query_series"], best["query_frame"], "lungs"))
    assert near(other, given(site, page, case, best["series"], best["frame"], "lungs"))
    page.locator(".pane-stage").first.focus()
    page.keyboard.press("+")
    expect(page.locator(".pane-stage").first).to_have_attribute("data-zoom", "1.25")
    assert near(boxes(page, "lungs")[0], query), "it is enlarged with the picture"
    page.context.close()


def test_each_slice_has_its_own_outlines(site: Site) -> None:
    page = compare(site, more="&outline=lungs,infection")
    stage = page.locator("#panel-compare .pane-stage").first
    seen = []
    for n in range(SLICES):
        stage.focus()
        page.keyboard.press("Home" if n == 0 else "ArrowDown")
        expect(page.locator(".pane-place").first).to_have_text(f"{n + 1} of {SLICES}")
        page.wait_for_function("() => document.querySelector('.outlines').getAttribute('aria-busy') === 'false'")
        for which in ("lungs", "infection"):
            wanted = given(site, page, "query", 0, n, which)
            line = page.locator(f"#panel-compare .pane:first-child .outline-line-{which}")
            expect(line).to_have_count(0 if wanted is None else 1)
            nothing = f"Image in question: no {which} outlined in this slice."
            assert (nothing in page.locator(".outline-state").inner_text()) is (wanted is None)
            if wanted is not None:
                assert near(boxes(page, which)[0] or [], wanted), (which, n)
                seen.append((which, tuple(wanted)))
    assert len(set(seen)) == len(seen), "no two slices have the same"
    assert {which for which, _ in seen} == {"lungs", "infection"}
    page.context.close()


@pytest.mark.parametrize("language", LANGUAGES)
def test_it_is_said_what_they_are_and_how_good(site: Site, language: str) -> None:
    page = compare(site, language=language, more="&outline=lungs,infection")
    drawn(page, "lungs")
    expect(page.locator("#panel-compare .pane-label").first).to_have_text(LABEL[language])
    said = page.locator(".outlines")
    expect(said).to_contain_text(NOT_A_FINDING[language])
    for dice in ("0.97", "0.65"):
        expect(said).to_contain_text(f"Dice {dice.replace('.', '.' if language == 'en' else ',')}")
    page.context.close()


def test_each_is_switched_by_itself_by_keyboard_and_kept_in_the_address(site: Site) -> None:
    page = compare(site)
    infection, lungs = page.locator("#outline-infection"), page.locator("#outline-lungs")
    page.locator("#why").focus()
    page.keyboard.press("Tab")
    expect(lungs).to_be_focused()
    page.keyboard.press("Tab")
    expect(infection).to_be_focused()
    page.keyboard.press("Space")
    expect(infection).to_have_attribute("aria-pressed", "true")
    expect(lungs).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".outline-legend")).to_have_text(re.compile("^Infection"))
    assert page.locator("#panel-compare .outline-line-lungs").count() == 0
    page.locator(".pane-stage").first.focus()
    page.keyboard.press("l")
    expect(lungs).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("i")
    expect(infection).to_have_attribute("aria-pressed", "false")
    assert "outline=lungs" in page.url
    second = page.context.new_page()
    opened(second, page.url)
    second.wait_for_function(READY)
    drawn(second, "lungs")
    expect(second.locator("#outline-lungs")).to_have_attribute("aria-pressed", "true")
    page.context.close()


def test_the_regions_of_why_lie_on_what_the_networks_saw(site: Site) -> None:
    page = compare(site)
    with page.expect_response(lambda r: "/why?" in r.url, timeout=WHY_MS) as answer:
        page.locator("#why").click()
    why = answer.value.json()
    page.locator(".pane-heat").first.wait_for(state="visible", timeout=WHY_MS)
    painted = page.evaluate(
        """() => [...document.querySelectorAll('.pane-heat')].map(c => {
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            let l = c.width, t = c.height, r = 0, b = 0;
            for (let y = 0; y < c.height; y++) for (let x = 0; x < c.width; x++)
                if (d[4 * (y * c.width + x) + 3]) { l = Math.min(l, x); r = Math.max(r, x + 1);
                    t = Math.min(t, y); b = Math.max(b, y + 1); }
            return [l / c.width, t / c.height, r / c.width, b / c.height]; })"""
    )
    for (left, top, right, bottom), place in zip(painted, (why["query_place"], why["case_place"]), strict=True):
        assert place != [0, 0, 1, 1]
        near = 1.5 / MATRIX
        assert left >= place[0] - near
        assert top >= place[1] - near
        assert right <= place[2] + near
        assert bottom <= place[3] + near
    page.context.close()


@pytest.mark.parametrize("size", [DESKTOP, TABLET, PHONE], ids=["desktop", "tablet", "phone"])
def test_outlines_violate_nothing_and_fit_every_screen(site: Site, size: tuple[int, int]) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed (npm ci in viewer)")
    page = compare(site, size, more="&outline=lungs,infection", bypass_csp=True)
    drawn(page, "lungs")
    assert violations(page) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
    for which in ("lungs", "infection"):
        button = page.locator(f"#outline-{which}").bounding_box()
        assert button is not None
        assert button["x"] + button["width"] <= size[0]
    page.context.close()


def test_the_page_keeps_its_policy_while_it_draws(site: Site) -> None:
    page = site.page()
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: said.append(str(e)))
    opened(page, f"{site.link}{VIEW}&outline=lungs,infection")
    page.wait_for_function(READY)
    drawn(page, "lungs")
    assert said == []
    page.context.close()


def test_a_slice_that_cannot_be_outlined_is_said_to_be_so(site: Site) -> None:
    page = compare(site)
    page.route("**/masks.png", lambda route: route.fulfill(status=404, body="{}"))
    page.locator("#outline-lungs").click()
    expect(page.locator(".outline-state")).to_contain_text("could not be outlined")
    assert page.locator(".pane-outlines path").count() == 0
    page.context.close()
