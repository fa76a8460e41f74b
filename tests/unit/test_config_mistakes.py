"""A mistake in the settings is told as the file writes it, with what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicomnode.config import load_settings
from dicomnode.errors import SettingsError

PEER = "[[dicom.peers]]\nname = 'ct1'\nae_title = 'CT1'\n"


def line_of(tmp_path: Path, text: str) -> str:
    file = tmp_path / "node.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix(f"{file}: ")


@pytest.mark.usefixtures("no_settings_from_outside")
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[dicom]\nprot = 1\n", "[dicom] prot: unknown setting (did you mean port?)"),
        ("[dicmo]\nport = 1\n", "[dicmo]: unknown setting (did you mean dicom?)"),
        ("[dicom]\nxyzzy = 1\n", "[dicom] xyzzy: unknown setting"),
        ("[dicom]\nlanguage = 'es'\n", "[dicom] language: unknown setting (it belongs to [node])"),
        ("dicom = 3\n", "[dicom]: is a section (write [dicom] and its settings below)"),
        ("[dicom.peers]\nname = 'a'\n",
         "[dicom] peers: is one table where several are possible (write [[dicom.peers]])"),
        (PEER + "prot = 104\n", '[[dicom.peers]] "ct1": prot: unknown setting (did you mean port?)'),
        (PEER + "port = 0\n", '[[dicom.peers]] "ct1": port: Input should be greater than or equal to 1'),
        (PEER + "[[dicom.peers]]\nae_title = 'B'\n", "[[dicom.peers]] number 2: name: is required"),
        ("[[dicom.peers]]\nname = 'b'\nae_titel = 'B'\n",
         '[[dicom.peers]] "b": ae_titel: unknown setting (did you mean ae_title?)'),
        ("[[dicom.ae_titles]]\ntitle = 'N'\nrole = 'qery'\n",
         "[[dicom.ae_titles]] \"N\": role: Input should be 'index+query', 'query' or 'index'"),
        (PEER + "services = ['echo', 'stor']\n",
         "[[dicom.peers]] \"ct1\": services.2: Input should be 'echo', 'store', 'find', 'move', 'get' or 'similar'"),
        ("[web]\nauth = {method = 'users', sesion_hours = 1}\n",
         "[web] auth.sesion_hours: unknown setting (did you mean session_hours?)"),
    ],
)  # fmt: skip
def test_names_place_and_what_was_meant(tmp_path: Path, text: str, line: str) -> None:
    assert line_of(tmp_path, text) == line


@pytest.mark.usefixtures("no_settings_from_outside")
def test_a_value_is_never_repeated(tmp_path: Path) -> None:
    assert "secret" not in line_of(tmp_path, "[vault]\nkey_command = ['secret']\n")


@pytest.mark.usefixtures("no_settings_from_outside")
class TestTheNodeAsItsOwnPeer:
    OWN = "[[dicom.peers]]\nname = 'self'\nae_title = 'DICOMNODE'\nport = 11112\nhost = '{}'\nresults = {}\n"

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_takes_no_results(self, tmp_path: Path, host: str) -> None:
        line = line_of(tmp_path, self.OWN.format(host, "true"))
        assert line.startswith('[[dicom.peers]] "self": is the node itself')

    @pytest.mark.parametrize(("host", "results"), [("127.0.0.1", "false"), ("192.0.2.7", "true")])
    def test_is_no_mistake_otherwise(self, tmp_path: Path, host: str, results: str) -> None:
        file = tmp_path / "node.toml"
        file.write_text(self.OWN.format(host, results))
        assert load_settings(file).dicom.peers[0].name == "self"


@pytest.mark.usefixtures("no_settings_from_outside")
def test_a_misspelt_variable_of_the_environment_has_its_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOMNODE__DICOM__RECIEVERS", "1")
    with pytest.raises(SettingsError, match=r"DICOMNODE__DICOM__RECIEVERS.*did you mean receivers\?"):
        load_settings()
