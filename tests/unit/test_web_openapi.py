"""The API describes itself truly: every route with its errors, and nothing that is asked makes it fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.routing import Route
from starlette.testclient import TestClient
from workflow_samples import job_of, process

from dicomnode.domain import Role
from dicomnode.testing import sample_repository, sample_study
from dicomnode.web.app import create_app
from dicomnode.web.options import WebOptions
from dicomnode.webside.services import WebSide
from dicomnode.workflow.ingest import add_paths

BASE = "http://127.0.0.1:8080"
PROBLEM = "application/problem+json"
EXAMPLES = 25


class Api:
    """The application of a node with an answer, and its description."""

    def __init__(self, node, token: str) -> None:
        self.node, self.token = node, token
        self.services = WebSide(node, dict)
        self.app = create_app(self.services, WebOptions(), results=self.services.results, queries=self.services.queries)
        self.client = TestClient(self.app, base_url=BASE, raise_server_exceptions=False)
        self.text = self.client.get("/api/openapi.json")
        self.described: dict[str, Any] = self.text.json()
        self.handles = [n["id"] for n in self.client.get(f"/api/v1/results/{token}/graph").json()["nodes"]]

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path, item in self.described["paths"].items():
            for method, operation in item.items():
                yield method, path, operation


@pytest.fixture(scope="module")
def api(make_node, tmp_path_factory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("node")
    node = make_node(folder)
    add_paths(node.context, [folder / "studies"], sample_repository(folder / "studies", 3, slices=2, matrix=64))
    job = job_of(node, sample_study(2, matrix=64, patient_id="ASKING"), role=Role.QUERY)
    process(node, job, ("deid", "archive", "embed", "index", "retrieve"))
    made = Api(node, node.answers.by_id(node.spool.job(job).answer_id).token)
    yield made
    made.services.close()


def refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from refs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from refs(inner)


def plain(path: str) -> str:
    """A route's path as OpenAPI writes it: without converters."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """(method, path) of the API, from what the application answers rather than from what it says."""
    found = [r for route in app.routes for r in getattr(getattr(route, "original_router", None), "routes", [route])]
    for route in found:
        if isinstance(route, Route) and route.path.startswith("/api/v1"):
            yield from ((method.lower(), plain(route.path)) for method in (route.methods or set()) - {"HEAD"})


class TestDescription:
    def test_it_is_openapi_3(self, api):
        assert api.text.status_code == 200
        assert api.described["openapi"].startswith("3.")
        assert api.described["info"]["title"]

    def test_every_route_of_the_api_is_in_it_and_nothing_else(self, api):
        described = {(method, path) for method, path, _ in api.operations()}
        assert {p for _, p in described if not p.startswith("/api/v1/")} == set()
        assert set(routes(api.app)) == described
        needed = {
            ("get", "/api/v1/session"),
            ("get", "/api/v1/results/{result_id}"),
            ("get", "/api/v1/results/{result_id}/graph"),
            ("get", "/api/v1/results/{result_id}/atlas"),
            ("get", "/api/v1/results/{result_id}/cases/{case}"),
            ("get", "/api/v1/results/{result_id}/cases/{case}/series/{series}/frames/{frame}"),
            ("get", "/api/v1/results/{result_id}/cases/{case}/series/{series}/frames/{frame}.png"),
            ("get", "/api/v1/results/{result_id}/cases/{case}/series/{series}/frames/{frame}/masks.png"),
            ("get", "/api/v1/results/{result_id}/cases/{case}/why"),
            ("get", "/api/v1/results/{result_id}/contact-sheet.png"),
            ("get", "/api/v1/results/{result_id}/contact-sheet.pdf"),
            ("post", "/api/v1/queries"),
            ("get", "/api/v1/queries/{upload_id}"),
            ("get", "/api/v1/queries/{upload_id}/events"),
            ("delete", "/api/v1/queries/{upload_id}"),
        }
        assert needed <= described

    def test_every_reference_in_it_leads_somewhere(self, api):
        for ref in refs(api.described):
            here: Any = api.described
            for part in ref.removeprefix("#/").split("/"):
                assert part in here, ref
                here = here[part]

    def test_every_operation_is_told_in_words_and_by_the_type_of_its_answer(self, api):
        for method, path, operation in api.operations():
            where = f"{method} {path}"
            assert operation.get("summary"), where
            ok = [r for s, r in operation["responses"].items() if s.startswith("2")]
            assert len(ok) == 1, where
            if method != "delete":
                for media in ok[0]["content"].values():
                    assert media.get("schema") != {} or "json" not in str(ok[0]["content"]), where
                assert ok[0]["content"], where

    def test_every_error_is_a_problem(self, api):
        for method, path, operation in api.operations():
            where = f"{method} {path}"
            bad = {s: r for s, r in operation["responses"].items() if s.startswith(("4", "5"))}
            assert {"401", "422", "429"} <= set(bad), where
            assert ("404" in bad) is ("{" in path), where
            for status, response in bad.items():
                assert set(response.get("content", {})) == {PROBLEM}, f"{where} {status}"
        assert "HTTPValidationError" not in api.described.get("components", {}).get("schemas", {})

    def test_what_changes_something_needs_the_secret_of_the_session(self, api):
        for method, path, operation in api.operations():
            needs = any(p["name"] == "X-Dicomnode-CSRF" for p in operation.get("parameters", []))
            assert needs is (method != "get"), f"{method} {path}"


