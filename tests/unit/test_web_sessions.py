"""Who may ask for what: every route of the application, tried with every kind of visitor."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute
from sign_in_samples import BASE, EXPIRED, OTHER, OWN, PUBLIC, make_site, open_link, sign_in
from starlette.requests import Request
from starlette.routing import Route

from dicomnode.web import limits
from dicomnode.web.app import create_app
from dicomnode.web.limits import Limits, address_of
from dicomnode.web.options import WebOptions
from dicomnode.web.sessions import MAX_LINKS, is_page, is_public, link_token, result_in

HOUR = 3600.0
CSRF = "X-Dicomnode-CSRF"
# Routes that show nothing of anybody, or ask for sign-in themselves. A new route is not here: it must refuse.
OPEN = {"/", "/healthz", "/readyz", "/static/{name}", "/v/assets/{name}", "/sign-in", "/sign-out", "/continue"}


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


def routes(app) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, of included routers too; a kind that is not known fails."""

    def below(found):
        for route in found:
            if hasattr(route, "original_router"):
                yield from below(route.original_router.routes)
            elif isinstance(route, Route | APIRoute):
                yield from ((method, route.path) for method in sorted(route.methods or {"GET"}))
            else:
                pytest.fail(f"a kind of route that this test does not look into: {route!r}")

    yield from below(app.routes)


def test_the_list_of_routes_is_the_whole_application(site):
    found = set(routes(site.app))
    assert len(found) > 25
    for expected in (
        ("GET", "/api/v1/results/{result_id}"),
        ("GET", "/api/v1/results/{result_id}/graph"),
        ("GET", "/api/v1/results/{result_id}/cases/{case}/series/{series}/frames/{frame}"),
        ("POST", "/api/v1/queries"),
        ("GET", "/v/r/{token}/plain"),
        ("GET", "/metrics"),
    ):
        assert expected in found


def filled(path: str, result: str) -> str:
    """A path with its parameters: ids of this result, its query as the case, numbers 1."""

    def value(match):
        name, _, kind = match[1].partition(":")
        if name.endswith("_id") or name == "token":
            return result
        return "1" if kind == "int" or name in ("series", "frame", "rank") else "query"

    return re.sub(r"\{([^}]+)\}", value, path) + ("?cases=query" if path.endswith("/atlas") else "")


def ask(client, method: str, path: str, csrf: str = ""):
    return client.request(method, path, headers={CSRF: csrf} if csrf else {})


def csrf_of(client, result: str | None = None) -> str:
    return client.get("/api/v1/session", params={"result": result} if result else {}).json()["csrf"]


