"""The viewer in a real browser on a real node: from the link in the report to a query of one's own.

Every picture, distance and finding on the page comes from the node; nothing is stubbed. Chromium runs without GPU and
without WebGL, as in a remote desktop session.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import sqlite3
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pages import (
    AXE,
    BROWSER_MARKS,
    DESKTOP,
    LANGUAGES,
    NOTICE,
    PHONE,
    SEARCH_MS,
    TABLET,
    Site,
    graph_of,
    inversions,
    link_of,
    nodes,
    opened,
    painted,
    rests,
    select,
    tell_the_story,
    violations,
)
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from pydicom import dcmread

from dicomnode.testing import Pacs, RunningNode, sample_repository, sample_study, write_study
from dicomnode.testing.phantom import Thorax

PATIENTS = 22  # fewer than 20 would be "repository too small"
XSS = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>"
# Each its own, as nothing that is kept may hold what names the patient; 16 characters where no more are allowed.
SHORT_XSS, LONG_XSS = "<IMG SRC=X{}>", "<img src=x{} onerror=window.pwned=1>"
SHORT = ("AE", "CS", "PN", "SH")
RTL = "التهاب رئوي حاد مع انصباب جنبي واسم طويل جدا " * 4
STRINGS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT")
ABSENT = (
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "DeviceSerialNumber",
    "ProtocolName", "RequestedProcedureDescription", "PerformedProcedureStepDescription", "SeriesDescription",
    "AdmittingDiagnosesDescription", "PatientComments", "ContrastBolusAgent", "OperatorsName",
)  # fmt: skip
# Without these an image cannot be read, or is not taken into a repository.
CODES = (
    "SpecificCharacterSet", "Modality", "ImageType", "PhotometricInterpretation", "PatientPosition", "PatientSex",
    "RescaleType", "BurnedInAnnotation",
)  # fmt: skip

pytestmark = BROWSER_MARKS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("viewer")
    findings = sample_repository(base / "repository", PATIENTS, slices=4, matrix=64)
    plant(findings)
    plant_markup(base / "repository" / "patient-0002")  # the study of the first row of findings
    study = write_study(sample_study(6, patient_id="ASKS-1", name="Asks^Patient", seed=501, matrix=64), base / "study")
    with Pacs() as pacs, RunningNode(base / "node", pacs, quiet_s=0.5, receivers=1) as node:
        added = node.run("index", "add", base / "repository", "--findings", findings)
        assert added.returncode == 0, added.stderr
        yield Site(node, link_of(node, pacs, study), study, browser)


def plant(findings: Path) -> None:
    """Hostile and very long words for the findings of three studies."""
    with findings.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    rows[1][3], rows[2][3], rows[3][3] = XSS, RTL, '=HYPERLINK("http://example.org")'
    with findings.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def plant_markup(folder: Path) -> None:
    """Markup into every string of a study but the codes it cannot do without, and into strings it did not have."""
    for path in folder.glob("*.dcm"):
        ds = dcmread(path)
        for keyword in ABSENT:
            setattr(ds, keyword, "")
        for n, element in enumerate(ds):
            if element.VR in STRINGS and element.keyword not in CODES:
                element.value = (SHORT_XSS if element.VR in SHORT else LONG_XSS).format(n)
        ds.save_as(path)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_whole_story_from_the_report_to_an_own_query(site: Site, language: str) -> None:
    tell_the_story(site, language)


def test_the_graph_keeps_every_distance_and_the_list_says_the_same(site: Site) -> None:
    page = opened(site.page(), f"{site.link}#k=21")
    live = graph_of(site, page, "?k=21")
    assert len(nodes(page)) == 21
    assert inversions(page) == 0
    page.locator("#tab-list").click()
    rows = page.locator("#panel-list tbody tr").all_inner_texts()
    assert [r.split()[0] for r in rows] == [str(n["rank"]) for n in live["nodes"][1:]]
    for row, node in zip(rows, live["nodes"][1:], strict=True):
        shown = float(re.search(r"\d\.\d{3}", row)[0])
        assert shown == pytest.approx(node["similarity"], abs=0.00051)  # a half is rounded up there and to even here
    page.get_by_role("button", name="ForceAtlas").click()
    expect(page.locator(".line")).to_contain_text("distances approximate")
    page.context.close()


def test_filters_hold_for_graph_and_list_alike(site: Site) -> None:
    page = opened(site.page(), f"{site.link}#k=21&tab=list")
    live = graph_of(site, page, "?k=21")
    present = [n for n in live["nodes"][1:] if n["status"] == "present"]
    page.locator(".legend-title").click()  # beside the table it is folded
    page.locator(".legend-toggle[data-filter='status unknown']").click()
    expect(page.locator("#panel-list tbody tr")).to_have_count(len(present))
    page.locator(".legend-findings summary").click()
    effusion = page.locator(".legend-toggle", has_text="Pleural effusion")
    effusion.click()
    expect(effusion).to_have_attribute("aria-pressed", "true")
    code = next(f["code"] for n in present for f in n["findings"] if f["display"] == "Pleural effusion")
    effusions = [n for n in present if any(f["code"] == code for f in n["findings"])]
    expect(page.locator("#panel-list tbody tr")).to_have_count(len(effusions))
    page.locator(".legend-all").click()
    expect(page.locator("#panel-list tbody tr")).to_have_count(21)
    page.locator("#keyword").fill("effusion")
    page.keyboard.press("Enter")
    expect(page.locator(".line")).to_contain_text("asked now")
    expect(page.locator("#panel-list tbody tr").first).to_contain_text("Pleural effusion")
    page.locator("#keyword").fill("no such finding")
    page.keyboard.press("Enter")
    expect(page.locator(".over-box")).to_contain_text("no such finding")
    page.context.close()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_story_by_keyboard_alone(site: Site, language: str) -> None:
    page = opened(site.page(language=language), site.link)
    case, slice_of = {"en": ("Case", r"slice {} of \d+"), "es": ("Caso", r"corte {} de \d+")}[language]
    tab_to(page, "#graph")
    page.keyboard.press("n")
    page.keyboard.press("n")
    expect(page.locator("#panel-case h2")).to_have_text(f"{case} 2")
    expect(page.locator("#say")).to_contain_text(f"{case} 2")
    page.keyboard.press("p")
    expect(page.locator("#panel-case h2")).to_have_text(f"{case} 1")
    page.keyboard.press("Enter")
    page.keyboard.press("c")
    expect(page.locator("#tab-compare")).to_be_focused()
    stage = page.locator(".pane-stage").first
    page.wait_for_function("() => document.querySelectorAll('.pane-image').length === 2")
    tab_to(page, "#panel-compare .pane-stage")
    page.keyboard.press("Home")
    expect(stage).to_have_attribute("aria-label", re.compile(slice_of.format(1)))
    page.keyboard.press("ArrowDown")
    expect(stage).to_have_attribute("aria-label", re.compile(slice_of.format(2)))
    page.keyboard.press("m")
    expect(page.locator(".crumb")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator("#keyword")).to_be_focused()
    tab_to(page, ".actions a[href='/v/']", "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site.node.url}/v/**")
    tab_to(page, "#choose-files")
    page.evaluate("document.querySelector('#pick-files').addEventListener('click', () => { window.asked = true })")
    page.keyboard.press("Enter")  # the dialog that opens is the system's, with keys of its own
    assert page.evaluate("() => window.asked")
    page.locator("#pick-files").set_input_files(site.study)
    expect(page.locator("#start")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/v/q/[0-9a-f]{32}"), timeout=SEARCH_MS)
    rests(page)
    assert nodes(page)
    expect(page.get_by_text(NOTICE[language])).to_be_visible()
    page.context.close()


def tab_to(page: Page, target: str, key: str = "Tab") -> None:
    """Press the key until the first element found by ``target`` has the focus."""
    expect(page.locator(target).first).to_be_visible()
    for _ in range(40):
        page.keyboard.press(key)
        if page.evaluate("target => document.activeElement === document.querySelector(target)", target):
            return
    raise AssertionError(f"{target} is not reached by {key}")


def test_a_copied_link_opens_the_same_view(site: Site) -> None:
    page = opened(site.page(), site.link)
    select(page, 3)
    page.locator("#case-compare").click()
    page.get_by_role("button", name="ForceAtlas").click()
    page.locator(".pane-stage").first.focus()
    page.keyboard.press("End")
    page.wait_for_function("() => location.hash.includes('at=')")
    place = page.locator(".pane-place").all_inner_texts()
    second = page.context.new_page()
    opened(second, page.url)
    expect(second.locator("#tab-compare")).to_have_attribute("aria-selected", "true")
    expect(second.locator(".pane-place").first).to_have_text(place[0])
    expect(second.locator(".pane-place").nth(1)).to_have_text(place[1])
    assert second.evaluate("() => window.__viewer.layout") == "force"
    assert page.evaluate("() => window.__viewer.layout") == "force"
    page.go_back()
    page.wait_for_function("() => window.__viewer.layout === 'radial'")
    assert second.evaluate("() => window.__viewer.layout") == "force"
    page.context.close()


def test_the_reports_link_to_one_case_selects_it(site: Site) -> None:
    page = opened(site.page(), f"{site.link}#case=3")
    expect(page.locator("#panel-case h2")).to_have_text("Case 3")
    page.evaluate("() => { location.hash = '#case=2&tab=compare' }")  # a second link, into the same tab
    expect(page.locator("#panel-compare")).to_contain_text("Case 2")
    page.wait_for_function("() => !/case=2(&|$)/.test(location.hash)")  # the case itself, not its rank
    page.reload()
    rests(page)
    expect(page.locator("#panel-compare")).to_contain_text("Case 2")
    page.context.close()


def test_window_level_scrolling_and_why(site: Site) -> None:
    page = opened(site.page(), f"{site.link}#case=1&tab=compare")
    page.wait_for_function("() => [...document.querySelectorAll('.pane-image')].filter(c => c.width > 0).length === 2")
    page.get_by_role("button", name="Lung", exact=True).click()
    expect(page.locator(".pane-window").first).to_have_text("C -600 W 1500")
    expect(page.locator(".pane-window").nth(1)).to_have_text("C -600 W 1500")
    box = page.locator(".pane-stage").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 130, steps=4)
    page.mouse.up()
    assert page.locator(".pane-window").first.inner_text() not in ("C -600 W 1500", "C 40 W 400")
    expect(page.locator(".pane-window").nth(1)).to_have_text(page.locator(".pane-window").first.inner_text())
    page.locator(".pane-stage").first.focus()
    page.keyboard.press("Home")
    first = page.locator(".pane-place").all_inner_texts()
    page.keyboard.press("End")
    last = page.locator(".pane-place").all_inner_texts()
    assert first[0] != last[0]
    assert first[1] != last[1], "both series scroll"
    page.locator("#why").click()
    expect(page.locator(".pane-heat").first).to_be_visible(timeout=90_000)
    expect(page.locator(".why")).to_contain_text("not where a disease is")
    page.locator("#why").click()
    expect(page.locator(".pane-heat").first).to_be_hidden()
    page.context.close()


def test_a_picture_is_enlarged_and_moved_in_both_panes(site: Site) -> None:
    page = opened(site.page(), f"{site.link}#case=1&tab=compare")
    page.wait_for_function("() => [...document.querySelectorAll('.pane-image')].filter(c => c.width > 0).length === 2")
    stage = page.locator("#panel-compare .pane-stage").first
    window, place = page.locator(".pane-window").first.inner_text(), page.locator(".pane-place").first.inner_text()
    stage.focus()
    page.keyboard.press("+")
    assert transforms(page) == [(1.25, 0, 0)] * 2
    page.keyboard.press("Shift+ArrowRight")
    assert {t[1] for t in transforms(page)} == {-10}, "both panes move by the same share"
    page.keyboard.press("0")
    assert transforms(page) == [(1, 0, 0)] * 2
    page.get_by_role("group", name="Zoom").get_by_role("button", name="Zoom in").click()
    page.locator("#pane-move").click()
    box = stage.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + box["width"] / 20, y, steps=3)
    page.mouse.up()
    assert {round(t[1]) for t in transforms(page)} == {5}
    assert page.locator(".pane-window").first.inner_text() == window, "moving changes no window"
    page.locator("#pane-move").click()
    page.mouse.move(x + box["width"] / 20, y)
    page.mouse.down(button="middle")
    page.mouse.move(x, y, steps=3)
    page.mouse.up(button="middle")
    assert {round(t[1]) for t in transforms(page)} == {0}
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    page.wait_for_function("() => Number(document.querySelector('.pane-stage').dataset.zoom) > 2")
    assert page.locator(".pane-place").first.inner_text() == place, "Ctrl and wheel stays on the slice"
    page.mouse.dblclick(x, y)
    assert transforms(page) == [(1, 0, 0)] * 2
    page.context.close()


def test_two_fingers_enlarge_and_one_finger_scrolls(site: Site) -> None:
    page = opened(site.page(PHONE), f"{site.link}#case=1&tab=compare")
    page.wait_for_function("() => [...document.querySelectorAll('.pane-image')].filter(c => c.width > 0).length === 2")
    box = page.locator("#panel-compare .pane-stage").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *at: tuple[float, float]) -> None:
        points = [{"x": px, "y": py, "id": n} for n, (px, py) in enumerate(at)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (x - 20, y), (x + 20, y))
    touch("touchMove", (x - 40, y), (x + 40, y))
    touch("touchEnd")
    page.wait_for_function("() => Number(document.querySelector('.pane-stage').dataset.zoom) > 1.7")
    assert len(set(transforms(page))) == 1
    place = page.locator(".pane-place").first.inner_text()
    touch("touchStart", (x, y))
    touch("touchMove", (x, y - 60))
    touch("touchEnd")
    expect(page.locator(".pane-place").first).not_to_have_text(place)
    page.context.close()


def transforms(page: Page) -> list[tuple[float, float, float]]:
    """Scale, and way right and down in hundredths of the stage, of every picture shown."""
    return [
        (round(float(scale or 1), 4), float(right or 0), float(down or 0))
        for right, down, scale in page.evaluate(
            """() => [...document.querySelectorAll('#panel-compare .pane-image')].map(c =>
                /(?:translate\\((\\S+?)%, (\\S+?)%\\) scale\\((\\S+)\\))?$/.exec(c.style.transform).slice(1))"""
        )
    ]


def test_the_image_in_question_can_be_looked_through(site: Site) -> None:
    page = opened(site.page(), site.link)
    stage = page.locator("#panel-case .pane-stage")
    expect(stage).to_have_attribute("aria-label", re.compile(r"^Image in question, slice \d+ of \d+$"))
    page.wait_for_function("() => document.querySelector('.pane-message')?.hidden")
    box = stage.bounding_box()
    assert box is not None
    assert box["width"] > 300, "as wide as the panel"
    stage.focus()
    page.keyboard.press("Home")
    expect(stage).to_have_attribute("aria-label", re.compile("slice 1 of"))
    page.wait_for_function("() => document.querySelector('.pane-message')?.hidden")
    assert painted(page)[0] > 5
    page.context.close()


def test_the_image_in_question_fits_the_panel_of_an_upright_tablet(site: Site) -> None:
    page = opened(site.page(TABLET), site.link)
    page.wait_for_function("() => document.querySelector('.pane-message')?.hidden")
    for part in (".pane-stage", ".pane-slider", ".facts"):
        expect(page.locator(f"#panel-case {part}")).to_be_in_viewport(ratio=1)
    box = page.locator("#panel-case .pane-stage").bounding_box()
    assert box is not None
    assert abs(box["width"] - box["height"]) < 1, "square, as the slice is"
    assert box["height"] > 250
    assert (
        page.evaluate("() => { const p = document.querySelector('.panel'); return p.scrollHeight - p.clientHeight }")
        <= 0
    )
    page.context.close()


def test_the_table_is_made_when_it_is_opened(site: Site) -> None:
    page = opened(site.page(), f"{site.link}#k=21")
    assert page.locator("#panel-list tr").count() == 0
    page.locator("#tab-list").click()
    expect(page.locator("#panel-list tbody tr")).to_have_count(21)
    page.context.close()


def chosen(page: Page, event: str, kind: str, files: list[Path]) -> None:
    """Drop or paste files, as the browser tells it to the page."""
    given = [[p.name, list(p.read_bytes())] for p in files]
    page.evaluate(
        """([target, type, kind, files]) => {
            const data = new DataTransfer();
            for (const [name, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name));
            const init = {bubbles: true, cancelable: true};
            const event = kind === 'ClipboardEvent' ? new ClipboardEvent(type, {...init, clipboardData: data})
                : new DragEvent(type, {...init, dataTransfer: data});
            document.querySelector(target).dispatchEvent(event); }""",
        [".drop", event, kind, given],
    )


def test_files_are_dropped_and_pasted(site: Site) -> None:
    page = site.page()
    page.goto(f"{site.node.url}/v/")
    chosen(page, "drop", "DragEvent", site.study)
    expect(page.locator(".chosen")).to_contain_text(f"{len(site.study)} files")
    expect(page.locator("#start")).to_be_focused()
    chosen(page, "paste", "ClipboardEvent", site.study[:1])
    expect(page.locator(".chosen")).to_contain_text("1 file,")
    chosen(page, "drop", "DragEvent", [])
    expect(page.get_by_role("alert")).to_contain_text("no file")
    page.context.close()


@pytest.mark.parametrize("how", ["folder", "zip"])
def test_a_folder_and_a_zip_are_searched(site: Site, how: str, tmp_path: Path) -> None:
    page = site.page()
    page.goto(f"{site.node.url}/v/")
    if how == "folder":
        (tmp_path / "DICOM" / "inner").mkdir(parents=True)
        for n, file in enumerate(site.study):
            shutil.copy(file, tmp_path / "DICOM" / ("inner" if n % 2 else "") / f"{n}.dcm")
        page.locator("#pick-folder").set_input_files(tmp_path / "DICOM")
        expect(page.locator(".chosen")).to_contain_text(f"{len(site.study)} files")
    else:
        with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
            for n, file in enumerate(site.study):
                archive.write(file, f"inner/{n}.dcm")
        page.locator("#pick-files").set_input_files(tmp_path / "study.zip")
    page.locator("#start").click()
    page.wait_for_url(re.compile(r"/v/q/[0-9a-f]{32}"), timeout=120_000)
    rests(page)
    assert nodes(page)
    page.context.close()


def test_a_search_can_be_cancelled(site: Site, tmp_path: Path) -> None:
    study = write_study(sample_study(40, patient_id="ASKS-2", seed=77, matrix=128), tmp_path / "study")
    page = site.page()
    page.goto(f"{site.node.url}/v/")
    page.locator("#pick-files").set_input_files([str(p) for p in study])
    with page.expect_response(lambda r: r.url.endswith("/queries") and r.status == 202) as accepted:
        page.locator("#start").click()
    page.locator("#cancel").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was kept")
    query = accepted.value.json()["id"]
    deadline = time.monotonic() + 10
    while page.request.get(f"{site.node.url}/api/v1/queries/{query}").status != 404:
        assert time.monotonic() < deadline
        page.wait_for_timeout(200)
    expect(page.locator("#start")).to_be_visible()
    page.context.close()


def test_the_keyword_of_a_search_stays_when_more_cases_are_asked_for(site: Site) -> None:
    page = site.page()
    page.goto(f"{site.node.url}/v/")
    page.locator("#pick-files").set_input_files([str(p) for p in site.study])
    page.locator("#upload-text").fill("effusion")
    page.locator("#start").click()
    page.wait_for_url(re.compile(r"/v/q/[0-9a-f]{32}"), timeout=SEARCH_MS)
    rests(page)
    expect(page.locator("#keyword")).to_have_value("effusion")
    page.get_by_role("tab", name="List").click()
    rows = page.locator("#panel-list tbody tr")
    chosen = rows.count()
    page.locator("#k").press("ArrowRight")
    page.wait_for_function("() => /k=\\d+&text=effusion/.test(location.hash)")
    expect(page.locator(".line")).to_contain_text("asked now")
    expect(page.locator("#keyword")).to_have_value("effusion")
    expect(rows).to_have_count(chosen)  # all that there are: more may be asked for, others never come
    for n in range(chosen):
        expect(rows.nth(n)).to_contain_text("Pleural effusion")
    page.locator(".keyword-clear").click()
    page.wait_for_function("() => !location.hash.includes('text=')")
    expect(rows.filter(has_not_text="Pleural effusion").first).to_be_visible()
    expect(page.locator("#keyword")).to_have_value("")
    page.context.close()


def test_a_slice_that_is_here_is_shown_within_30_ms(site: Site) -> None:
    page = opened(site.page(), f"{site.link}#case=1&tab=compare")
    page.wait_for_function("() => [...document.querySelectorAll('.pane-image')].filter(c => c.width > 0).length === 2")
    press = """key => { const s = document.querySelector('.pane-stage'); const t = performance.now();
        s.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
        return performance.now() - t; }"""
    for key in ("Home", "End"):  # now all of the few slices are here
        page.evaluate(press, key)
        page.wait_for_timeout(500)
    took = sorted(page.evaluate(press, "ArrowUp" if n % 2 else "ArrowDown") for n in range(21))
    assert took[len(took) // 2] <= 30, f"median {took[len(took) // 2]:.1f} ms"
    page.context.close()


def test_planted_markup_stays_text(site: Site) -> None:
    page = opened(site.page(), f"{site.link}#k=21&tab=list")
    row = page.locator("#panel-list tbody tr", has_text="onerror")
    expect(row).to_have_count(1)
    inert(page)
    row.get_by_role("button").click()
    expect(page.locator(".finding-name")).to_have_text(XSS)
    expect(page.locator("#panel-case .facts")).to_contain_text("<img src=x")  # the device's brand
    inert(page)
    page.locator("#case-compare").click()
    page.wait_for_function("() => [...document.querySelectorAll('.pane-message')].every(m => m.hidden)")
    inert(page)
    page.locator("#tab-query").click()
    expect(page.locator(".tally")).to_contain_text("onerror")
    page.locator(".legend-findings summary").click()
    inert(page)
    page.goto(f"{site.link}/plain")
    inert(page)
    page.context.close()


def inert(page: Page) -> None:
    """Nothing planted has run or has become an element."""
    page.wait_for_load_state("networkidle")
    assert page.evaluate("() => window.pwned") is None
    assert page.locator("img[src^='x' i], [onerror], body script:not([src])").count() == 0


def test_long_right_to_left_names_keep_their_place(site: Site) -> None:
    page = opened(site.page(PHONE), f"{site.link}#k=22&tab=list")
    name = page.locator("#panel-list bdi", has_text="التهاب").first
    expect(name).to_have_attribute("dir", "auto")
    assert name.get_attribute("title"), "whole in the tooltip"
    for tab in ("graph", "case", "compare", "list", "query"):
        page.locator(f"#tab-{tab}").click()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE[0], tab
    page.context.close()


def test_the_table_saved_holds_no_formula(site: Site) -> None:
    page = opened(site.page(), f"{site.link}#k=22&tab=list")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    text = Path(download.value.path()).read_text("utf-8-sig")
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == 23
    assert all(not cell.lstrip().startswith(("=", "+", "@")) for row in rows for cell in row)
    page.context.close()


STATES = {
    "graph": "",
    "case": "#case=1",
    "compare": "#case=1&tab=compare&why=1",
    "list": "#tab=list&lang=es",
    "query": "#tab=query&layout=force",
    "more": "#k=10&from={case}&case={case}",
    "nothing found": "#k=10&text=no+such+finding",
    "all hidden": "#hide=present,none,unknown",
}


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("state", STATES)
def test_no_state_violates_wcag_2_2_aa(site: Site, state: str, size: tuple[int, int]) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed (npm ci in viewer)")
    page = site.page(size, bypass_csp=True)
    case = graph_of(site, page)["nodes"][1]["id"]
    page.goto(site.link + STATES[state].format(case=case))
    page.wait_for_function("() => document.querySelector('.area')?.getAttribute('aria-busy') === 'false'")
    page.wait_for_timeout(500)
    assert violations(page) == []
    page.context.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_upload_page_and_the_help_violate_nothing(site: Site, size: tuple[int, int]) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed (npm ci in viewer)")
    page = site.page(size, bypass_csp=True)
    page.goto(f"{site.node.url}/v/")
    page.locator("#pick-files").set_input_files([str(site.study[0])])
    expect(page.locator("#start")).to_be_visible()
    assert violations(page) == []
    opened(page, site.link)
    page.get_by_role("button", name="Help").click()
    assert violations(page) == []
    page.context.close()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("page.html", b"<html><script>window.pwned=1</script></html>", "not a kind of file"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='window.pwned=1'/>", "not a kind of file"),
        ("empty.dcm", b"", "did not work"),
        ("broken.dcm", b"\0" * 128 + b"DICM" + b"\xff" * 200, "did not work"),
    ],
)
def test_files_that_cannot_be_searched_are_said_to_be_so(site: Site, name: str, content: bytes, said: str) -> None:
    page = site.page()
    page.goto(f"{site.node.url}/v/")
    page.locator("#pick-files").set_input_files([{"name": name, "mimeType": "image/png", "buffer": content}])
    page.locator("#start").click()
    expect(page.locator(".message")).to_contain_text(said, timeout=60_000)
    expect(page.locator("#again")).to_be_focused()
    assert page.evaluate("() => window.pwned") is None
    page.context.close()


def test_a_picture_is_searched_too(site: Site) -> None:
    page = site.page()
    page.goto(f"{site.node.url}/v/#lang=es")
    picture = io.BytesIO()
    hounsfield = Thorax.draw(1, None, 10.0).cut(120.0, 128)
    Image.fromarray(np.clip((hounsfield + 1350) / 1500 * 255, 0, 255).astype(np.uint8)).save(picture, "PNG")
    page.locator("#pick-files").set_input_files(
        [{"name": "picture.png", "mimeType": "image/png", "buffer": picture.getvalue()}]
    )
    page.locator("#start").click()
    page.wait_for_url(re.compile(r"/v/q/[0-9a-f]{32}#lang=es"), timeout=120_000)
    page.wait_for_function("() => document.querySelector('.verdict')?.dataset.kind", timeout=SEARCH_MS)
    assert page.evaluate("() => document.querySelector('.verdict').dataset.kind") != "not-searchable"
    expect(page.get_by_text(NOTICE["es"])).to_be_visible()
    page.context.close()


def test_a_picture_that_shows_no_slice_is_refused_with_the_reason(site: Site) -> None:
    page = site.page()
    page.goto(f"{site.node.url}/v/#lang=es")
    picture = io.BytesIO()
    Image.effect_noise((300, 300), 80).save(picture, "PNG")
    page.locator("#pick-files").set_input_files(
        [{"name": "picture.png", "mimeType": "image/png", "buffer": picture.getvalue()}]
    )
    page.locator("#start").click()
    page.wait_for_url(re.compile(r"/v/q/[0-9a-f]{32}#lang=es"), timeout=120_000)
    refused = "() => document.querySelector('.verdict')?.dataset.kind === 'not-searchable'"
    page.wait_for_function(refused, timeout=SEARCH_MS)
    expect(page.locator("body")).to_contain_text("La imagen no es un corte de TC ni de RM")
    page.context.close()


def test_an_unknown_link_says_so(site: Site) -> None:
    page = site.page()
    answer = page.goto(f"{site.node.url}/v/q/{'0' * 32}")
    assert answer is not None
    expect(page.get_by_role("heading", level=1)).to_have_text("This link leads nowhere")
    page.context.close()


def test_the_node_may_go_and_come_back(site: Site) -> None:
    page = opened(site.page(bypass_csp=True), site.link)
    before = len(nodes(page))
    site.node.stop()
    try:
        page.locator("#k").fill("20")
        expect(page.locator(".banner")).to_be_visible(timeout=60_000)
        assert len(nodes(page)) == before, "what was shown stays"
        expect(page.get_by_text(NOTICE["en"])).to_be_visible()
        if AXE.exists():
            assert violations(page) == []
        page.get_by_role("button", name="Try now").click()
        expect(page.locator(".banner")).to_be_visible()
    finally:
        site.node.start()
    expect(page.locator(".banner")).to_be_hidden(timeout=60_000)
    page.wait_for_function("() => window.__viewer.ready && window.__viewer.nodes.filter(n => n.rank > 0).length === 20")
    page.context.close()


def test_a_link_that_expires_while_it_is_open_says_so(site: Site) -> None:
    """Last: no test after it may use the answer's link."""
    page = opened(site.page(), site.link)
    token = site.link.rsplit("/", 1)[1]
    site.node.stop()
    with sqlite3.connect(site.node.var / "catalogue.sqlite3") as catalogue:
        long_ago = time.time() - 400 * 86400  # links work for link_days from then
        catalogue.execute("UPDATE answers SET created = ? WHERE token = ?", (long_ago, token))
    site.node.start()
    page.locator("#k").fill("12")
    expect(page.get_by_role("heading", level=1)).to_have_text("This link has expired", timeout=60_000)
    answer = page.goto(site.link)
    assert answer is not None
    assert answer.status == 410
    page.context.close()
