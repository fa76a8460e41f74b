"""Signing in and out, and the page before an open link, as a browser meets them."""

from __future__ import annotations

import asyncio
import re
import threading
from http.cookies import SimpleCookie

import pytest
from sign_in_samples import (
    EXPIRED,
    OTHER,
    OWN,
    PASSWORD,
    PUBLIC,
    UNKNOWN,
    form_token,
    make_site,
    open_link,
    sign_in,
)
from starlette.exceptions import HTTPException
from starlette.requests import Request

from dicomnode.web import sign_in as sign_in_module
from dicomnode.web.sign_in import _read_form, local_path

FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


@pytest.fixture
def strict(tmp_path):
    return make_site(tmp_path, links="sign-in")


def cookies(response):
    """name -> attributes of every cookie that a response sets."""
    found = {}
    for header in response.headers.get_list("set-cookie"):
        for name, morsel in SimpleCookie(header).items():
            found[name] = morsel
    return found


class TestSigningIn:
    def test_a_page_leads_to_sign_in_and_back(self, strict):
        client = strict.client()
        asked = client.get(f"/v/r/{OWN}", params={"lang": "es"})
        assert asked.status_code == 303
        assert asked.headers["location"] == f"/sign-in?next=/v/r/{OWN}%3Flang%3Des&lang=es"
        form = client.get(asked.headers["location"])
        token = form_token(form.text)
        wanted = re.search(r'name="next" value="([^"]+)"', form.text)[1]
        done = client.post("/sign-in", data={"token": token, "name": "anna", "password": PASSWORD, "next": wanted})
        assert done.status_code == 303
        assert done.headers["location"] == f"/v/r/{OWN}?lang=es"
        assert client.get("/api/v1/session").json()["user"] == "anna"

    def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(self, site):
        response = sign_in(site.client())
        cookie = cookies(response)["dicomnode_session"]
        assert cookie["httponly"]
        assert cookie["samesite"].lower() == "strict"
        assert cookie["path"] == "/"
        assert not cookie["domain"]
        assert not cookie["secure"]  # http on this machine
        assert not cookie["max-age"]  # the browser forgets it when it is closed
        assert len(cookie.value) >= 43

    def test_behind_https_the_cookies_are_secure_and_of_this_host_alone(self, tmp_path):
        site = make_site(tmp_path, public_url=PUBLIC)
        client = site.client(base=PUBLIC)
        made = {**cookies(client.get("/sign-in")), **cookies(sign_in(site.client(base=PUBLIC)))}
        made |= cookies(open_link(site.client(base=PUBLIC), OWN))
        assert len(made) == 3
        assert all(name.startswith("__Host-dicomnode_") for name in made)
        assert all(c["secure"] and c["httponly"] and c["path"] == "/" and not c["domain"] for c in made.values())
        assert all(c["samesite"].lower() == "strict" for c in made.values())

    def test_an_error_does_not_tell_which_of_the_two_was_wrong(self, site):
        site.users.add("bert", PASSWORD)
        site.users.disable("bert")
        pages = []
        for name in ("anna", "nobody", "bert"):
            password = PASSWORD if name == "bert" else "wrong password!"
            response = sign_in(site.client(), name, password)
            assert response.status_code == 401
            assert "dicomnode_session" not in cookies(response)
            pages.append(re.sub(r'value="[^"]*"', "", response.text))
        assert pages[0] == pages[1] == pages[2]
        assert "Name or password is wrong." in pages[0]

    def test_what_was_typed_is_escaped_and_the_password_is_never_told_back(self, site):
        response = sign_in(site.client(), '"><script>alert(1)</script>', "secret password")
        assert "<script>alert" not in response.text
        assert "secret password" not in response.text

    @pytest.mark.parametrize("language", ["en", "es"])
    def test_the_form_has_labels_and_tells_password_stores_what_it_asks_for(self, site, language):
        html = site.client().get("/sign-in", params={"lang": language}).text
        assert f'<html lang="{language}">' in html
        for field, complete in (("name", "username"), ("password", "current-password")):
            assert f'<label for="{field}">' in html
            assert re.search(rf'<input id="{field}"[^>]*autocomplete="{complete}"', html)
        assert ("Contraseña" in html) is (language == "es")
        assert "<script" not in html
        assert " style=" not in html

    def test_the_browser_may_say_where_a_form_is_from_as_it_hides_that_under_no_referrer(self, site):
        client = site.client()
        for page in (client.get("/sign-in"), client.get(f"/v/r/{OWN}"), site.signed_in().get("/sign-out")):
            assert page.headers["referrer-policy"] == "same-origin"
            assert '<meta name="referrer" content="same-origin">' in page.text
        assert client.get("/healthz").headers["referrer-policy"] == "no-referrer"

    def test_the_language_can_be_changed_without_losing_the_way(self, site):
        html = site.client().get("/sign-in", params={"next": f"/v/r/{OWN}"}).text
        assert f'href="?lang=es&amp;next=/v/r/{OWN}"' in html or f'href="?lang=es&next=/v/r/{OWN}"' in html

    def test_somebody_who_is_signed_in_goes_on_at_once(self, site):
        client = site.signed_in()
        response = client.get("/sign-in", params={"next": f"/v/r/{OTHER}"})
        assert (response.status_code, response.headers["location"]) == (303, f"/v/r/{OTHER}")

    def test_without_any_user_the_page_says_how_to_add_one(self, site):
        assert "dicomnode user add" not in site.client().get("/sign-in").text
        site.users.disable("anna")
        assert "dicomnode user add NAME --admin" in site.client().get("/sign-in").text

    def test_a_session_of_the_attackers_choice_is_not_taken_over(self, site):
        victim = site.client()
        victim.cookies.set("dicomnode_session", "chosen-by-somebody-else")
        sign_in(victim)
        attacker = site.client()
        attacker.cookies.set("dicomnode_session", "chosen-by-somebody-else")
        assert attacker.get("/api/v1/session").status_code == 401

    def test_signing_in_again_gives_another_cookie_and_ends_the_former_session(self, site):
        client = site.signed_in()
        former = client.cookies["dicomnode_session"]
        token = form_token(site.client().get("/sign-in").text)  # of another browser
        assert client.post("/sign-in", data={"token": token, "name": "anna", "password": PASSWORD}).status_code == 403
        # the form of this browser, kept open in a tab from before
        client.cookies.set("dicomnode_form", "f" * 32)
        other = site.client()
        other.cookies.set("dicomnode_form", "f" * 32)
        token = form_token(other.get("/sign-in").text)
        done = client.post("/sign-in", data={"token": token, "name": "anna", "password": PASSWORD})
        assert done.status_code == 303
        assert client.cookies["dicomnode_session"] != former
        thief = site.client()
        thief.cookies.set("dicomnode_session", former)
        assert thief.get("/api/v1/session").status_code == 401

    @pytest.mark.parametrize("tamper", [{"token": ""}, {"token": "0" * 64}, {"token": "ñ"}])
    def test_a_form_that_is_not_ours_signs_nobody_in(self, site, tamper):
        response = sign_in(site.client(), **tamper)
        assert response.status_code == 403
        assert "dicomnode_session" not in cookies(response)

    def test_the_token_of_another_browsers_form_signs_nobody_in(self, site):
        token = form_token(site.client().get("/sign-in").text)
        client = site.client()
        client.get("/sign-in")
        assert sign_in(client, token=token).status_code == 403

    def test_two_tabs_with_the_form_both_work(self, site):
        client = site.client()
        first = form_token(client.get("/sign-in").text)
        client.get("/sign-in")
        done = client.post("/sign-in", data={"token": first, "name": "anna", "password": PASSWORD})
        assert done.status_code == 303

    @pytest.mark.parametrize(
        ("body", "headers", "status"),
        [
            (b"name=" + b"a" * 10_000, FORM, 413),
            (b"x" * 20, {"content-type": "application/json"}, 415),
            (b"name=%ff%fe", FORM, 400),
            (b"&".join(b"f%d=1" % n for n in range(50)), FORM, 400),
            (b"\xff\xfe", FORM, 400),
        ],
    )
    def test_a_body_that_is_no_small_form_is_refused(self, site, body, headers, status):
        assert site.client().post("/sign-in", content=body, headers=headers).status_code == status

    def test_many_may_sign_in_at_once(self, site):
        for n in range(4):
            site.users.add(f"user{n}", PASSWORD)
        seen = []

        def one(n):
            client = site.signed_in(f"user{n}")
            seen.append(client.get("/api/v1/session").json()["user"])

        threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(seen) == [f"user{n}" for n in range(4)]

    def test_every_act_is_in_the_audit_trail_and_no_password_or_unknown_name_is(self, site):
        sign_in(site.client(), "anna", "wrong password!")
        sign_in(site.client(), "password typed as name", "x")
        client = site.signed_in()
        csrf = client.get("/api/v1/session").json()["csrf"]
        client.post("/sign-out", headers={"X-Dicomnode-CSRF": csrf})
        assert site.events() == [
            ("sign-in-failed", "anna"),
            ("sign-in-failed", "unknown"),
            ("signed-in", "anna"),
            ("signed-out", "anna"),
        ]
        written = "".join(f.read_text() for f in site.audit.folder.iterdir())
        assert "wrong password" not in written
        assert "typed as name" not in written
        assert site.audit.verify() == 4

    def test_what_cannot_be_written_down_does_not_happen(self, site):
        site.audit.folder.mkdir(exist_ok=True)
        client = site.client()
        token = form_token(client.get("/sign-in").text)
        site.audit.folder.rmdir()
        site.audit.folder.write_text("a file where the trail should be")
        response = client.post("/sign-in", data={"token": token, "name": "anna", "password": PASSWORD})
        assert response.status_code == 500
        assert "dicomnode_session" not in cookies(response)


