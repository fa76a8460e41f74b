"""Some of pydicom's own files through ``dicomnode deid``; ``tests.soak files`` has them all."""

from __future__ import annotations

from pathlib import Path

import corpora
import pytest
from pydicom.data import get_testdata_file

SAMPLE = {
    "CT_small.dcm": "ok", "MR_small.dcm": "ok", "MR_small_bigendian.dcm": "ok", "MR_small_implicit.dcm": "ok",
    "MR_small_RLE.dcm": "ok", "MR_small_jpeg_ls_lossless.dcm": "ok", "MR_small_jp2klossless.dcm": "ok",
    "MR_small_padded.dcm": "ok", "emri_small.dcm": "ok", "rtdose.dcm": "ok", "liver_1frame.dcm": "ok",
    "image_dfl.dcm": "ok", "badVR.dcm": "unsupported", "MR_truncated.dcm": "truncated",
    "rtplan.dcm": "not-image", "no_meta.dcm": "not-dicom", "UN_sequence.dcm": "missing-uid",
    "JPGLosslessP14SV1_1s_1f_8b.dcm": "ok", "ExplVR_BigEndNoMeta.dcm": "not-dicom",
    "empty_charset_LEI.dcm": "missing-uid",
}  # fmt: skip


@pytest.mark.timeout(1800)  # text is looked for in many images
def test_each_passes_with_its_pixels_or_says_why_not(node, tmp_path):
    found = {}
    for name in SAMPLE:  # each into a folder of its own: some are one object in several encodings
        ((row, original),) = corpora.deidentified_pairs(node, [Path(get_testdata_file(name))], tmp_path / name)
        corpora.assert_settled(row, original)
        found[name] = row.reason.split(":")[0] or row.status
    assert found == SAMPLE
