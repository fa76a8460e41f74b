"""The viewer in Chromium without a graphics card: ``python benchmarks/viewer.py [--cases 1000] [--limit 90]``.

A real node with 1,000 labelled pictures and a few CT studies of computed phantoms, asked with one more study; the real
page behind the answer's link. Beside it VivaGraph (npm's vivagraphjs, with its own layout and drawing) with the same
cases. The page offers 5 to 200 cases: for more, the number in its request is replaced. Prints markdown tables.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import http.server
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "dicomnode" / "web" / "viewer" / "assets"
PAGES = ROOT / ".cache" / "viewer-bench"
FLAGS = ["--disable-gpu", "--disable-software-rasterizer", "--disable-background-networking", "--disable-quic"]
FLAGS += ["--no-first-run", "--disable-component-update", "--disable-sync", "--no-sandbox"]
SCREEN = {"width": 1440, "height": 900}
KINDS = (None, "nodule", "consolidation", "effusion")
LABELS = ("", "nodule", "consolidation", "effusion")
LUNG_WINDOW = (-1350.0, 150.0)
OFFERED = 200  # most cases that the page itself asks for
STUDIES, SLICES, MATRIX = 6, 48, 512
ROUNDS = 5
JUMP = 9  # slices: more than the page fetches ahead
READY_MS = 60_000

# Runs before the page's own script: asks for as many cases as wanted, and notes when they are drawn.
WATCH = """([wanted, offered]) => {
  const ask = window.fetch;
  window.fetch = (to, how) =>
    ask(typeof to === 'string' ? to.replace(`k=${offered}`, `k=${Math.max(wanted, offered)}`) : to, how);
  window.__times = {};
  const look = () => {
    const v = window.__viewer, t = window.__times, now = performance.now();
    if (v && v.ready && v.count >= t.least) {
      t.drawn ??= now;
      if (v.pictures === v.count) { t.pictures = now; return; }
    }
    requestAnimationFrame(look);
  };
  window.__times.least = 2;
  look();
}"""

PAN = """async () => {
  const canvas = [...document.querySelectorAll('canvas')].find((c) => c.tabIndex === 0);
  const box = canvas.getBoundingClientRect();
  const [x, y] = [box.left + box.width * 0.1, box.top + box.height * 0.5];
  const mouse = (name, dx, dy) => new MouseEvent(name,
    { bubbles: true, cancelable: true, view: window, buttons: 1, clientX: x + dx, clientY: y + dy });
  const before = window.__viewer.query;
  const times = [];
  canvas.dispatchEvent(mouse('mousedown', 0, 0));
  await new Promise((done) => {
    const frame = (t) => {
      const i = times.push(t);
      window.dispatchEvent(mouse('mousemove', 160 * Math.sin(i / 15), 90 * Math.sin(i / 9)));
      if (i < 300) requestAnimationFrame(frame); else done();
    };
    requestAnimationFrame(frame);
  });
  const after = window.__viewer.query;
  window.dispatchEvent(mouse('mouseup', 0, 0));
  const gaps = times.slice(1).map((t, i) => t - times[i]).sort((a, b) => a - b);
  return { moved: Math.hypot(after.x - before.x, after.y - before.y), p95: gaps[Math.floor(gaps.length * 0.95)],
    fps: 1000 * gaps.length / gaps.reduce((a, b) => a + b) };
}"""

# Moves the first pane's slider by `step` and waits until both panes show their slices and the browser has painted.
SLICE = """async (step) => {
  const slider = document.querySelector('.pane-slider');
  const waiting = () => [...document.querySelectorAll('.pane-message')].some((m) => !m.hidden);
  const to = Number(slider.value) + step;
  if (to < 0 || to > Number(slider.max)) return null;
  const began = performance.now();
  slider.value = String(to);
  slider.dispatchEvent(new Event('input', { bubbles: true }));
  const cached = !waiting();
  while (waiting()) await new Promise((next) => setTimeout(next, 1));
  await new Promise((next) => requestAnimationFrame(next));
  await new Promise((next) => { const c = new MessageChannel(); c.port1.onmessage = next; c.port2.postMessage(0); });
  return { cached, ms: performance.now() - began };
}"""


def pictures(folder: Path, count: int) -> Path:
    """``count`` plain pictures, each of another phantom, and their LABELS.csv."""
    folder.mkdir(parents=True)
    low, high = LUNG_WINDOW
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        for n in range(count):
            (ds,) = sample_study(1, finding=KINDS[n % 4], seed=5000 + n, matrix=96)  # type: ignore[arg-type]
            hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
            grey = (np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)
            Image.fromarray(grey).save(folder / f"{n}.png")
            rows.writerow((f"{n}.png", "normal" if n % 8 == 0 else LABELS[n % 4]))
    return folder / "labels.csv"


def fill(node: RunningNode, source: Path, count: int) -> None:
    """Put the cases into the repository."""
    findings = sample_repository(source / "ct", STUDIES, slices=SLICES, matrix=MATRIX)
    for call in ((source / "ct", "--findings", findings), (pictures(source / "plain", count),)):
        done = node.run("index", "add", *call)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)


def ask(node: RunningNode, pacs: Pacs) -> str:
    """Path of the link in the answer to a new patient's study."""
    study = sample_study(SLICES, patient_id="BENCH-VIEWER", finding="nodule", seed=991, matrix=MATRIX)
    if any(Workstation().send(study, "127.0.0.1", node.dicom_port, "QUERYONLY")):
        raise SystemExit("the node refused images")
    (report,) = pacs.wait_for(1, 300)
    found = re.search(rb"/v/r/[0-9a-f]{32}", report.read_bytes())
    if found is None:
        raise SystemExit("the report has no link")
    return found[0].decode()