JUNK = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.sampled_from(
        ["", "0", "-1", "1e999", "NaN", "null", "..", "%00", "query", "'\"<script>", "٣", "\u202e", "a" * 300]
    ),
)


def url_of(path: str, values: dict[str, str]) -> str:
    from urllib.parse import quote

    return re.sub(r"\{(\w+)\}", lambda m: quote(values[m[1]], safe="") or "-", path)


class TestFuzz:
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_nothing_that_is_asked_is_a_fault_of_ours(self, api, data):
        """Each route, with parameters that are right, nearly right, or junk."""
        known = {
            "result_id": st.sampled_from([api.token, "0" * 32]),
            "case": st.sampled_from(api.handles),
            "upload_id": st.sampled_from(["0" * 32]),
            "series": st.integers(0, 2).map(str),
            "frame": st.integers(0, 3).map(str),
            "cases": st.lists(st.sampled_from(api.handles), max_size=70).map(",".join),
            "k": st.sampled_from(["1", "5", "1000", "1001"]),
            "text": st.sampled_from(["nodule", "nothing", "27925004"]),
            "from": st.sampled_from(api.handles),
            "size": st.sampled_from(["32", "64", "256"]),
            "lang": st.sampled_from(["en", "es"]),
        }
        for method, path, operation in api.operations():
            if method != "get" or path.endswith("/why"):  # the networks work on each: a test of its own
                continue
            values, query = {}, {}
            for parameter in operation.get("parameters", []):
                name = parameter["name"]
                likely = known.get(name, st.integers(0, 300).map(str))
                drawn = data.draw(st.one_of(likely, likely, likely, JUNK))
                if parameter["in"] == "path":
                    values[name] = drawn
                elif data.draw(st.booleans()):
                    query[name] = drawn
            got = api.client.get(url_of(path, values), params=query)
            said = f"{path} {values} {query}: {got.status_code} {got.text[:200]}"
            assert got.status_code < 500, said
            if got.status_code >= 400:
                assert got.headers["content-type"] == PROBLEM, said
                problem = got.json()
                assert problem["status"] == got.status_code, said
                assert problem["code"], said
                assert "\n" not in problem.get("detail", ""), said
            elif got.status_code == 200:
                types = operation["responses"]["200"]["content"]
                assert got.headers["content-type"].partition(";")[0] in types, said

    def test_why_with_junk_is_no_fault_of_ours(self, api):
        for query in ({"frame": "-1"}, {"frame": "9"}, {"series": "x"}, {"query_frame": "1e9"}, {"query_series": "7"}):
            for case in (api.handles[1], "query", "junk"):
                got = api.client.get(f"/api/v1/results/{api.token}/cases/{case}/why", params=query)
                assert 400 <= got.status_code < 500, (query, case)
                assert got.headers["content-type"] == PROBLEM

    def test_methods_and_paths_that_are_not_there_are_problems(self, api):
        csrf = api.client.get("/api/v1/session").json()["csrf"]
        for method, path, status in (
            ("PUT", "/api/v1/queries", 405),
            ("POST", "/api/v1/session", 405),
            ("GET", "/api/v1/nothing", 404),
            ("GET", "/api/nothing", 404),
            ("DELETE", f"/api/v1/results/{api.token}", 405),
        ):
            got = api.client.request(method, path, headers={"X-Dicomnode-CSRF": csrf})
            assert (got.status_code, got.headers["content-type"]) == (status, PROBLEM), path
