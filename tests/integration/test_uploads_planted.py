"""Markers in every attribute of Table E.1-1, uploaded through the browser's API to a node at log level debug.

They are nowhere once the query is answered: not even in the identified zone. Neither are they while nothing is asked
about them any more: a query that is refused, fails, is taken back, or dies with its process.
"""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import planted
import pytest
from loop import opened
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset

from dicomnode.deid.recipe import Action
from dicomnode.testing import RunningNode, sample_repository, sample_study, write_study
from dicomnode.testing.phantom import Thorax

pytestmark = pytest.mark.integration

QUERIES = "/api/v1/queries"
ROOT = f"{planted.UID_ROOT}888883"
FILE_NAME = "PHIXNAME-Gomez.dcm"
WAIT_S = 120.0
IMAGE = (
    "Rows", "Columns", "PixelRepresentation", "RescaleIntercept", "RescaleSlope", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "PixelData",
)  # fmt: skip


@dataclass
class Site:
    """A running node and a browser's requests."""

    node: RunningNode
    http: httpx.Client
    planted: planted.Planted
    study: list[Path]

    def post(self, *parts: bytes | Path) -> httpx.Response:
        csrf = self.http.get("/api/v1/session").json()["csrf"]
        files = [("file", (FILE_NAME, p if isinstance(p, bytes) else p.read_bytes())) for p in parts]
        return self.http.post(QUERIES, files=files, headers={"X-Dicomnode-CSRF": csrf})

    def asked(self, *parts: bytes | Path) -> dict:
        posted = self.post(*parts)
        assert posted.status_code == 202, posted.text
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            state = self.http.get(posted.headers["location"]).json()
            if state["state"] in ("done", "failed"):
                return state
            time.sleep(0.1)
        raise AssertionError(f"not answered in {WAIT_S} s: {state}")

    def everywhere(self) -> dict[str, bytes]:
        """Every file of the node, by its name, and its figures."""
        files = {
            str(p.relative_to(self.node.folder)): p.read_bytes() for p in self.node.folder.rglob("*") if p.is_file()
        }
        return files | {f"name of {name}": name.encode() for name in files} | {"/metrics": self.node.get("/metrics")[1]}

    def marked(self) -> dict[str, set[bytes]]:
        """Where a marker is, but for those that the recipe keeps and the file that is uploaded."""
        recipe = opened(self.node).recipe
        kept = [
            marker
            for tag in recipe.rules
            if recipe.action(tag, planted.CT) is Action.KEEP and (marker := planted.marker_of(tag))
        ]
        found = {}
        for where, data in self.everywhere().items():
            for marker in kept:
                data = data.replace(marker, b"")
            words = set(re.findall(rb"PHIX[0-9A-Z-]*|" + re.escape(planted.UID_ROOT.encode()) + rb"[0-9.]*", data))
            if words:
                found[where] = words
        return found

    def uploaded(self) -> list[Path]:
        return list((self.node.var / "identified" / "uploads").rglob("*"))


