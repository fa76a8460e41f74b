"""Users and their sessions: what is stored can not be read back, and ends when it should."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from alembic import command
from archive_samples import STUDY, an_answer, record
from argon2 import PasswordHasher

from dicomnode.archive.answers import Answers
from dicomnode.archive.database import open_engine
from dicomnode.archive.migrate import _config, upgrade
from dicomnode.archive.users import LONGEST_S, TOUCH_S, Users, key_of
from dicomnode.domain import Pseudonym, PseudoUid, Role
from dicomnode.errors import NotFound, UsageError

PASSWORD = "correct horse battery"
COOKIE = "c" * 43
HOUR = 3600.0
FAST = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def users(engine, clock):
    return Users(engine, clock, FAST)


def row(engine, table="users"):
    with engine.connect() as db:
        return db.execute(sa.text(f"SELECT * FROM {table}")).one()


def test_a_user_signs_in_with_the_password_alone_and_capitals_of_the_name_make_no_difference(users):
    assert users.add("Anna", PASSWORD, admin=True) is False
    found = users.check(" ANNA ", PASSWORD)
    assert (found.name, found.admin) == ("anna", True)
    assert users.check("anna", PASSWORD + " ") is None
    assert users.check("anna", "") is None
    assert users.check("bert", PASSWORD) is None


def test_the_password_is_stored_as_argon2id_and_no_two_hashes_are_alike(engine):
    users = Users(engine)
    users.add("anna", PASSWORD)
    first = row(engine).hash
    assert first.startswith("$argon2id$v=19$m=65536,t=3,p=4$")  # RFC 9106 section 4, second recommended option
    assert PASSWORD not in first
    users.set_password("anna", PASSWORD)
    assert row(engine).hash != first


def test_a_weaker_hash_of_an_earlier_time_is_renewed_at_sign_in(engine):
    Users(engine, hasher=FAST).add("anna", PASSWORD)
    users, weak = Users(engine), row(engine).hash
    assert users.check("anna", "wrong password!") is None
    assert row(engine).hash == weak
    assert users.check("anna", PASSWORD) is not None
    assert row(engine).hash != weak
    assert users.check("anna", PASSWORD) is not None


def test_a_hash_that_is_none_lets_nobody_in(users, engine):
    users.add("anna", PASSWORD)
    with engine.begin() as db:
        db.execute(sa.text("UPDATE users SET hash = ''"))
    assert users.check("anna", "") is None
    assert users.check("anna", PASSWORD) is None


def test_an_unknown_user_costs_as_much_as_a_wrong_password(users, monkeypatch):
    checked = []
    users.add("anna", PASSWORD)
    users.check("nobody", PASSWORD)  # makes the hash that unknown users are checked against
    real = PasswordHasher.verify
    monkeypatch.setattr(PasswordHasher, "verify", lambda *a: checked.append(a[1][:30]) or real(*a))
    users.check("anna", "wrong password!")
    users.check("nobody", "wrong password!")
    users.disable("anna")
    users.check("anna", PASSWORD)
    assert len(checked) == 3
    assert checked[0] == checked[2]
    assert checked[0].split("$")[:4] == checked[1].split("$")[:4]  # the same algorithm and costs


@pytest.mark.parametrize("password", ["", "elevencha 1", "x" * 1025])
def test_a_password_too_short_or_endless_is_refused(users, password):
    with pytest.raises(UsageError, match="12 characters"):
        users.add("anna", password)
    assert users.all() == []


def test_twelve_characters_of_any_kind_are_enough_and_accents_are_one_however_they_are_typed(users):
    users.add("anna", "aaaaaaaaaaaa")
    users.add("jose", "contraseña única")
    assert users.check("jose", "contrasen\u0303a u\u0301nica") is not None


@pytest.mark.parametrize(
    "name", ["", " ", "-anna", "an na", "anna/../x", "ánna", "a" * 65, "a\nb", "<script>", "link", "Local"]
)
def test_a_name_that_could_be_taken_for_something_else_is_refused(users, name):
    with pytest.raises(UsageError):
        users.add(name, PASSWORD)


def test_a_user_is_added_once_and_again_only_after_being_disabled(users):
    users.add("anna", PASSWORD, admin=True)
    with pytest.raises(UsageError, match="already"):
        users.add("ANNA", "another password")
    assert users.check("anna", PASSWORD) is not None
    users.disable("anna")
    assert users.none_yet()
    assert users.add("anna", "another password") is True
    assert users.check("anna", PASSWORD) is None
    assert users.check("anna", "another password").admin is False


def test_a_disabled_user_cannot_sign_in_and_loses_the_sessions(users):
    users.add("anna", PASSWORD)
    users.begin(COOKIE, user="anna", scope=None)
    assert users.session(COOKIE, HOUR).user == "anna"
    users.disable("anna")
    assert users.session(COOKIE, HOUR) is None
    assert users.check("anna", PASSWORD) is None
    with pytest.raises(NotFound):
        users.begin("other" * 9, user="anna", scope=None)
    assert [u.disabled for u in users.all()] == [True]


def test_another_password_ends_the_sessions(users):
    users.add("anna", PASSWORD)
    users.begin(COOKIE, user="anna", scope=None)
    users.set_password("anna", "another password")
    assert users.session(COOKIE, HOUR) is None


@pytest.mark.parametrize("change", [lambda u: u.disable("nobody"), lambda u: u.set_password("nobody", PASSWORD)])
def test_a_user_who_is_not_there_is_named(users, change):
    with pytest.raises(NotFound, match="no such user"):
        change(users)


def test_the_database_holds_no_cookie_only_its_hash(users, engine):
    users.add("anna", PASSWORD)
    users.begin(COOKIE, user="anna", scope=None)
    assert COOKIE not in str(tuple(row(engine, "sessions")))
    assert row(engine, "sessions").key == key_of(COOKIE)
    assert users.session(key_of(COOKIE), HOUR) is None  # what is stored opens nothing


def test_a_session_ends_when_it_is_not_used_and_lasts_while_it_is(users, clock):
    users.add("anna", PASSWORD)
    users.begin(COOKIE, user="anna", scope=None)
    for _ in range(5):
        clock.now += HOUR - 1
        assert users.session(COOKIE, HOUR) is not None
    clock.now += HOUR
    assert users.session(COOKIE, HOUR) is None


def test_a_session_ends_after_a_week_however_much_it_is_used(users, clock):
    users.add("anna", PASSWORD)
    users.begin(COOKIE, user="anna", scope=None)
    begun = clock.now
    while clock.now - begun < LONGEST_S - HOUR:
        clock.now += HOUR / 2
        assert users.session(COOKIE, HOUR) is not None
    clock.now = begun + LONGEST_S
    assert users.session(COOKIE, HOUR) is None


def test_the_use_of_a_session_is_written_at_most_once_a_minute(users, clock, engine):
    users.add("anna", PASSWORD)
    users.begin(COOKIE, user="anna", scope=None)
    clock.now += TOUCH_S - 1
    users.session(COOKIE, HOUR)
    assert row(engine, "sessions").last_used == row(engine, "sessions").created
    clock.now += 2
    users.session(COOKIE, HOUR)
    assert row(engine, "sessions").last_used == clock.now


def test_the_session_of_a_link_ends_with_the_link_and_opens_its_one_result(users, clock):
    users.begin(COOKIE, user=None, scope="a" * 32, until=clock.now + 100)
    found = users.session(COOKIE, HOUR)
    assert (found.user, found.admin, found.scope) == (None, False, "a" * 32)
    clock.now += 100
    assert users.session(COOKIE, HOUR) is None


@pytest.mark.parametrize(("user", "scope"), [(None, None), ("anna", "a" * 32)])
def test_a_session_is_a_users_or_of_a_link_never_both_or_neither(users, user, scope):
    users.add("anna", PASSWORD)
    with pytest.raises(UsageError):
        users.begin(COOKIE, user=user, scope=scope)


def test_signing_out_ends_the_one_session_and_ended_ones_are_cleared_away(users, clock, engine):
    users.add("anna", PASSWORD)
    users.begin(COOKIE, user="anna", scope=None)
    users.begin("d" * 43, user="anna", scope=None)
    users.end(COOKIE)
    assert users.session(COOKIE, HOUR) is None
    assert users.session("d" * 43, HOUR) is not None
    clock.now += LONGEST_S + 1
    users.begin("e" * 43, user="anna", scope=None)
    assert row(engine, "sessions").key == key_of("e" * 43)


def test_other_processes_see_a_session_at_once_and_restarts_keep_it(users, tmp_path):
    users.add("anna", PASSWORD)
    other = Users(open_engine(tmp_path / "catalogue.sqlite3"), users._clock)
    users.begin(COOKIE, user="anna", scope=None)
    assert other.session(COOKIE, HOUR).csrf == users.session(COOKIE, HOUR).csrf
    other.disable("anna")
    assert users.session(COOKIE, HOUR) is None


def test_sessions_may_begin_and_be_read_by_many_at_once(users):
    users.add("anna", PASSWORD)
    failures = []

    def one(n):
        try:
            for m in range(5):
                cookie = f"{n}-{m}".ljust(43, "x")
                users.begin(cookie, user="anna", scope=None)
                assert users.session(cookie, HOUR).user == "anna"
                if m % 2:
                    users.end(cookie)
                    assert users.session(cookie, HOUR) is None
        except Exception as exc:  # noqa: BLE001 - told by the assertion below
            failures.append(exc)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


class TestUpgrade:
    """From the first tables to those with users."""

    @pytest.fixture
    def first(self, tmp_path):
        engine = open_engine(tmp_path / "old.sqlite3")
        with engine.begin() as connection:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "0001")
        return engine

    def fill(self, engine):
        answer = {"study_uid": STUDY, "set_hash": "h", "instances": "[]", "model_id": "m", "role": "query"}
        with engine.begin() as db:
            db.execute(sa.text("INSERT INTO patients VALUES (1, 'DN-A', 'F', 0, 1.0)"))
            db.execute(
                sa.text(
                    "INSERT INTO studies (id, uid, patient_id, modality, source, status, created)"
                    f" VALUES (1, '{STUDY}', 1, 'CT', 'received', 'unknown', 1.0)"
                )
            )
            for n, study in enumerate((STUDY, "2.25.999"), start=1):
                db.execute(
                    sa.text(
                        "INSERT INTO answers (id, token, study_uid, set_hash, instances, model_id, role, accession,"
                        " instance_number, body, created) VALUES (:id, :token, :study_uid, :set_hash, :instances,"
                        " :model_id, :role, '', 1, :body, 1.0)"
                    ),
                    {**answer, "id": n, "token": str(n) * 32, "study_uid": study, "body": "{}"},
                )
            db.execute(
                sa.text(
                    "INSERT INTO result_slices (id, answer_id, instance_uid, frame, path, vector)"
                    " VALUES (1, 1, '2.25.5', 0, 'p', x'00')"
                )
            )

    def test_keeps_the_rows_and_learns_whose_study_was_answered_where_it_is_known(self, first):
        self.fill(first)
        upgrade(first)
        with first.connect() as db:
            rows = db.execute(sa.text("SELECT id, token, patient FROM answers ORDER BY id")).all()
            assert [tuple(r) for r in rows] == [(1, "1" * 32, "DN-A"), (2, "2" * 32, None)]
            assert db.execute(sa.text("SELECT count(*) FROM result_slices")).scalar_one() == 1
            assert db.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "0003"
            assert db.execute(sa.text("PRAGMA foreign_key_check")).all() == []

    def test_then_takes_users(self, first):
        upgrade(first)
        users = Users(first)
        users.add("anna", PASSWORD)
        assert users.check("anna", PASSWORD) is not None


def test_an_answer_remembers_whose_study_it_is_about(engine):
    answers = Answers(engine)
    patient = Pseudonym(record().patient)
    known = answers.add(STUDY, [PseudoUid("2.25.1")], an_answer(), role=Role.QUERY, patient=patient)
    unknown = answers.add(STUDY, [PseudoUid("2.25.2")], an_answer(), role=Role.QUERY)
    assert answers.by_token(known.token).patient == patient
    assert answers.by_id(unknown.id).patient is None
    assert answers.created_of(known.token) == known.created
    assert answers.created_of("0" * 32) is None
