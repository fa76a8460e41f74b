"""An answered query of the browser as the viewer opens it: below its id as any result, until it is gone."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from workflow_samples import page_picture, slice_picture

from dicomnode.domain import OriginalUid
from dicomnode.errors import NotFound
from dicomnode.testing import sample_repository, sample_study, write_study
from dicomnode.web.access import Principal
from dicomnode.web.app import create_app
from dicomnode.web.options import WebOptions
from dicomnode.webside.services import WebSide
from dicomnode.workflow.ingest import add_paths

WAIT_S = 60.0
CASES = 4


class Site:
    """The whole application of a node."""

    def __init__(self, node) -> None:
        self.node, self.side = node, WebSide(node, dict)
        self.app = create_app(self.side, WebOptions(), results=self.side.results, queries=self.side.queries)
        self.client = TestClient(self.app, base_url="http://127.0.0.1:8080")
        self.csrf = {"X-Dicomnode-CSRF": self.client.get("/api/v1/session").json()["csrf"]}

    def asked(self, *parts: bytes, **fields) -> str:
        files = [("file", ("x", part)) for part in parts]
        posted = self.client.post("/api/v1/queries", files=files, data=fields, headers=self.csrf)
        assert posted.status_code == 202, posted.text
        until = time.monotonic() + WAIT_S
        while (state := self.client.get(posted.headers["location"]).json())["state"] not in ("done", "failed"):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert state["state"] == "done", state
        return str(state["id"])

    def get(self, upload_id: str, path: str = "", **query):
        return self.client.get(f"/api/v1/results/{upload_id}{path}", params=query)


@pytest.fixture(scope="module")
def site(make_node, tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("node")
    node = make_node(folder)
    add_paths(node.context, [folder / "studies"], sample_repository(folder / "studies", CASES, slices=2, matrix=64))
    made = Site(node)
    yield made
    made.side.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> list[Path]:
    images = sample_study(3, matrix=64, patient_id="PHANTOM-00-0001", seed=60)  # a patient of the repository
    return write_study(images, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def uploaded(site, study) -> str:
    return site.asked(*(p.read_bytes() for p in study), k=2)


@pytest.fixture(scope="module")
def picture() -> bytes:
    buffer = io.BytesIO()
    slice_picture(size=(60, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def test_it_is_a_result_like_any(site, uploaded):
    result = site.get(uploaded).json()
    assert (result["kind"], result["k"]) == ("upload", 2)
    assert result["query"] == {"modality": "CT", "slices": 3, "untaught": None}
    assert 29 * 60 < result["expires"] - time.time() <= 30 * 60


def test_another_k_is_asked_of_the_same_query_without_its_own_patient(site, uploaded):
    stored = site.get(uploaded, "/graph").json()
    more = site.get(uploaded, "/graph", k=50).json()
    assert (stored["live"], more["live"]) == (False, True)
    assert len(more["nodes"]) == 1 + CASES - 1, "all but the query's own patient"
    similarity = [n["similarity"] for n in more["nodes"]]
    assert similarity[:3] == [n["similarity"] for n in stored["nodes"]]
    mine = site.node.vault.pseudonym_for("", "PHANTOM-00-0001", create=False)
    assert mine not in {n["subject"] for n in more["nodes"]}


def test_its_slices_are_shown_beside_the_cases(site, uploaded):
    (series,) = site.get(uploaded, "/cases/query").json()["series"]
    assert (series["frames"], series["rows"], series["columns"]) == (3, 64, 64)
    frame = site.get(uploaded, "/cases/query/series/0/frames/1")
    assert len(frame.content) == 64 * 64 * 2
    node = site.get(uploaded, "/graph").json()["nodes"][1]
    best = site.get(uploaded, f"/cases/{node['id']}").json()["best"]
    assert best[0]["query_frame"] is not None
    assert best[0]["similarity"] > 0.5
    assert site.get(uploaded, f"/cases/{node['id']}/why").json()["case"]
    assert site.get(uploaded, "/atlas", cases=f"query,{node['id']}").headers["content-type"] == "image/webp"


def test_a_picture_that_the_input_gate_refused_is_a_result_without_cases(site):
    buffer = io.BytesIO()
    page_picture().save(buffer, "PNG")
    upload_id = site.asked(buffer.getvalue())
    result = site.get(upload_id).json()
    assert (result["verdict"], result["query"]["slices"]) == ("not-searchable", 0)
    assert result["reason"] == "The image is no CT or MR slice: it looks like a page, chart or screen."
    graph = site.get(upload_id, "/graph")
    assert graph.status_code == 200
    assert graph.json()["total"] == 0
    assert not list((site.node.data_dir / "work").rglob(f"{upload_id}/*.png"))


def test_a_picture_is_shown_as_it_was_compared(site, picture):
    upload_id = site.asked(picture)
    (series,) = site.get(upload_id, "/cases/query").json()["series"]
    assert (series["rows"], series["columns"], series["frames"], series["presets"]) == (40, 60, 1, [])
    values = np.frombuffer(site.get(upload_id, "/cases/query/series/0/frames/0").content, dtype="<i2").reshape(40, 60)
    assert np.array_equal(values, np.asarray(Image.open(io.BytesIO(picture))))
    node = site.get(upload_id, "/graph").json()["nodes"][1]["id"]
    assert site.get(upload_id, f"/cases/{node}/why").status_code == 200


def test_it_is_no_result_for_another_user(site, uploaded):
    for principal in (Principal("ben"), Principal("link", scope=uploaded)):
        with pytest.raises(NotFound):
            site.side.results.result(uploaded, principal)
    assert site.side.results.result(uploaded, Principal("root", admin=True))["id"] == uploaded


def test_nothing_told_of_it_names_the_query(site, uploaded, study):
    from pydicom import dcmread

    images = [dcmread(p, stop_before_pixels=True) for p in study]
    uids = {str(ds[k].value) for ds in images for k in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")}
    pseudo = {site.node.vault.uid(OriginalUid(uid)) for uid in uids}
    secret = (
        uids | pseudo | {"PHANTOM-00-0001", str(site.node.vault.pseudonym_for("", "PHANTOM-00-0001", create=False))}
    )
    node = site.get(uploaded, "/graph").json()["nodes"][1]["id"]
    told = [site.get(uploaded, path).text for path in ("", "/graph", "/cases/query", f"/cases/{node}")]
    told.append(json.dumps(site.client.get(f"/api/v1/queries/{uploaded}").json()))
    assert [s for s in secret if any(s in text for text in told)] == []


def test_a_handle_of_one_query_is_worth_nothing_in_another(site, uploaded, picture):
    node = site.get(uploaded, "/graph").json()["nodes"][1]["id"]
    other = site.asked(picture)
    assert site.get(other, f"/cases/{node}").status_code == 404


def test_it_is_gone_when_it_is_taken_back(site, picture):
    upload_id = site.asked(picture)
    assert site.get(upload_id).status_code == 200
    assert site.client.delete(f"/api/v1/queries/{upload_id}", headers=site.csrf).status_code == 204
    for path in ("", "/graph", "/cases/query", "/cases/query/series/0/frames/0"):
        gone = site.get(upload_id, path)
        assert (gone.status_code, gone.headers["content-type"]) == (404, "application/problem+json"), path


def test_what_is_changed_without_the_secret_of_the_session_is_refused(site, uploaded, picture):
    assert site.client.delete(f"/api/v1/queries/{uploaded}").json()["code"] == "csrf"
    assert site.client.post("/api/v1/queries", files={"file": ("x", picture)}).json()["code"] == "csrf"
    assert site.get(uploaded).status_code == 200


def test_a_query_whose_study_is_archived_meanwhile_is_not_led_to_it(site, tmp_path):
    images = sample_study(2, matrix=64, patient_id="NEW-TO-THE-NODE", seed=81)
    files = write_study(images, tmp_path / "new")
    upload = site.asked(*(p.read_bytes() for p in files))
    add_paths(site.node.context, [tmp_path / "new"], {})
    mine = site.node.vault.pseudonym_for("", "NEW-TO-THE-NODE", create=False)
    assert mine is not None
    case = site.get(upload, "/graph").json()["nodes"][1]["id"]
    for query in ({"k": 50}, {"k": 50, "from": case}):
        graph = site.get(upload, "/graph", **query)
        assert graph.status_code == 200
        assert mine not in {n["subject"] for n in graph.json()["nodes"]}, query


def test_an_answered_query_names_no_case_that_was_excluded_since(site, study):
    upload = site.asked(*(p.read_bytes() for p in study))
    subject = site.client.get(f"/api/v1/queries/{upload}").json()["cases"][-1]["subject"]
    site.node.catalogue.exclude_patient(subject)
    state = site.client.get(f"/api/v1/queries/{upload}").json()
    assert state["cases"]
    assert subject not in json.dumps(state)