def plant(path: Path, monkeypatch: pytest.MonkeyPatch) -> planted.Planted:
    ds: Dataset = planted.base_ct()
    image = sample_study(1, seed=5, matrix=64)[0]
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.3"
    for keyword in IMAGE:
        ds[keyword] = image[keyword]
    monkeypatch.setattr(planted, "base_ct", lambda: ds)
    path.parent.mkdir(exist_ok=True)
    return planted.plant(path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("uploads")
    findings = sample_repository(base / "repository", 3, slices=4, matrix=64)
    with pytest.MonkeyPatch.context() as patch:
        marked = plant(base / "sent" / "in.dcm", patch)
    study = write_study(sample_study(4, patient_id="PHIX-STUDY", seed=77, matrix=64), base / "study")
    with RunningNode(base / "node", receivers=1, log_level="debug") as node:
        added = node.run("index", "add", base / "repository", "--findings", findings)
        assert "added 3 studies" in added.stdout, added.stdout + added.stderr
        with httpx.Client(base_url=node.url, timeout=60) as http:
            yield Site(node, http, marked, study)


def test_a_planted_object_is_answered_and_its_markers_are_nowhere(site: Site):
    done = site.asked(site.planted.path)
    assert (done["state"], len(done["cases"])) == ("done", 3)
    assert site.uploaded() == []
    assert site.marked() == {}
    kept = list((site.node.var / "work" / "uploads").rglob("*.dcm"))
    assert kept, "what was looked through holds the de-identified slice"


def test_the_ranking_is_that_of_the_command(site: Site):
    done = site.asked(*site.study)
    command = site.node.json("query", site.study[0].parent)
    assert [(c["study_uid"], c["similarity"]) for c in done["cases"]] == [
        (c["study_uid"], c["similarity"]) for c in command["cases"]
    ]
    assert done["verdict"] == command["verdict"]


def test_a_planted_picture_leaves_its_pixels_only(site: Site):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "PHIX-TEXT")
    exif = Image.Exif()
    exif[0x010E] = "PHIX-EXIF"
    buffer = io.BytesIO()
    hounsfield = Thorax.draw(1, None, 10.0).cut(120.0, 128)
    Image.fromarray(np.clip((hounsfield + 1350) / 1500 * 255, 0, 255).astype(np.uint8)).save(
        buffer, "PNG", pnginfo=info, exif=exif
    )
    assert b"PHIX-TEXT" in buffer.getvalue()
    assert site.asked(buffer.getvalue())["state"] == "done"
    assert site.uploaded() == []
    assert site.marked() == {}


def test_refused_and_failed_uploads_leave_nothing(site: Site):
    data = site.planted.path.read_bytes()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("PHIX-NAME.dcm", data)
    assert site.post(archive.getvalue()[:-40]).status_code == 422
    assert site.post(data, site.study[0]).status_code == 422
    assert site.post(b"<svg>PHIX-SVG</svg>").status_code == 415
    assert site.asked(data[:-4000])["error"]["code"] == "truncated"
    screen = write_study(
        sample_study(1, patient_id="PHIX-SC", matrix=64, BurnedInAnnotation="YES"),
        site.planted.path.parent / "screen",
    )
    assert site.asked(*screen)["error"]["code"] == "burned-in"
    assert site.uploaded() == []
    assert site.marked() == {}


def test_a_query_that_is_taken_back_leaves_nothing(site: Site):
    place = site.post(*site.study).headers["location"]
    csrf = site.http.get("/api/v1/session").json()["csrf"]
    assert site.http.delete(place, headers={"X-Dicomnode-CSRF": csrf}).status_code == 204
    assert site.http.get(place).status_code == 404
    until = time.monotonic() + WAIT_S
    folder = site.node.var / "work" / "uploads" / place.rsplit("/", 1)[1]
    while (folder.exists() or site.uploaded()) and time.monotonic() < until:
        time.sleep(0.1)
    assert (folder.exists(), site.uploaded(), site.marked()) == (False, [], {})


def test_a_node_that_was_killed_forgets_its_queries_and_sweeps_what_they_left(site: Site):
    place = site.post(*site.study).headers["location"]
    site.node.kill()
    left = site.node.var / "identified" / "uploads" / ("0" * 32)
    left.mkdir(parents=True, exist_ok=True)
    (left / "0").write_bytes(b"PHIX-LEFT")
    site.node.start()
    assert site.http.get(place).status_code == 404
    assert site.uploaded() == []
    assert list((site.node.var / "work").glob("uploads/*")) == []
    assert site.marked() == {}


def test_a_post_without_the_secret_of_the_session_is_refused(site: Site):
    refused = site.http.post(QUERIES, files=[("file", ("a.dcm", b"x"))])
    assert (refused.status_code, refused.json()["code"]) == (403, "csrf")
    assert site.uploaded() == []