class TestOpenRedirect:
    @pytest.mark.parametrize(
        "asked",
        [
            "https://evil.example/v/",
            "//evil.example/v/",
            "/\\evil.example",
            "\\\\evil.example",
            "/v/\\evil.example",
            "/v//evil.example",
            "/v/../sign-out",
            "/v/%2e%2e/sign-out",
            "/sign-out",
            "/api/v1/session",
            "javascript:alert(1)",
            "/v/\r\nSet-Cookie: a=b",
            "/v/ x",
            "/v/\u202e",
            "v/",
            "",
            "/v/" + "a" * 2000,
        ],
    )
    def test_leads_to_pages_of_this_node_only(self, site, asked):
        assert local_path(asked) == "/v/"
        assert sign_in(site.client(), next=asked).headers["location"] == "/v/"
        assert site.client().get("/continue", params={"next": asked}).headers["location"] == "/v/"
        assert site.signed_in().get("/sign-in", params={"next": asked}).headers["location"] == "/v/"

    @pytest.mark.parametrize(
        "asked", ["/v/", f"/v/r/{OWN}", f"/v/r/{OWN}/plain?lang=es", f"/v/q/{OWN}?k=50&text=a%20b"]
    )
    def test_pages_of_the_viewer_are_gone_on_to(self, asked):
        assert local_path(asked) == asked