class TestACookieOfOneAnswer:
    """Reads that answer, and nothing else on any route."""

    def test_is_refused_on_every_route_for_another_answer(self, site):
        client = site.with_link(OWN)
        csrf = csrf_of(client)
        site.spy.calls.clear()
        tried = 0
        for method, path in routes(site.app):
            if path in OPEN or path == "/api/v1/session" or (method, path) == ("POST", "/v/r/{token}"):
                continue
            response = ask(client, method, filled(path, OTHER), csrf)
            is_redirect_to_sign_in = response.headers.get("location", "").startswith("/sign-in")
            assert response.status_code in (401, 403, 404) or is_redirect_to_sign_in, (method, path, response)
            assert site.spy.calls == [], (method, path)
            tried += 1
        assert tried > 20

    def test_the_same_routes_do_answer_a_user_so_the_test_above_can_fail(self, site):
        client = site.signed_in()
        csrf = csrf_of(client)
        silent = set()
        for method, path in routes(site.app):
            if path in OPEN or path == "/api/v1/session":
                continue
            site.spy.calls.clear()
            response = ask(client, method, filled(path, OTHER), csrf)
            assert response.status_code not in (401, 403), (method, path, response.text)
            if not site.spy.calls and method not in ("HEAD", "OPTIONS"):
                silent.add((method, path))
        # pages and descriptions that hold nothing of a result; an upload without a body reaches no service
        assert silent <= {
            ("GET", "/v"),
            ("GET", "/v/"),
            ("GET", "/v/q/{token}"),
            ("POST", "/v/r/{token}"),
            ("GET", "/api/openapi.json"),
            ("POST", "/api/v1/queries"),
        }

    def test_opens_its_own_answer_on_every_route_below_it(self, site):
        client = site.with_link(OWN)
        below = 0
        for method, path in routes(site.app):
            if path.startswith(("/api/v1/results/{", "/v/r/{")) and method == "GET":
                site.spy.calls.clear()
                response = ask(client, method, filled(path, OWN))
                assert response.status_code not in (401, 403), (path, response.text)
                assert site.spy.calls, path
                below += 1
        assert below > 9

    @pytest.mark.parametrize(
        "path",
        [
            f"/api/v1/results/{OWN}/../{OTHER}",
            f"/api/v1/results/{OWN}%2F..%2F{OTHER}",
            f"/api/v1/results/{OWN}/%2e%2e/{OTHER}/graph",
            f"/api/v1/results//{OTHER}",
            f"//api/v1/results/{OTHER}",
            f"/api/v1/results/{OTHER}?result={OWN}",
            f"/api/v1/results/{OTHER};{OWN}",
            f"/api/v1/results/{OTHER.upper()}",
            f"/v/r/{OWN}/../{OTHER}/plain",
            f"/v/r/{OTHER}/cases/1.png",
            f"/v/q/{OTHER}",
            f"/v/q/{OWN}",
            "/v/",
            "/metrics/",
            "/api/v1/",
            "/dicom-web/studies",
        ],
    )
    def test_is_not_led_elsewhere_by_odd_paths(self, site, path):
        client = site.with_link(OWN)
        site.spy.calls.clear()
        response = client.get(path, headers={"x-forwarded-for": "10.0.0.9"})
        assert response.status_code in (401, 403, 404) or response.headers["location"].startswith("/sign-in")
        assert site.spy.calls == []

    def test_under_another_links_name_opens_nothing(self, site):
        client = site.with_link(OWN)
        (value,) = [v for n, v in client.cookies.items() if n.startswith("dicomnode_link_")]
        other = site.with_link(OTHER)
        (name,) = [n for n in other.cookies if n.startswith("dicomnode_link_")]
        thief = site.client()
        thief.cookies.set(name, value)
        thief.cookies.set("dicomnode_session", value)
        for result in (OWN, OTHER):
            assert thief.get(f"/api/v1/results/{result}").status_code == 401
        assert thief.get("/api/v1/session").status_code == 401

    def test_uploads_nothing_and_asks_for_no_query(self, site):
        client = site.with_link(OWN)
        headers = {CSRF: csrf_of(client)}
        assert client.post("/api/v1/queries", files={"file": b"x"}, headers=headers).status_code == 403
        assert client.get(f"/api/v1/queries/{OWN}").status_code == 403
        assert client.delete(f"/api/v1/queries/{OWN}", headers=headers).status_code == 403

    def test_ends_with_the_link(self, site):
        client = site.with_link(OWN)
        site.clock.now += 29 * 86400
        assert client.get(f"/api/v1/results/{OWN}").status_code == 401

    def test_counts_for_nothing_once_links_are_for_users_again(self, tmp_path):
        client = make_site(tmp_path).with_link(OWN)
        (name, value), *_ = [(n, v) for n, v in client.cookies.items() if n.startswith("dicomnode_link_")]
        strict = make_site(tmp_path, links="sign-in")
        later = strict.client()
        later.cookies.set(name, value)
        assert later.get(f"/api/v1/results/{OWN}").status_code == 401


class TestNobody:
    def test_is_refused_on_every_route_that_is_not_open_to_all(self, site):
        client = site.client()
        for method, path in routes(site.app):
            if path in OPEN or (method, path) == ("POST", "/v/r/{token}"):  # a form, with tests of its own
                continue
            for result in (OWN, OTHER):
                response = ask(client, method, filled(path, result))
                to_sign_in = response.headers.get("location", "").startswith("/sign-in")
                assert response.status_code in (401, 403) or to_sign_in, (method, path, response)
        assert site.spy.calls == []

    def test_sees_on_open_routes_nothing_of_the_services(self, site):
        client = site.client()
        for method, path in routes(site.app):
            if path in OPEN and method == "GET":
                assert client.get(filled(path, OWN)).status_code < 500
        assert site.spy.calls == []

    def test_opens_no_websocket(self, site):
        from starlette.websockets import WebSocketDisconnect

        for path in ("/", f"/v/r/{OWN}", "/api/v1/session"):
            with pytest.raises(WebSocketDisconnect), site.client().websocket_connect(path):
                pass

    def test_a_problem_is_told_to_programs_and_a_form_to_people(self, site):
        response = site.client().get(f"/api/v1/results/{OWN}")
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "not-signed-in"
        assert "content-security-policy" in response.headers
        assert "text/html" in site.client().get(f"/v/r/{OWN}").headers["content-type"]

    def test_reads_metrics_only_directly_on_this_machine(self, site):
        local = site.client()
        local._transport.client = ("127.0.0.1", 1)
        assert local.get("/metrics").status_code != 401
        assert local.get("/metrics", headers={"x-forwarded-for": "10.0.0.9"}).status_code == 401
        assert site.client().get("/metrics").status_code == 401  # the test client's peer is no loopback address


