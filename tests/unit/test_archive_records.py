"""What the catalogue keeps of an object: read without its pixels, with the age as a band of ten years."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest

from dicomnode.archive.records import age_band, read_record
from dicomnode.errors import InputError
from dicomnode.testing import sample_study, write_study


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("000Y", "0-9"),
        ("009Y", "0-9"),
        ("010Y", "10-19"),
        ("043Y", "40-49"),
        ("089Y", "80-89"),
        ("090Y", "90+"),
        ("117Y", "90+"),
        ("011M", "0-9"),
        ("003W", "0-9"),
        ("120D", "0-9"),
        ("", ""),
        ("43Y", ""),
        ("0x3Y", ""),
        ("043 ", ""),
    ],
)
def test_an_age_is_kept_as_a_band_and_over_89_as_one_group(age, band):
    assert age_band(age) == band


def test_the_record_of_an_object_is_its_header(tmp_path: Path):
    (ds,) = sample_study(1, matrix=32)
    (path,) = write_study([ds], tmp_path)
    record = read_record(path)
    assert (record.uid, record.study_uid, record.patient) == (ds.SOPInstanceUID, ds.StudyInstanceUID, ds.PatientID)
    assert (record.rows, record.columns, record.frames, record.modality) == (32, 32, 1, "CT")
    assert record.bytes == path.stat().st_size


@pytest.mark.parametrize(("value", "kept"), [("M", "M"), ("F", "F"), ("O", "O"), ("Jane", ""), ("m", "")])
def test_of_the_sex_only_the_values_of_the_standard_are_kept(tmp_path: Path, value: str, kept: str):
    assert read_record(write_study(sample_study(1, matrix=32, PatientSex=value), tmp_path)[0]).sex == kept


def test_an_object_may_lack_what_the_standard_lets_it_lack(tmp_path: Path):
    lacking = dict.fromkeys(
        ("PatientAge", "PatientSex", "BodyPartExamined", "SeriesNumber", "InstanceNumber", "Modality", "StudyDate")
    )
    record = read_record(write_study(sample_study(1, matrix=32, **lacking), tmp_path)[0])
    assert (record.age_band, record.sex, record.series_number, record.modality) == ("", "", None, "OT")


def test_a_damaged_file_is_an_input_error_whatever_the_damage(tmp_path: Path):
    (path,) = write_study(sample_study(1, matrix=32), tmp_path)
    whole = path.read_bytes()
    header = len(whole) - 2 * 32 * 32
    dice = random.Random(0)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(300):
            damaged = bytearray(whole[: dice.randrange(header)] if n % 2 else whole)
            for _ in range(3):
                damaged[dice.randrange(min(132, len(damaged) - 1), min(header, len(damaged)))] = dice.randrange(256)
            path.write_bytes(damaged)
            try:
                read_record(path)
            except InputError as exc:
                refused += 1
                assert "PHANTOM" not in str(exc)
    assert refused > 100
