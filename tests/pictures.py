"""Takes the pictures of docs/images anew: ``make pictures``, or ``python -m tests.pictures [--only viewer-graph ...]``.

A node with cases of computed phantoms (``dicomnode.testing``), and Orthanc as its PACS: a workstation sends one more
phantom to Orthanc, which routes it; what is photographed is what came back. Needs Debian's chromium, dcmtk, orthanc
and orthanc-dicomweb. No data from elsewhere is used.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from dicomnode.testing import RunningNode, Workstation, sample_repository, sample_study, write_study
from dicomnode.testing.orthanc import Orthanc

IMAGES = Path(__file__).parents[1] / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--hide-scrollbars"]
DESKTOP, LARGE, TABLET, PHONE = (1440, 900), (1920, 1080), (820, 1180), (390, 844)
SHEET = (1200, 900)  # three quarters of its size
PATIENTS, SLICES, MATRIX = 32, 8, 256
SERIES = (9901, 9910, 9912)  # report, contact sheet, PDF
ANSWER_S = 600
WAIT_MS = 120_000
GAP = 15  # between pictures laid side by side
SHOWN = "() => [...document.querySelectorAll('.pane-message')].every(m => m.hidden)"


@dataclass
class Hospital:
    """What is photographed, and the browser that does it."""

    orthanc: Orthanc
    study: str
    link: str
    files: list[Path]
    browser: Browser
    scratch: Path

    @property
    def base(self) -> str:
        return self.link[: self.link.index("/v/")]

    @contextmanager
    def page(self, size: tuple[int, int], language: str = "en") -> Iterator[Page]:
        context = self.browser.new_context(viewport={"width": size[0], "height": size[1]}, locale=language)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        yield page
        context.close()

    def photograph(self, page: Page, view: str) -> Image.Image:
        """The viewer at rest, with all its pictures."""
        page.goto(self.link + view)
        page.wait_for_function("() => window.__viewer?.ready && window.__viewer.pictures === window.__viewer.count")
        page.wait_for_load_state("networkidle")
        page.wait_for_function(SHOWN)
        return taken(page)


def taken(page: Page, *, whole: bool = False) -> Image.Image:
    page.mouse.move(0, 0)
    page.wait_for_timeout(800)  # what moves comes to rest
    return Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")


def view(size: tuple[int, int], address: str, language: str = "en") -> Callable[[Hospital], Image.Image]:
    def take(hospital: Hospital) -> Image.Image:
        with hospital.page(size, language) as page:
            return hospital.photograph(page, address)

    return take


def compare(hospital: Hospital) -> Image.Image:
    """Two slices through the lung window, covered where they are alike."""
    with hospital.page(DESKTOP) as page:
        hospital.photograph(page, "#k=20&case=1&tab=compare")
        page.get_by_role("button", name="Lung", exact=True).click()
        page.locator("#why").click()
        page.locator(".pane-heat").first.wait_for(state="visible")
        return taken(page)


def phone(hospital: Hospital) -> Image.Image:
    """Graph, case and compare side by side."""
    with hospital.page(PHONE) as page:
        shots = [hospital.photograph(page, f"#k=10&case=1&tab={tab}") for tab in ("graph", "case", "compare")]
    joined = Image.new("RGB", (len(shots) * (PHONE[0] + GAP) - GAP, PHONE[1]), "white")
    for n, shot in enumerate(shots):
        joined.paste(shot, (n * (PHONE[0] + GAP), 0))
    return joined


def upload(hospital: Hospital) -> Image.Image:
    with hospital.page(DESKTOP) as page:
        page.goto(f"{hospital.base}/v/")
        page.locator("#pick-files").set_input_files([str(path) for path in hospital.files])
        page.locator("#start").wait_for()
        return taken(page)


def contact_sheet(hospital: Hospital) -> Image.Image:
    with hospital.page(DESKTOP) as page:
        answer = page.request.get(f"{hospital.link.replace('/v/r/', '/api/v1/results/')}/contact-sheet.png?lang=en")
        return Image.open(io.BytesIO(answer.body())).convert("RGB").resize(SHEET, Image.Resampling.LANCZOS)


def orthanc_study(hospital: Hospital) -> Image.Image:
    """Orthanc Explorer's page of the study."""
    found = hospital.orthanc.studies()[hospital.study]["ID"]
    with hospital.page((1200, 790)) as page:
        page.goto(f"{hospital.orthanc.url}/app/explorer.html#study?uuid={found}")
        page.get_by_text("PDF with links").locator("visible=true").first.wait_for()
        return taken(page)