class TestSeveralLinksInOneBrowser:
    def test_both_tabs_work_and_each_is_its_own_session(self, site):
        client = site.with_link(OWN)
        site.with_link(OTHER, client)
        for result in (OWN, OTHER):
            site.spy.calls.clear()
            client.get(f"/api/v1/results/{result}/graph")
            assert site.spy.calls == ["graph"]
            assert client.get("/api/v1/session", params={"result": result}).json()["scope"] == result
        assert csrf_of(client, OWN) != csrf_of(client, OTHER)

    def test_a_user_keeps_the_session_beside_them(self, site):
        client = site.with_link(OWN)
        sign_in(client)
        assert client.get("/api/v1/session").json()["user"] == "anna"
        assert client.get("/api/v1/session").json()["scope"] is None
        client.post("/sign-out", headers={CSRF: csrf_of(client)})
        assert client.get("/api/v1/session").json()["scope"] == OWN

    def test_the_one_used_longest_ago_makes_room(self, tmp_path):
        site = make_site(tmp_path)
        tokens = [f"{n:032x}" for n in range(1, MAX_LINKS + 3)]
        created = dict.fromkeys(tokens, site.clock.now)
        object.__setattr__(site.sign_in, "link_created", created.get)
        client = site.client()
        for token in tokens:
            site.clock.now += 70
            assert open_link(client, token).status_code == 303
        names = [n for n in client.cookies if n.startswith("dicomnode_link_")]
        assert len(names) == MAX_LINKS
        answered = [client.get(f"/api/v1/results/{t}").status_code != 404 or bool(site.spy.calls) for t in tokens]
        assert answered[-1]
        site.spy.calls.clear()
        for token in tokens[:2]:
            client.get(f"/api/v1/results/{token}")
        assert site.spy.calls == []
        for token in tokens[2:]:
            client.get(f"/api/v1/results/{token}")
        assert len(site.spy.calls) == MAX_LINKS

    def test_opened_again_it_is_one_session_still(self, site):
        client = site.with_link(OWN)
        former = dict(client.cookies)
        token = site.client()
        token.cookies.set("dicomnode_form", client.cookies["dicomnode_form"])
        from sign_in_samples import form_token

        form = form_token(token.get(f"/v/r/{OTHER}").text)
        site.clock.now += 13 * HOUR  # the former has ended
        assert client.post(f"/v/r/{OWN}", data={"token": form}).status_code == 303
        assert len([n for n in client.cookies if n.startswith("dicomnode_link_")]) == 1
        assert dict(client.cookies) != former


class TestSession:
    def test_tells_who_asks(self, site):
        said = site.signed_in().get("/api/v1/session", headers={"accept-language": "es"}).json()
        assert {k: v for k, v in said.items() if k != "csrf"} == {
            "mode": "users", "user": "anna", "admin": False, "scope": None, "language": "es",
        }  # fmt: skip
        assert len(said["csrf"]) >= 43

    def test_is_kept_by_no_cache(self, site):
        assert site.signed_in().get("/api/v1/session").headers["cache-control"] == "no-store"

    @pytest.mark.parametrize("value", ["", "x", "a" * 5000, "é", '"; DROP TABLE sessions', "\x00", None])
    def test_a_tampered_cookie_is_nobodys(self, site, value):
        client = site.signed_in()
        right = client.cookies["dicomnode_session"]
        wrong = right[:-1] + ("A" if right[-1] != "A" else "B") if value is None else value
        client = site.client()
        header = {"cookie": f"dicomnode_session={wrong}".encode("latin-1")}
        assert client.get("/api/v1/session", headers=header).status_code == 401

    def test_ends_unused_and_when_the_user_is_disabled(self, site):
        client = site.signed_in()
        site.clock.now += 11 * HOUR
        assert client.get("/api/v1/session").status_code == 200
        site.clock.now += 12 * HOUR
        assert client.get("/api/v1/session").status_code == 401
        client = site.signed_in()
        site.users.disable("anna")
        assert client.get("/api/v1/session").status_code == 401
        assert client.get("/v/").headers["location"] == "/sign-in?next=/v/"

    def test_outlives_the_process(self, tmp_path):
        client = make_site(tmp_path).signed_in()
        later = make_site(tmp_path).client()
        later.cookies.set("dicomnode_session", client.cookies["dicomnode_session"])
        assert later.get("/api/v1/session").json() == client.get("/api/v1/session").json()


