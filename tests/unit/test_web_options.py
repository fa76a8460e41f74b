"""Who may call the web side: loopback names and the public address, from our own pages only."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from dicomnode.config import Auth
from dicomnode.errors import SettingsError
from dicomnode.web.app import create_app
from dicomnode.web.options import WebOptions
from dicomnode.web.texts import TEXTS


class Services:
    def readiness(self):
        return {}

    def answer(self, token, actor):
        return None

    def thumbnail(self, token, instance_uid):
        return None

    def metrics(self):
        return b""


def get(path="/healthz", *, options=None, **headers):
    app = create_app(Services(), options or WebOptions())
    sent = {k.replace("_", "-"): v for k, v in headers.items()}
    return TestClient(app, base_url="http://127.0.0.1:8080").get(path, headers=sent)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:8080", "[::1]:8080", "[::1]"])
def test_loopback_names_are_answered(host):
    assert get(host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.", "", "10.0.0.1", "localhost:x"]
)
def test_another_host_is_not_answered_so_that_rebinding_leads_nowhere(host):
    response = get(host=host)
    assert response.status_code == 421
    assert response.json()["code"] == "host-not-allowed"
    assert "content-security-policy" in response.headers


def test_the_host_of_the_public_url_is_answered_on_its_own_port_only():
    options = WebOptions(public_url="https://cases.hospital.example")
    assert get(options=options, host="cases.hospital.example").status_code == 200
    assert get(options=options, host="cases.hospital.example:444").status_code == 421
    assert get(options=options, host="other.hospital.example").status_code == 421


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8080", 200),
        ("http://localhost:8080", 403),  # another name than the one called
        ("http://127.0.0.1:3000", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("file://127.0.0.1:8080", 403),
    ],
)
def test_requests_of_other_sites_are_refused(origin, status):
    assert get(host="127.0.0.1:8080", origin=origin).status_code == status


def test_the_public_address_is_an_origin_of_ours():
    options = WebOptions(public_url="https://cases.hospital.example")
    assert get(options=options, origin="https://cases.hospital.example").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "node.hospital.example"])
def test_a_host_other_than_loopback_without_auth_stops_the_start(host):
    with pytest.raises(SettingsError) as refused:
        create_app(Services(), WebOptions(host=host))
    assert "[web] host" in str(refused.value)
    assert "[web] auth" in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_hosts_start(host):
    WebOptions(host=host).check()


def test_a_sign_in_that_cannot_be_asked_for_is_never_left_out_silently():
    with pytest.raises(SettingsError, match=r"\[web\] auth"):
        create_app(Services(), WebOptions(auth=Auth(method="users")))


@pytest.mark.parametrize("url", ["ftp://x", "cases.hospital.example", "https://"])
def test_a_public_url_that_is_none_stops_the_start(url):
    with pytest.raises(SettingsError, match=r"\[web\] public_url"):
        WebOptions(public_url=url).check()


def test_both_languages_say_the_same_things_with_the_same_values():
    import string

    def places(text):
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    assert {k: places(v) for k, v in TEXTS["en"].items()} == {k: places(v) for k, v in TEXTS["es"].items()}
