"""At log level debug nothing that a file says is in what the commands log or print on standard error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import planted
import pytest

from dicomnode.testing import free_port, sample_study, write_study

NAME, PATIENT_ID, ACCESSION = "Íñiguez^Ñandú", "HOSPITAL-4711-0815", "ACC-2024-998877"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with a marker in every attribute, whole, damaged and refused, and a node at log level debug."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "in").mkdir()
    whole = planted.plant(folder / "in" / "planted.dcm").path.read_bytes()
    (folder / "in" / "cut.dcm").write_bytes(whole[: len(whole) // 3])
    for n in range(5):
        broken = bytearray(whole)
        at = 400 + n * (len(whole) // 7)
        broken[at : at + 8] = b"\xff" * 8
        (folder / "in" / f"broken-{n}.dcm").write_bytes(broken)
    more = {"patient_id": PATIENT_ID, "name": NAME, "AccessionNumber": ACCESSION}
    write_study(sample_study(2, matrix=64, **more), folder / "study")
    write_study(sample_study(1, matrix=64, seed=3, BurnedInAnnotation="YES", **more), folder / "study" / "held")
    (folder / "node.toml").write_text(
        f'[node]\ndata_dir = {json.dumps(str(folder / "var"))}\nlog_level = "debug"\n'
        f"[dicom]\nport = {free_port()}\npeers = []\n[web]\nport = {free_port()}\n"
    )
    return folder


def command(folder: Path, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dicomnode.cli", *map(str, words), "--config", str(folder / "node.toml")],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )


def test_no_identifier_is_logged_at_debug(folder: Path) -> None:
    said = []
    for words in (
        ("deid", folder / "in", folder / "study", "--out", folder / "out", "--report-paths", "hashed"),
        ("index", "add", folder / "study"),
        ("query", folder / "study" / "000001.dcm"),
    ):
        done = command(folder, *words)
        assert "Traceback" not in done.stderr
        said += [done.stdout, done.stderr]
    id_given = ("--patient-id", "-")
    merged = command(folder, "vault", "merge", *id_given, "--other-id", "-", stdin=f"{PATIENT_ID}\n{ACCESSION}\n")
    assert merged.returncode == 0, merged.stderr
    pseudonym = merged.stdout.split()[0]
    told = command(folder, "reidentify", pseudonym, "--reason", "test")
    assert told.stdout == f"\t{PATIENT_ID}\n\t{ACCESSION}\n"
    gone = command(folder, "index", "remove", *id_given, stdin=f"{PATIENT_ID}\n")
    assert gone.returncode == 0, gone.stderr
    unknown = command(folder, "index", "exclude", *id_given, stdin=f"{PATIENT_ID}\n")
    assert unknown.returncode == 1
    said += [merged.stdout, merged.stderr, told.stderr, gone.stdout, gone.stderr, unknown.stdout, unknown.stderr]
    text = "\n".join(said)
    assert '"level":' in text  # it does log
    original = sample_study(1, matrix=64, patient_id=PATIENT_ID)[0]
    needles = [planted.WORD, planted.DATE, planted.UID_ROOT, PATIENT_ID, "Íñiguez", "Ñandú", ACCESSION]
    needles += [str(original.StudyInstanceUID), str(original.SOPInstanceUID)]
    assert [needle for needle in needles if needle in text] == []
