"""Users of the web side and their sessions, in the catalogue: restarts and several web processes agree on them.

Passwords are kept as argon2id hashes (RFC 9106, the library's defaults), cookies as SHA-256: neither can be read back.
Never tells which of name and password was wrong, and takes the same time for both.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Engine

from dicomnode.archive import schema as t
from dicomnode.errors import NotFound, UsageError

MIN_PASSWORD = 12  # characters; no rules on their kinds (NIST SP 800-63B 5.1.1.2)
MAX_PASSWORD = 1024  # characters; a longer one only costs time
LONGEST_S = 7 * 86400.0  # a session ends then, however much it is used
TOUCH_S = 60.0  # a session's use is written down at most so often
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_RESERVED = frozenset({"local", "link", "unknown", "web"})  # what the audit trail calls those without a name


@dataclass(frozen=True, slots=True)
class User:
    """A user; ``created`` in seconds since the epoch."""

    name: str
    admin: bool
    disabled: bool
    created: float


@dataclass(frozen=True, slots=True)
class Session:
    """A session that is valid now.

    Attributes
    ----------
    user : str or None
        Name of the user; None: the holder of a link.
    admin : bool
    scope : str or None
        The one result that is opened; None: what the user may read.
    csrf : str
        Secret that requests which change something must carry.
    """

    user: str | None
    admin: bool
    scope: str | None
    csrf: str


def key_of(cookie: str) -> str:
    """What is stored of a cookie's value: its hex SHA-256 (128 random bits or more need no slow hash)."""
    return hashlib.sha256(cookie.encode("utf-8", "replace")).hexdigest()