class Viewer:
    """The page behind a link."""

    def __init__(self, browser: Browser, link: str) -> None:
        self.browser, self.link = browser, link

    @contextmanager
    def open(self, cases: int, more: str = "") -> Iterator[Page]:
        """A new browser context, without any cache, with the page drawn and its pictures in it."""
        context = self.browser.new_context(viewport=SCREEN)  # type: ignore[arg-type]
        context.add_init_script(f"({WATCH})({json.dumps([cases, OFFERED])})")
        page = context.new_page()
        try:
            page.goto(f"{self.link}#k={min(cases, OFFERED)}{more}")
            page.wait_for_function("() => window.__times.pictures", timeout=READY_MS)
            yield page
        finally:
            context.close()

    def times(self, cases: int) -> dict[str, float]:
        """Milliseconds after the link was opened."""
        with self.open(cases) as page:
            shown = page.evaluate("() => window.__viewer.nodes.length") - 1
            if shown != cases:
                raise SystemExit(f"{shown} cases were shown, not {cases}")
            found: dict[str, float] = page.evaluate(
                """() => ({ ...window.__times,
                  paint: performance.getEntriesByName('first-contentful-paint')[0].startTime,
                  graph: performance.getEntriesByType('resource')
                    .find((entry) => entry.name.includes('/graph?')).responseEnd })"""
            )
        return found

    def inversions(self, page: Page) -> tuple[int, float]:
        """Pairs of cases drawn in the wrong order from the query, and their share of all pairs that differ."""
        drawn = page.evaluate("() => window.__viewer")
        nodes, query = drawn["nodes"][1:], drawn["query"]
        at = np.array([(node["x"] - query["x"], node["y"] - query["y"]) for node in nodes])
        return inversions(np.array([node["similarity"] for node in nodes]), at)


def inversions(similarity: np.ndarray[Any, Any], at: np.ndarray[Any, Any]) -> tuple[int, float]:
    """Pairs in the wrong order by more than a millionth of a pixel, and their share."""
    radius = np.hypot(at[:, 0], at[:, 1])
    nearer = similarity[:, None] > similarity[None, :]
    wrong = int((nearer & (radius[:, None] > radius[None, :] + 1e-6)).sum())
    return wrong, wrong / max(1, int(nearer.sum()))


def force(page: Page) -> float:
    """Milliseconds until ForceAtlas stands still."""
    ms: float = page.evaluate(
        """async () => {
          const began = performance.now();
          location.hash += '&layout=force';
          while (!(window.__viewer.layout === 'force' && window.__viewer.ready))
            await new Promise((next) => requestAnimationFrame(next));
          return performance.now() - began;
        }"""
    )
    return ms