class TestSigningOut:
    def test_by_script_with_the_sessions_secret(self, site):
        client = site.signed_in()
        value = client.cookies["dicomnode_session"]
        csrf = client.get("/api/v1/session").json()["csrf"]
        response = client.post("/sign-out", headers={"X-Dicomnode-CSRF": csrf})
        assert response.status_code == 204
        assert response.headers["clear-site-data"] == '"cache", "storage"'
        client.cookies.set("dicomnode_session", value)
        assert client.get("/api/v1/session").status_code == 401

    def test_by_the_button_without_script(self, site):
        client = site.signed_in()
        page = client.get("/sign-out", headers={"accept-language": "es"})
        assert "Ha iniciado sesión como anna." in page.text
        response = client.post("/sign-out", data={"token": form_token(page.text)})
        assert (response.status_code, response.headers["location"]) == (303, "/sign-in")
        assert client.get("/api/v1/session").status_code == 401

    @pytest.mark.parametrize("how", [{"headers": {"X-Dicomnode-CSRF": "x"}}, {"data": {"token": "x"}}, {"data": {}}])
    def test_not_by_another_site_or_with_a_wrong_secret(self, site, how):
        client = site.signed_in()
        assert client.post("/sign-out", **how).status_code in (403, 415)
        assert client.get("/api/v1/session").status_code == 200

    def test_of_nobody_changes_nothing(self, site):
        assert site.client().get("/sign-out").headers["location"] == "/sign-in"
        assert site.client().post("/sign-out", data={"token": "x"}).headers["location"] == "/sign-in"
        assert site.client().post("/sign-out", headers={"X-Dicomnode-CSRF": "x"}).status_code == 401


