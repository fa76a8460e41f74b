"""Any Structured Report as lines of text, also one made elsewhere or damaged."""

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicomnode.errors import InputError
from dicomnode.report.tree import sr_tree


def item(kind: str, concept: str = "", **values: object) -> Dataset:
    ds = Dataset()
    ds.ValueType = kind
    if concept:
        name = Dataset()
        name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "1", "99T", concept
        ds.ConceptNameCodeSequence = [name]
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def test_a_report_of_another_system_reads_as_a_tree() -> None:
    lines = sr_tree(pydicom.dcmread(get_testdata_file("test-SR.dcm")))
    assert lines[0] == "Diagnosis"
    assert "    Diameter: 3 cm" in lines
    assert "      Code: Sample Code 1 (99_OFFIS_DCMTK 2222)" in lines
    assert "    SCoord Code: CIRCLE [0.0, 0.0, 255.0, 255.0]" in lines
    assert "      see item [1, 3, 2]" in lines
    assert "  image: CT Image Storage 1.2.3.4.5.0 frame [5, 2]" in lines


def test_what_is_missing_shows_as_a_question_mark() -> None:
    root = item("CONTAINER", "Report")
    root.ContentSequence = Sequence(
        [item("TEXT", "Note"), item("NUM", "Size"), item("CODE"), item("IMAGE"), item("HOLOGRAM", "Odd"), Dataset()]
    )
    assert sr_tree(root) == [
        "Report",
        "  Note: ?",
        "  Size: ?",
        "  code: ?",
        "  image: ?",
        "  Odd: ?",
        "  ?: ?",
    ]


def test_text_cannot_steer_the_terminal() -> None:
    (line,) = sr_tree(item("TEXT", "Note", TextValue="red \x1b[31m\nand more"))
    assert line == "Note: red [31m and more"


def test_a_very_long_text_is_shortened() -> None:
    (line,) = sr_tree(item("TEXT", "Note", TextValue="x" * 5000))
    assert line.endswith("...")
    assert len(line) < 500


def test_an_image_is_no_report() -> None:
    with pytest.raises(InputError, match="not a Structured Report"):
        sr_tree(pydicom.dcmread(get_testdata_file("CT_small.dcm")))
