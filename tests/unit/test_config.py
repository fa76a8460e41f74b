"""Settings: one registry, from which file and page are written; a mistake stops the start and is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dicomnode.config import DEID_OPTIONS, AETitle, Peer, load_settings
from dicomnode.config.pages import as_markdown, as_toml
from dicomnode.domain import Role
from dicomnode.errors import SettingsError

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


@pytest.mark.usefixtures("no_settings_from_outside")
class TestSettings:
    def test_the_defaults_are_those_of_the_contract(self) -> None:
        s = load_settings()
        assert (s.dicom.port, s.dicom.receivers, s.dicom.study_quiet_s, s.dicom.max_associations) == (11112, 2, 10, 64)
        assert (s.dicom.ae_titles[0].title, s.dicom.ae_titles[0].role) == ("DICOMNODE", Role.INDEX_QUERY)
        assert (s.web.host, s.web.port, s.report.objects, s.retrieval.k) == ("127.0.0.1", 8080, ("sr",), 10)
        assert len(DEID_OPTIONS) == 12

    def test_the_commented_file_is_written_from_the_registry_and_is_the_defaults(self, tmp_path: Path) -> None:
        assert (ROOT / "config" / "dicomnode.toml").read_text("utf-8") == as_toml()
        assert load_settings(ROOT / "config" / "dicomnode.toml") == load_settings()
        uncommented = "\n".join(
            line[2:] if line.startswith("# ") and (" = " in line or line.startswith("# [[")) else line
            for line in as_toml().splitlines()
        )
        assert load_settings(write(tmp_path, uncommented)) == load_settings()

    def test_the_settings_page_is_written_from_the_registry(self) -> None:
        assert (ROOT / "docs" / "settings.md").read_text("utf-8") == as_markdown()

    def test_both_pages_tell_what_a_peer_has_where_it_says_no_more_than_it_must(self, tmp_path: Path) -> None:
        text = "[[dicom.peers]]\nname = 'a'\nae_title = 'A'\n"
        (peer,) = load_settings(write(tmp_path, text)).dicom.peers
        rows = dict(re.findall(r"^\| `\[\[peers\]\] (\w+)` \| `?(.+?)`? \|", as_markdown(), re.MULTILINE))
        assert (rows.pop("name"), rows.pop("ae_title")) == ("required", "required")
        assert {k: json.loads(v) for k, v in rows.items()} == peer.model_dump(mode="json", exclude={"name", "ae_title"})
        (example,) = load_settings().dicom.peers
        block = as_toml().split("# [[dicom.peers]]\n")[1].split("\n\n")[0].splitlines()
        lines = dict(line.removeprefix("# ").split(" = ", 1) for line in block)
        assert {k for k, v in lines.items() if "# Required. " in v} == {"name", "ae_title"}
        for key in rows:
            value, shown = json.dumps(peer.model_dump(mode="json")[key]), lines[key]
            assert shown.endswith(f" Default: {value}.") or shown.startswith(f"{value}  # "), key
        assert (example.port, peer.port, example.results, peer.results) == (11113, 104, True, False)
        assert "port = 11113, results = true`" in as_markdown()

    @pytest.mark.parametrize(("table", "model"), [("peers", Peer), ("ae_titles", AETitle)])
    def test_what_is_called_required_is_refused_where_it_is_missing(
        self, tmp_path: Path, table: str, model: type[Peer] | type[AETitle]
    ) -> None:
        required = re.findall(rf"^\| `\[\[{table}\]\] (\w+)` \| required \|", as_markdown(), re.MULTILINE)
        assert required == [k for k, f in model.model_fields.items() if f.is_required()]
        for missing in required:
            given = "".join(f"{k} = 'X'\n" for k in required if k != missing)
            with pytest.raises(SettingsError, match=missing):
                load_settings(write(tmp_path, f"[[dicom.{table}]]\n{given}"))

    def test_the_environment_wins_over_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = write(tmp_path, "[dicom]\nport = 1040\nreceivers = 3\n")
        monkeypatch.setenv("DICOMNODE__DICOM__PORT", "2040")
        s = load_settings(file)
        assert (s.dicom.port, s.dicom.receivers) == (2040, 3)

    def test_lists_come_from_the_environment_as_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DICOMNODE__DICOM__PEERS", '[{"name": "a", "ae_title": "A", "port": 104, "results": true}]')
        assert load_settings().dicom.peers[0].ae_title == "A"

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("[dicom]\nprot = 1\n", "[dicom] prot"),
            ("[nonsense]\na = 1\n", "[nonsense]"),
            ("[dicom]\nport = 'x'\n", "[dicom] port"),
            ("[web]\nhost = '0.0.0.0'\n", "[web]"),
            ("[web]\nhost = '0.0.0.0'\nauth = {method = 'users'}\n", "public_url"),
            ("[web]\nauth = {method = 'users', sesion_hours = 1}\n", "[web] auth.sesion_hours"),
            ("[web]\nauth = {method = 'ldap'}\n", "[web] auth.method"),
            ("[web]\nauth = {links = 'open'}\n", "[web] auth"),
            ("[web]\nauth = {method = 'users', links = 'everybody'}\n", "[web] auth.links"),
            ("[web]\nauth = {method = 'users', session_hours = 0}\n", "[web] auth.session_hours"),
            ("[web]\nauth = 'users'\n", "[web] auth"),
            ("[deid]\noptions = ['clean-everything']\n", "clean-everything"),
            (
                "[deid]\noptions = ['retain-longitudinal-full-dates', 'retain-longitudinal-modified-dates']\n",
                "contradict",
            ),
            ("[vault]\nkey_file = 'a'\nkey_env = 'B'\n", "key_file and key_env"),
            ("[vault]\nkey_env = 'NOT_THERE'\n", "NOT_THERE"),
            ("[dicom]\ntls = {cert = '/no/such.pem', key = '/no/such.key'}\n", "/no/such.pem"),
            ("[[dicom.peers]]\nname = 'a'\nae_title = 'A'\n[[dicom.peers]]\nname = 'a'\nae_title = 'B'\n", "twice"),
            ("not toml", "not valid TOML"),
        ],
    )
    def test_a_mistake_is_one_line_that_names_it(self, tmp_path: Path, text: str, named: str) -> None:
        with pytest.raises(SettingsError) as caught:
            load_settings(write(tmp_path, text))
        assert named in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_an_unknown_variable_in_the_environment_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DICOMNODE__DICOM__PROT", "1")
        with pytest.raises(SettingsError, match="DICOMNODE__DICOM__PROT"):
            load_settings()

    def test_a_missing_settings_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"absent\.toml"):
            load_settings(tmp_path / "absent.toml")

    def test_secrets_are_masked(self, tmp_path: Path) -> None:
        s = load_settings(write(tmp_path, "[database]\nurl = 'postgresql://u:secret@h/db'\n"))
        assert "secret" not in str(s.masked())


@pytest.mark.usefixtures("no_settings_from_outside")
class TestSignIn:
    def test_is_off_where_nothing_is_said_and_where_the_table_is_empty(self, tmp_path: Path) -> None:
        assert load_settings(write(tmp_path, "[web]\nauth = {}\n")).web.auth.method == ""
        assert load_settings(write(tmp_path, "")).web.auth.method == ""

    def test_lets_the_node_listen_on_a_network_under_a_public_name(self, tmp_path: Path) -> None:
        text = "[web]\nhost = '0.0.0.0'\npublic_url = 'https://cases.hospital.example'\nauth = {method = 'users'}\n"
        web = load_settings(write(tmp_path, text)).web
        assert (web.auth.method, web.auth.links, web.auth.session_hours) == ("users", "sign-in", 12)

    def test_can_be_set_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DICOMNODE__WEB__AUTH", '{"method": "users", "links": "open"}')
        assert load_settings().web.auth.links == "open"

    def test_holds_no_secret_and_is_shown_whole(self, tmp_path: Path) -> None:
        shown = load_settings(write(tmp_path, "[web]\nauth = {method = 'users'}\n")).masked()
        assert shown["web"]["auth"] == {"method": "users", "links": "sign-in", "session_hours": 12}