class TestPageBeforeALink:
    def test_a_get_opens_nothing_so_that_scanners_of_links_burn_nothing(self, site):
        client = site.client()
        for _ in range(3):
            page = client.get(f"/v/r/{OWN}")
            assert page.status_code == 401
            assert "Open the result" in page.text
            assert set(client.cookies) == {"dicomnode_form"}
        assert site.spy.calls == []
        assert site.events() == []
        assert open_link(client, OWN).status_code == 303

    def test_its_button_opens_the_result_and_says_so_in_the_audit_trail(self, site):
        client = site.with_link(OWN)
        assert client.get("/api/v1/session").json()["scope"] == OWN
        assert site.events() == [("link-opened", "link")]
        cookie = next(n for n in client.cookies if n.startswith("dicomnode_link_"))
        assert re.fullmatch(r"dicomnode_link_[0-9a-f]{8}", cookie)

    @pytest.mark.parametrize("language", ["en", "es"])
    def test_is_in_both_languages_and_keeps_what_was_asked(self, site, language):
        page = site.client().get(f"/v/r/{OWN}/plain", params={"lang": language})
        assert f'<html lang="{language}">' in page.text
        assert f'name="next" value="/v/r/{OWN}/plain?lang={language}"' in page.text

    @pytest.mark.parametrize(("token", "status"), [(EXPIRED, 410), (UNKNOWN, 404), ("x", 404), ("A" * 32, 404)])
    def test_an_ended_or_unknown_link_has_no_button(self, site, token, status):
        client = site.client()
        page = client.get(f"/v/r/{token}")
        assert page.status_code == status
        assert "<form" not in page.text
        other = form_token(client.get(f"/v/r/{OWN}").text)
        assert client.post(f"/v/r/{token}", data={"token": other}).status_code == status
        assert not any(n.startswith("dicomnode_link_") for n in client.cookies)

    @pytest.mark.parametrize("data", [{}, {"token": "0" * 64}])
    def test_a_form_of_elsewhere_opens_nothing(self, site, data):
        client = site.client()
        client.get(f"/v/r/{OWN}")
        response = client.post(f"/v/r/{OWN}", data={**data, "next": "/v/"})
        assert response.status_code == 403
        assert set(client.cookies) == {"dicomnode_form"}

    def test_leads_to_its_own_result_whatever_the_form_says(self, site):
        client = site.client()
        token = form_token(client.get(f"/v/r/{OWN}").text)
        for wanted in (f"/v/r/{OTHER}", "/v/", "https://evil.example", f"/v/r/{OWN}/../{OTHER}"):
            response = client.post(f"/v/r/{OWN}", data={"token": token, "next": wanted})
            assert response.headers["location"] == f"/v/r/{OWN}"

    def test_a_user_needs_no_button_and_stays_signed_in(self, site):
        client = site.signed_in()
        value = client.cookies["dicomnode_session"]
        response = client.post(f"/v/r/{OWN}", data={"token": "x", "next": f"/v/r/{OWN}"})
        assert (response.status_code, response.headers["location"]) == (303, f"/v/r/{OWN}")
        assert client.cookies["dicomnode_session"] == value
        assert not any(n.startswith("dicomnode_link_") for n in client.cookies)
        assert client.get("/api/v1/session").json()["scope"] is None

    def test_there_is_none_where_links_are_for_users(self, strict):
        client = strict.client()
        token = form_token(client.get("/sign-in").text)
        response = client.post(f"/v/r/{OWN}", data={"token": token})
        assert response.status_code in (401, 403, 405)
        assert not any(n.startswith("dicomnode_link_") for n in client.cookies)


class TestLinkFromAnotherSite:
    """A Strict cookie is not sent with it; the page asks once more, from this site."""

    FOREIGN = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}  # noqa: RUF012

    @pytest.mark.parametrize("links", ["open", "sign-in"])
    def test_is_asked_again_and_then_opens_for_who_is_signed_in(self, tmp_path, links):
        site = make_site(tmp_path, links=links)
        page = site.client().get(f"/v/r/{OWN}?lang=es", headers=self.FOREIGN)
        assert page.status_code == 401
        refresh = re.search(r'http-equiv="refresh" content="0; url=([^"]+)"', page.text)[1].replace("&amp;", "&")
        assert refresh == f"/continue?next=/v/r/{OWN}%3Flang%3Des"
        client = site.signed_in()
        again = client.get(refresh, headers={"sec-fetch-site": "same-origin"})
        assert (again.status_code, again.headers["location"]) == (303, f"/v/r/{OWN}?lang=es")

    def test_does_not_go_round_in_circles(self, site):
        client = site.client()
        again = client.get(f"/continue?next=/v/r/{OWN}", headers={"sec-fetch-site": "same-origin"})
        page = client.get(again.headers["location"], headers={"sec-fetch-site": "same-origin"})
        assert "Open the result" in page.text


def test_a_form_that_never_ends_is_let_go(monkeypatch):
    monkeypatch.setattr(sign_in_module, "FORM_S", 0.1)

    async def drips():
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"", "more_body": True}

    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, drips)
    with pytest.raises(HTTPException) as caught:
        asyncio.run(asyncio.wait_for(_read_form(request), 5))
    assert caught.value.status_code == 408
