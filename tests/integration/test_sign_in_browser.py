"""Sign-in and links in a real Chromium, arriving from a page of another site as from a web PACS."""

from __future__ import annotations

import http.server
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from sign_in_samples import OWN, PASSWORD, Site, make_site

from dicomnode.web.serve import bind, serve

pytestmark = pytest.mark.integration
CHROMIUM = which("chromium") or which("chromium-browser")
# Where nobody is signed in, the page of a link is a 401 that people can read.
EXPECTED = ("401 (Unauthorized)", "404 (Not Found)", "NotSameOrigin", "403 (Forbidden)")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is absent (make system)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def served(site: Site) -> Iterator[str]:
    """The application on a port of 127.0.0.1; its address."""
    sock = bind("127.0.0.1", 0)
    port, stop = sock.getsockname()[1], threading.Event()
    thread = threading.Thread(target=serve, args=(site.app, sock, stop))
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        thread.join(20)


@contextmanager
def pacs(link: str) -> Iterator[str]:
    """A page of another site ("localhost" is another than "127.0.0.1") that holds a link."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(f'<a href="{link}">result</a>'.encode())

        def log_message(self, *_args):
            return

    server = http.server.HTTPServer(("localhost", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@contextmanager
def visit(browser, folder: Path, links: str):
    """(page, address of the node, address of the other site, lines that the browser complained of)."""
    site = make_site(folder, links=links)
    site.clock.now = time.time()
    object.__setattr__(site.sign_in, "link_created", {OWN: site.clock.now}.get)
    site.spy.link_state = lambda _token: "open"
    site.spy.answer = lambda _token, _actor: "expired"  # where no viewer is built, the plain page has nothing to show
    context = browser.new_context()
    complaints: list[str] = []
    with served(site) as base, pacs(f"{base}/v/r/{OWN}?lang=es") as other:
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        try:
            yield page, base, other, complaints
        finally:
            context.close()


def come_from(page, other: str) -> None:
    """Follow the link in the other site's page."""
    page.goto(other)
    page.click("a")
    page.wait_for_load_state("networkidle")


def test_a_link_from_another_site_asks_for_sign_in_once_and_then_opens(browser, tmp_path):
    with visit(browser, tmp_path, "sign-in") as (page, base, other, complaints):
        come_from(page, other)
        page.wait_for_url(re.compile(r"/sign-in\?next="))
        assert page.locator("h1").inner_text() == "Iniciar sesión"
        page.fill("#name", "anna")
        page.fill("#password", "wrong password!")
        page.click("button")
        assert "no son correctos" in page.get_by_role("alert").inner_text()
        assert page.input_value("#password") == ""
        page.fill("#password", PASSWORD)
        page.click("button")
        page.wait_for_url(f"{base}/v/r/{OWN}?lang=es")
        cookies = {c["name"]: c for c in page.context.cookies()}
        assert cookies["dicomnode_session"]["httpOnly"]
        assert cookies["dicomnode_session"]["sameSite"] == "Strict"
        assert page.evaluate("() => document.cookie") == ""
        come_from(page, other)  # the Strict cookie was not sent with the link, and yet:
        page.wait_for_url(f"{base}/v/r/{OWN}?lang=es")
        page.goto(f"{base}/sign-out?lang=en")
        page.click("button")
        page.wait_for_url(f"{base}/sign-in")
        come_from(page, other)
        page.wait_for_url(re.compile(r"/sign-in\?next="))
        assert [c for c in complaints if "Content Security Policy" in c] == []
        assert [c for c in complaints if not any(e in c for e in EXPECTED)] == []


def test_the_button_of_an_open_link_is_pressed_once_by_keyboard(browser, tmp_path):
    with visit(browser, tmp_path, "open") as (page, base, other, _):
        come_from(page, other)
        page.get_by_role("button", name="Abrir el resultado").wait_for()
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Abrir el resultado").wait_for(state="detached")
        page.wait_for_load_state("networkidle")
        assert page.url == f"{base}/v/r/{OWN}?lang=es"
        names = {c["name"].rpartition("_")[0] for c in page.context.cookies()}
        assert "dicomnode_link" in names
        come_from(page, other)
        page.wait_for_url(f"{base}/v/r/{OWN}?lang=es")
        assert page.get_by_role("button", name="Abrir el resultado").count() == 0


def test_another_site_reads_sends_and_embeds_nothing(browser, tmp_path):
    with visit(browser, tmp_path, "sign-in") as (page, base, other, _):
        page.goto(f"{base}/sign-in")
        page.fill("#name", "anna")
        page.fill("#password", PASSWORD)
        page.click("button")
        page.wait_for_load_state("networkidle")
        page.goto(other)
        fetch = """([url, mode]) => fetch(url, {mode, credentials: 'include'}).then(r => r.type, () => 'refused')"""
        for mode in ("cors", "no-cors"):
            assert page.evaluate(fetch, [f"{base}/api/v1/session", mode]) == "refused"
        statuses: list[int] = []
        page.on("response", lambda r: statuses.append(r.status) if r.url.startswith(base) else None)
        page.evaluate(
            """url => { const f = document.createElement('form'); f.method = 'post'; f.action = url;
            document.body.append(f); f.submit() }""",
            f"{base}/sign-out",
        )
        page.wait_for_load_state("networkidle")
        assert statuses[0] == 403
        page.goto(f"{base}/sign-in")
        assert page.url != f"{base}/sign-in"  # still signed in