def slices(viewer: Viewer) -> tuple[list[float], list[float]]:
    """Milliseconds to the next slice of query and case: those fetched already, and those not."""
    cached: list[float] = []
    fetched: list[float] = []
    with viewer.open(10) as page:
        handle = page.evaluate(
            """async () => {
              for (const { id } of window.__viewer.nodes.slice(1)) {
                const path = location.pathname.replace('/v/r/', '/api/v1/results/');
                const { series } = await (await fetch(`${path}/cases/${id}`)).json();
                if (series[0] && series[0].frames > 20) return id;
              }
            }"""
        )
        page.evaluate("(id) => { location.hash += `&case=${id}&tab=compare`; }", handle)
        page.wait_for_selector(".pane-slider:not([disabled])", timeout=READY_MS)
        page.wait_for_timeout(2000)  # neighbours are being fetched
        page.evaluate(SLICE, -SLICES // 2 + 2)
        page.wait_for_timeout(1000)
        for _ in range(8):
            step = page.evaluate(SLICE, 1)
            page.wait_for_timeout(200)
            if step is not None and step["cached"]:
                cached.append(step["ms"])
        for _ in range(SLICES // JUMP):
            jump = page.evaluate(SLICE, JUMP)
            page.wait_for_timeout(600)
            if jump is not None and not jump["cached"]:
                fetched.append(jump["ms"])
    return cached, fetched


@contextmanager
def bench_pages() -> Iterator[str]:
    """Address of the built pages in viewer/bench."""
    built = [sys.executable, str(ROOT / "hatch_build.py"), "npm", "exec", "vite", "build", "--"]
    subprocess.run([*built, "-c", "vite.bench.config.ts"], check=True, capture_output=True, cwd=ROOT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(PAGES))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def vivagraph(browser: Browser, graph: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """What VivaGraph does with the same cases."""
    with bench_pages() as base:
        page = browser.new_page(viewport=SCREEN)  # type: ignore[arg-type]
        page.goto(f"{base}/vivagraph.html")
        page.wait_for_function("() => window.start")
        given = {"nodes": graph["nodes"], "edges": graph["edges"]}
        found: dict[str, Any] = page.evaluate("([data, limit]) => start(data, limit)", [given, limit_s * 1000])
        page.close()
    at = np.array(found.pop("at")).reshape(-1, 2)
    similarity = np.array([node["similarity"] for node in graph["nodes"][1:]])
    return {**found, "inversions": inversions(similarity, at[1:] - at[0])}


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def measure(browser: Browser, link: str, arguments: argparse.Namespace) -> list[str]:
    """Print the tables; what misses its target."""
    missed: list[str] = []

    def against(what: str, value: float, unit: str, target: float, more: str = "", *, least: bool = False) -> None:
        row(what, f"**{value:.0f} {unit}**{more}", f"{target:.0f} {unit}")
        if value < target if least else value > target:
            missed.append(f"{what}: {value:.0f} {unit}, target {target:.0f}")

    viewer = Viewer(browser, link)
    most = arguments.cases
    viewer.times(50)  # the node's own caches: the picture of a case is made once
    viewer.times(most)
    fifty = [viewer.times(50) for _ in range(ROUNDS)]
    many = [viewer.times(most) for _ in range(ROUNDS)]

    def median(runs: list[dict[str, float]], name: str, since: str = "") -> float:
        return statistics.median(run[name] - (run[since] if since else 0) for run in runs)

    size = sum(len(gzip.compress(path.read_bytes(), 9)) for path in BUNDLE.glob("*.js"))
    with viewer.open(most) as page:
        pan = page.evaluate(PAN)
        graph = page.evaluate(
            """async (k) =>
              (await fetch(`${location.pathname.replace('/v/r/', '/api/v1/results/')}/graph?k=${k}`)).json()""",
            most,
        )
    if pan["moved"] < 5:
        raise SystemExit("the graph was not panned")
    cached, fetched = slices(viewer)
    row("", "measured", "target")
    row("---", "---", "---")
    against("first paint after the link", median(fifty, "paint"), "ms", 1000)
    against("graph of 50 cases after the link", median(fifty, "drawn"), "ms", 1500)
    row("the same, with all pictures", f"{median(fifty, 'pictures'):.0f} ms", "")
    against(f"{most} cases with pictures stable, after the link", median(many, "pictures"), "ms", 2000)
    row("of that, after the node's answer", f"{median(many, 'pictures', 'graph'):.0f} ms", "")
    smooth = f", 95 % within {pan['p95']:.0f} ms"
    against(f"panning {most} cases", pan["fps"], "frames/s", 55, smooth, least=True)
    against("next slice of both series, fetched ahead", statistics.median(cached), "ms", 30)
    against("next slice of both series, from the node", statistics.median(fetched), "ms", 150)
    against("JavaScript, gzip", size / 1000, "kB", 150)
    viva = vivagraph(browser, graph, arguments.limit)
    stood = f"{viva['ms'] / 1000:.1f} s" if viva["stable"] else f"not within {arguments.limit:.0f} s"
    row(f"VivaGraph, {most} cases stable", f"{stood}, {1000 * viva['steps'] / viva['ms']:.0f} steps/s", "")
    print("\nPairs of cases drawn in another order from the query than their distances have:\n")
    row("cases", "radial", "ForceAtlas2", "ForceAtlas2 stable after")
    row("---", "---", "---", "---")
    for cases in sorted({50, 300, most}):
        with viewer.open(cases) as page:
            exact, _ = viewer.inversions(page)
            if exact:
                missed.append(f"{exact} inversions among {cases} cases")
            ms = force(page)
            wrong, share = viewer.inversions(page)
        row(cases, f"**{exact}**", f"{wrong} ({100 * share:.0f} %)", f"{ms:.0f} ms")
    row(f"{most}, VivaGraph", "", f"{viva['inversions'][0]} ({100 * viva['inversions'][1]:.0f} %)", stood)
    print()
    print("\n".join(f"missed: {line}" for line in missed) or "Every target was met.")
    return missed


def main() -> int:
    """Start a node, or use the one that is given; 1 where a target was missed and ``--strict`` was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--limit", type=float, default=90.0, help="seconds that VivaGraph may take")
    parser.add_argument("--link", help="an answer of a node that runs, with at least as many cases")
    parser.add_argument("--strict", action="store_true", help="exit 1 where a target was missed")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp, Pacs() as pacs, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=FLAGS)
        if arguments.link:
            return int(bool(measure(browser, arguments.link, arguments)) and arguments.strict)
        node = RunningNode(Path(tmp) / "node", pacs)
        fill(node, Path(tmp) / "source", arguments.cases)
        with node:
            missed = measure(browser, node.url + ask(node, pacs), arguments)
        browser.close()
    return int(bool(missed) and arguments.strict)


if __name__ == "__main__":
    sys.exit(main())