class Users:
    """Users, and who is signed in.

    Parameters
    ----------
    engine : Engine
        Of the catalogue.
    clock : callable
        Seconds since the epoch.
    hasher : PasswordHasher, optional
        With other costs than the library's.
    """

    def __init__(
        self, engine: Engine, clock: Callable[[], float] = time.time, hasher: PasswordHasher | None = None
    ) -> None:
        self._engine = engine
        self._reading = engine.execution_options(read_only=True)
        self._clock = clock
        self._hasher = hasher or PasswordHasher()

    @cached_property
    def _nobody(self) -> str:
        """A hash to check the password of an unknown user against, so that it takes as long."""
        return self._hasher.hash(secrets.token_hex(16))

    def warm(self) -> None:
        """Make what the first unknown name would wait for, and so be told by."""
        _ = self._nobody

    def add(self, name: str, password: str, *, admin: bool = False) -> bool:
        """Add a user, or a disabled one again; returns whether the name was there before.

        Raises
        ------
        UsageError
            A name or password that cannot be taken, or a user who is there.
        """
        name = checked_name(name)
        values = {"hash": self._hash(password), "admin": admin, "disabled": False, "created": self._clock()}
        with self._engine.begin() as db:
            row = db.execute(sa.select(t.users.c.disabled).where(t.users.c.name == name)).first()
            if row is None:
                db.execute(t.users.insert().values(name=name, **values))
            elif row.disabled:
                db.execute(t.users.update().where(t.users.c.name == name).values(**values))
            else:
                raise UsageError(
                    "there is such a user already",
                    place=f"user {name}",
                    advice=f"dicomnode user password {name} sets another password",
                )
        return row is not None

    def set_password(self, name: str, password: str) -> None:
        """Set another password and end the user's sessions.

        Raises
        ------
        NotFound
            There is no such user.
        UsageError
            A password that cannot be taken.
        """
        self._change(_folded(name), hash=self._hash(password))

    def disable(self, name: str) -> None:
        """Keep a user from signing in and end the sessions.

        Raises
        ------
        NotFound
            There is no such user.
        """
        self._change(_folded(name), disabled=True)

    def _change(self, name: str, **values: object) -> None:
        with self._engine.begin() as db:
            user = db.execute(sa.select(t.users.c.id).where(t.users.c.name == name)).scalar()
            if user is None:
                raise NotFound("there is no such user", place=f"user {name}", advice="dicomnode user list")
            db.execute(t.users.update().where(t.users.c.id == user).values(**values))
            db.execute(t.sessions.delete().where(t.sessions.c.user_id == user))

    def all(self) -> list[User]:
        """Every user by name."""
        with self._reading.connect() as db:
            rows = db.execute(sa.select(t.users).order_by(t.users.c.name))
            return [User(r.name, r.admin, r.disabled, r.created) for r in rows]

    def none_yet(self) -> bool:
        """Whether nobody could sign in."""
        query = sa.select(t.users.c.id).where(t.users.c.disabled.is_(False)).limit(1)
        with self._reading.connect() as db:
            return db.execute(query).first() is None

    def knows(self, name: str) -> bool:
        """Whether there is such a user, disabled or not."""
        with self._reading.connect() as db:
            return db.execute(sa.select(t.users.c.id).where(t.users.c.name == _folded(name))).first() is not None

    def check(self, name: str, password: str) -> User | None:
        """The user with this password; None for a wrong password, an unknown or a disabled user, in the same time."""
        with self._reading.connect() as db:
            row = db.execute(sa.select(t.users).where(t.users.c.name == _folded(name))).first()
        stored = self._nobody if row is None else row.hash
        password = _normal(password)[:MAX_PASSWORD]
        if not self._matches(stored, password) or row is None or row.disabled:
            return None
        if self._hasher.check_needs_rehash(stored):
            with self._engine.begin() as db:
                same = (t.users.c.id == row.id) & (t.users.c.hash == stored)
                db.execute(t.users.update().where(same).values(hash=self._hasher.hash(password)))
        return User(row.name, row.admin, row.disabled, row.created)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    def begin(self, cookie: str, *, user: str | None, scope: str | None, until: float | None = None) -> None:
        """Begin a session, and clear away those that have ended.

        Parameters
        ----------
        cookie : str
            The value that the browser will hold; 128 random bits or more.
        user : str or None
            Who signed in; None with ``scope`` for the holder of a link.
        scope : str or None
            The one result that is opened.
        until : float, optional
            Seconds since the epoch when the link ends; else seven days from now.

        Raises
        ------
        NotFound
            The user is not there, or was disabled meanwhile.
        """
        if (user is None) == (scope is None):
            raise UsageError("a session is a user's, or of one link")
        now = self._clock()
        with self._engine.begin() as db:
            user_id = None
            if user is not None:
                can = (t.users.c.name == user) & t.users.c.disabled.is_(False)
                user_id = db.execute(sa.select(t.users.c.id).where(can)).scalar()
                if user_id is None:
                    raise NotFound("there is no such user", place=f"user {user}")
            db.execute(t.sessions.delete().where(t.sessions.c.expires < now))
            db.execute(
                t.sessions.insert().values(
                    key=key_of(cookie),
                    user_id=user_id,
                    scope=scope,
                    csrf=secrets.token_urlsafe(32),
                    created=now,
                    last_used=now,
                    expires=now + LONGEST_S if until is None else min(until, now + LONGEST_S),
                )
            )

    def session(self, cookie: str, idle_s: float, *, use: bool = True) -> Session | None:
        """The session of a cookie; None where there is none, it has ended, or its user was disabled.

        Parameters
        ----------
        cookie : str
            The value that the browser sent.
        idle_s : float
            Seconds without use after which a session ends.
        use : bool
            Whether this counts as use.
        """
        key, now = key_of(cookie), self._clock()
        query = (
            sa.select(t.sessions, t.users.c.name, t.users.c.admin, t.users.c.disabled)
            .join(t.users, t.sessions.c.user_id == t.users.c.id, isouter=True)
            .where(t.sessions.c.key == key)
        )
        with self._reading.connect() as db:
            row = db.execute(query).first()
        if row is None or now >= row.expires or now - row.last_used >= idle_s:
            return None
        if row.scope is None and (row.name is None or row.disabled):
            return None
        if use and now - row.last_used > TOUCH_S:
            with self._engine.begin() as db:
                db.execute(t.sessions.update().where(t.sessions.c.key == key).values(last_used=now))
        return Session(row.name, bool(row.admin), row.scope, row.csrf)

    def end(self, cookie: str) -> None:
        """End a session; nothing happens where there is none."""
        with self._engine.begin() as db:
            db.execute(t.sessions.delete().where(t.sessions.c.key == key_of(cookie)))

    def last_used(self, cookies: list[str]) -> dict[str, float]:
        """When each of these cookies was last used; those without a session are left out."""
        keys = {key_of(c): c for c in cookies}
        query = sa.select(t.sessions.c.key, t.sessions.c.last_used).where(t.sessions.c.key.in_(keys))
        with self._reading.connect() as db:
            return {keys[row.key]: row.last_used for row in db.execute(query)}

    def _hash(self, password: str) -> str:
        return self._hasher.hash(checked_password(password))


def _folded(name: str) -> str:
    return name.strip().lower()


def checked_name(name: str) -> str:
    """A name as it is stored.

    Raises
    ------
    UsageError
        It cannot be one.
    """
    folded = _folded(name)
    if not _NAME.fullmatch(folded) or folded in _RESERVED:
        raise UsageError(
            "a user's name is up to 64 letters, digits and . _ @ -, and begins with a letter or digit", place="user"
        )
    return folded


def checked_password(password: str) -> str:
    """A password as it is hashed.

    Raises
    ------
    UsageError
        It is too short, or endless.
    """
    password = _normal(password)
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise UsageError(f"a password has at least {MIN_PASSWORD} characters", place="password")
    return password


def _normal(password: str) -> str:
    """One form of a password, whatever the keyboard made of its accents (NIST SP 800-63B 5.1.1.2: NFKC)."""
    return unicodedata.normalize("NFKC", password)
