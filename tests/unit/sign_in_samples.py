"""An application with sign-in for tests: real users and audit trail in a folder, services that only remember calls."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from starlette.testclient import TestClient

from dicomnode.archive.database import open_engine
from dicomnode.archive.migrate import upgrade
from dicomnode.archive.users import Users
from dicomnode.config import Auth
from dicomnode.errors import NotFound
from dicomnode.telemetry.audit import AuditTrail
from dicomnode.web.app import create_app
from dicomnode.web.options import WebOptions
from dicomnode.web.sessions import SignIn

PASSWORD = "correct horse battery"
BASE = "http://127.0.0.1:8080"
PUBLIC = "https://cases.hospital.example"
OWN, OTHER, EXPIRED, UNKNOWN = "a" * 32, "b" * 32, "e" * 32, "0" * 32
FAST = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
TOKEN = re.compile(r'name="token" value="([0-9A-Za-z_-]+)"')


class Clock:
    """Seconds since the epoch, set by the test."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Spy:
    """Services of which every call is remembered and finds nothing."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def readiness(self) -> dict[str, Any]:
        return {n: {"ready": True, "detail": ""} for n in ("receiver", "worker", "index", "model")}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*_args: Any, **_kwargs: Any) -> Any:
            self.calls.append(name)
            raise NotFound("nothing is here")

        return call


@dataclass
class Site:
    """The application and what it stands on."""

    app: Any
    users: Users
    spy: Spy
    audit: AuditTrail
    clock: Clock
    sign_in: SignIn

    def client(self, base: str = BASE, **kwargs: Any) -> TestClient:
        """A browser without cookies that follows no redirect."""
        options: dict[str, Any] = {"follow_redirects": False, "raise_server_exceptions": False}
        return TestClient(self.app, base_url=base, **options, **kwargs)

    def signed_in(self, name: str = "anna", **kwargs: Any) -> TestClient:
        """A browser in which a user has signed in."""
        client = self.client(**kwargs)
        response = sign_in(client, name)
        assert response.status_code == 303, response.text
        return client

    def with_link(self, token: str = OWN, client: TestClient | None = None) -> TestClient:
        """A browser in which the button of a link was pressed."""
        client = client or self.client()
        response = open_link(client, token)
        assert response.status_code == 303, response.text
        return client

    def events(self) -> list[tuple[str, str]]:
        """(event, actor) of the audit trail."""
        return [(e["event"], e["actor"]) for e in self.audit.entries()]


@cache
def _catalogue_with_anna() -> bytes:
    """A catalogue with one user, made once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(Path(folder) / "c.sqlite3")
        upgrade(engine)
        Users(engine, hasher=FAST).add("anna", PASSWORD)
        engine.dispose()
        return (Path(folder) / "c.sqlite3").read_bytes()


def make_site(folder: Path, *, links: str = "open", public_url: str = "", hours: float = 12, days: int = 30) -> Site:
    """An application with sign-in and one user, anna."""
    clock, spy, audit = Clock(), Spy(), AuditTrail(folder / "audit")
    file = folder / "catalogue.sqlite3"
    if not file.exists():
        file.write_bytes(_catalogue_with_anna())
    users = Users(open_engine(file, pooled=False), clock, FAST)
    day = 86400.0
    made = {OWN: clock.now - day, OTHER: clock.now - day, EXPIRED: clock.now - days * day}
    sign_in_ = SignIn(users, b"k" * 32, made.get, audit.record, link_days=days, clock=clock)
    auth = Auth(method="users", links=links, session_hours=hours)  # type: ignore[arg-type]
    app = create_app(spy, WebOptions(auth=auth, public_url=public_url), sign_in_, results=spy, queries=spy)  # type: ignore[arg-type]
    return Site(app, users, spy, audit, clock, sign_in_)


def form_token(html: str) -> str:
    """The hidden token of the form in a page."""
    found = TOKEN.search(html)
    assert found, html[:2000]
    return found[1]


def sign_in(client: TestClient, name: str = "anna", password: str = PASSWORD, **fields: str) -> Any:
    """Fill in the form and send it."""
    page = client.get("/sign-in", params={"next": fields.get("next", "/v/")})
    assert page.status_code == 200
    data = {"token": form_token(page.text), "name": name, "password": password, "next": "/v/", **fields}
    return client.post("/sign-in", data=data)


def open_link(client: TestClient, token: str) -> Any:
    """Press the button of the page before a link."""
    page = client.get(f"/v/r/{token}")
    assert page.status_code == 401, page.status_code
    return client.post(f"/v/r/{token}", data={"token": form_token(page.text), "next": f"/v/r/{token}"})