def report(hospital: Hospital) -> Image.Image:
    """The report as dsr2html writes it: its beginning, and the beginning of its first case."""
    (sr,) = of_series(hospital.orthanc, hospital.study, SERIES[0])
    sr.save_as(hospital.scratch / "sr.dcm", enforce_file_format=True)
    page_of = hospital.scratch / "sr.html"
    subprocess.run(["dsr2html", hospital.scratch / "sr.dcm", page_of], check=True)
    with hospital.page((1000, 570)) as page:
        page.goto(page_of.as_uri())
        first = taken(page)
        page.set_viewport_size({"width": 1000, "height": 550})
        page.get_by_role("heading", name="Similar Case from Another Patient").first.evaluate("e => e.scrollIntoView()")
        second = taken(page)
    joined = Image.new("RGB", (1000, first.height + second.height + 10), "#888")
    joined.paste(first, (0, 0))
    joined.paste(second, (0, first.height + 10))
    return joined


PICTURES: dict[str, Callable[[Hospital], Image.Image]] = {
    "viewer-graph.webp": view(DESKTOP, "#k=20&case=2"),
    "viewer-large.webp": view(LARGE, "#k=30&case=2&tab=compare"),
    "viewer-compare.webp": compare,
    "viewer-list-es.webp": view(DESKTOP, "#k=20&case=3&tab=list", "es"),
    "viewer-tablet.webp": view(TABLET, "#k=20"),
    "viewer-phone.webp": phone,
    "viewer-upload.webp": upload,
    "contact-sheet.png": contact_sheet,
    "orthanc-study.png": orthanc_study,
    "report-dsr2html.png": report,
}


def of_series(orthanc: Orthanc, study: str, number: int) -> list:  # type: ignore[type-arg]  # of data sets
    tags = [series["MainDicomTags"] for series in orthanc.series(study)]
    uids = [tag["SeriesInstanceUID"] for tag in tags if tag.get("SeriesNumber") == str(number)]
    return [ds for uid in uids for ds in orthanc.wado(study, uid)]


def with_second_findings(path: Path) -> Path:
    """Every fourth case has a second finding: a small effusion beside what it has."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    rows += [[row[0], "SCT", "60046008", "Pleural effusion"] for row in rows[1::4] if row[3] != "Pleural effusion"]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def prepare(folder: Path, orthanc: Orthanc, node: RunningNode, browser: Browser) -> Hospital:
    """Fill the node, ask through the PACS, and wait for all that comes back."""
    findings = with_second_findings(sample_repository(folder / "cases", PATIENTS, slices=SLICES, matrix=MATRIX))
    done = node.run("index", "add", folder / "cases", "--findings", findings)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    study = sample_study(16, finding="nodule", seed=77, matrix=MATRIX)
    files = write_study(study, folder / "study")
    if any(Workstation().send(study, orthanc.host, orthanc.port, orthanc.ae_title)):
        raise SystemExit("Orthanc refused images")
    uid, until = str(study[0].StudyInstanceUID), time.monotonic() + ANSWER_S
    while not all(of_series(orthanc, uid, number) for number in SERIES):
        if time.monotonic() > until:
            raise SystemExit("no answer came back into Orthanc")
        time.sleep(1)
    (sr,) = of_series(orthanc, uid, SERIES[0])
    found = re.search(r"http://\S+/v/r/\w+", " ".join(str(e.value) for e in sr.iterall() if e.keyword == "TextValue"))
    if found is None:
        raise SystemExit("the report has no link")
    return Hospital(orthanc, uid, found[0], files, browser, folder)


def main() -> None:
    """Take the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[Path(name).stem for name in PICTURES], help="these alone")
    parser.add_argument("--into", type=Path, default=IMAGES, help="folder to write to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as playwright:
        folder = Path(tmp)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        orthanc = Orthanc(folder / "orthanc", stable_age=2)
        objects = ("sr", "contact-sheet", "pdf")
        node = RunningNode(folder / "node", orthanc, quiet_s=1.0, receivers=1, objects=objects)
        orthanc.route_to(node.dicom_port)
        with orthanc, node:
            hospital = prepare(folder, orthanc, node, browser)
            for name, take in PICTURES.items():
                if arguments.only and Path(name).stem not in arguments.only:
                    continue
                how = {"quality": 88, "method": 6} if name.endswith("webp") else {"optimize": True}
                take(hospital).save(arguments.into / name, **how)  # type: ignore[arg-type]  # Pillow's own options
                sys.stdout.write(f"{arguments.into / name}\n")
        browser.close()


if __name__ == "__main__":
    main()