class TestWithoutSignIn:
    def test_everybody_is_the_local_administrator_with_a_secret_of_this_process(self):
        from starlette.testclient import TestClient

        made = [TestClient(create_app(None, WebOptions()), base_url=BASE) for _ in range(2)]
        said = [c.get("/api/v1/session").json() for c in made]
        assert {k: v for k, v in said[0].items() if k != "csrf"} == {
            "mode": "local", "user": None, "admin": True, "scope": None, "language": "en",
        }  # fmt: skip
        assert said[0]["csrf"] != said[1]["csrf"]
        assert made[0].get("/sign-in").status_code == 404


class TestForgedRequests:
    @pytest.mark.parametrize("value", ["", "x", "é", "0" * 43])
    def test_a_change_needs_the_sessions_own_secret(self, site, value):
        client = site.signed_in()
        headers = {CSRF: value.encode()} if value else {}
        response = client.post("/api/v1/queries", files={"file": b"x"}, headers=headers)
        assert (response.status_code, response.json()["code"]) == (403, "csrf")
        assert site.spy.calls == []

    def test_the_secret_of_another_session_does_not_do(self, site):
        other = csrf_of(site.signed_in())
        response = site.signed_in().delete(f"/api/v1/queries/{OWN}", headers={CSRF: other})
        assert response.json()["code"] == "csrf"

    def test_the_secret_is_needed_without_sign_in_too(self, site):
        from starlette.testclient import TestClient

        client = TestClient(create_app(site.spy, WebOptions(), queries=site.spy), base_url=BASE)
        assert client.delete(f"/api/v1/queries/{OWN}").json()["code"] == "csrf"
        csrf = client.get("/api/v1/session").json()["csrf"]
        client.delete(f"/api/v1/queries/{OWN}", headers={CSRF: csrf})
        assert site.spy.calls == ["delete"]

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_every_route_that_changes_something_asks_for_it(self, site, method):
        client = site.signed_in()
        for found, path in routes(site.app):
            if found == method and path not in OPEN and (found, path) != ("POST", "/v/r/{token}"):
                assert ask(client, method, filled(path, OWN)).json()["code"] == "csrf", path

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999"])
    @pytest.mark.parametrize("path", ["/sign-in", "/sign-out", f"/v/r/{OWN}", "/api/v1/queries"])
    def test_a_form_on_another_site_is_refused(self, site, path, origin):
        response = site.signed_in().post(path, data={"token": "x"}, headers={"origin": origin})
        assert (response.status_code, response.json()["code"]) == (403, "origin-not-allowed")

    def test_another_name_for_this_machine_is_refused(self, site):
        response = site.client().post("/sign-in", data={}, headers={"host": "evil.example"})
        assert response.status_code == 421

    @pytest.mark.parametrize(
        ("mode", "dest", "method", "allowed"),
        [
            ("navigate", "document", "GET", True),
            ("navigate", "iframe", "GET", False),
            ("navigate", "embed", "GET", False),
            ("navigate", "document", "POST", False),
            ("no-cors", "image", "GET", False),
            ("no-cors", "script", "GET", False),
            ("cors", "empty", "GET", False),
            ("websocket", "websocket", "GET", False),
        ],
    )
    @pytest.mark.parametrize("where", ["cross-site", "same-site"])
    def test_another_site_may_lead_here_and_nothing_else(self, site, where, mode, dest, method, allowed):
        headers = {"sec-fetch-site": where, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
        response = site.signed_in().request(method, f"/v/r/{OWN}", headers=headers)
        assert (response.status_code != 403) is allowed

    @pytest.mark.parametrize("where", ["same-origin", "none"])
    def test_pages_of_this_node_and_the_address_bar_are_not_held_up(self, site, where):
        headers = {"sec-fetch-site": where, "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
        assert site.signed_in().get("/api/v1/session", headers=headers).status_code == 200


class TestLimits:
    def test_five_attempts_a_minute_for_a_name_and_the_page_says_when_to_try_again(self, site):
        client = site.client()
        for _ in range(5):
            assert sign_in(client, "anna", "wrong password!").status_code == 401
        response = sign_in(client, "Anna", "wrong password!")
        assert response.status_code == 429
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert "Too many attempts" in response.text
        assert sign_in(site.client()).status_code == 429  # the right password too

    def test_twenty_attempts_a_minute_from_an_address(self, site):
        client = site.client()
        for n in range(20):
            assert sign_in(client, f"user{n}", "wrong password!").status_code == 401
        assert sign_in(client, "user20", "wrong password!").status_code == 429

    def test_ten_uploads_a_minute(self, site):
        client = site.signed_in()
        headers = {CSRF: csrf_of(client)}
        codes = [client.post("/api/v1/queries", content=b"x", headers=headers).status_code for _ in range(11)]
        assert 429 not in codes[:10]
        assert codes[10] == 429
        assert client.get("/api/v1/session").status_code == 200  # reading goes on

    def test_reads_of_one_do_not_count_for_another(self, site, monkeypatch):
        from limits import RateLimitItemPerMinute

        monkeypatch.setattr(limits, "READS", RateLimitItemPerMinute(3, namespace="few"))
        site.users.add("bert", "correct horse battery")
        anna, bert = site.signed_in(), site.signed_in("bert")
        codes = [anna.get("/api/v1/session").status_code for _ in range(4)]
        assert codes == [200, 200, 200, 429]
        response = anna.get("/api/v1/session")
        assert response.headers["content-type"] == "application/problem+json"
        assert int(response.headers["retry-after"]) >= 1
        assert bert.get("/api/v1/session").status_code == 200

    def test_scrolling_two_series_of_six_hundred_slices_in_half_a_minute_is_never_held_up(self):
        counts = Limits()
        request = Request(
            {"type": "http", "method": "GET", "path": f"/api/v1/results/{OWN}/cases/x/series/0/frames/1", "headers": []}
        )
        assert all(counts.api(request, "user:anna") is None for _ in range(2 * 2 * 600))

    @pytest.mark.parametrize(
        ("peer", "forwarded", "expected"),
        [
            ("10.0.0.5", "", "10.0.0.5"),
            ("10.0.0.5", "1.2.3.4", "10.0.0.5"),  # only a proxy on this machine is believed
            ("127.0.0.1", "1.2.3.4", "1.2.3.4"),
            ("127.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),  # what the proxy itself saw is last
            ("127.0.0.1", "", "127.0.0.1"),
        ],
    )
    def test_the_address_is_the_clients_behind_a_proxy_on_this_machine(self, peer, forwarded, expected):
        headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
        assert address_of(Request({"type": "http", "client": (peer, 1), "headers": headers})) == expected


@pytest.mark.parametrize(
    ("path", "result", "token", "page", "public"),
    [
        (f"/v/r/{OWN}", OWN, OWN, True, False),
        (f"/v/r/{OWN}/plain", OWN, OWN, True, False),
        (f"/v/r/{OWN}/cases/1.png", OWN, None, False, False),
        (f"/api/v1/results/{OWN}", OWN, None, False, False),
        (f"/api/v1/results/{OWN}/graph", OWN, None, False, False),
        (f"/v/q/{OWN}", None, None, True, False),
        ("/v/", None, None, True, False),
        ("/v/assets/x.js", None, None, True, True),
        ("/v/assets/../r/x", None, None, True, False),
        ("/static/page.css", None, None, False, True),
        ("/api/v1/queries", None, None, False, False),
        ("/metrics", None, None, False, False),
    ],
)
def test_what_a_path_is(path, result, token, page, public):
    assert (result_in(path), link_token(path), is_page(path), is_public(path)) == (result, token, page, public)


def test_an_ended_link_opens_nothing_even_with_https(tmp_path):
    site = make_site(tmp_path, public_url=PUBLIC)
    assert site.client(base=PUBLIC).get(f"/v/r/{EXPIRED}").status_code == 410
