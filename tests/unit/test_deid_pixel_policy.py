"""Which pixels are examined, where known devices write, and the geometry of rectangles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicomnode.deid import device_rules, pixel_policy
from dicomnode.deid.pixel_policy import PixelPolicy
from dicomnode.deid.rectangles import Rectangle, outside, without_covered
from dicomnode.errors import QuarantineError

CT, CR, SC, US, XA = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "1", "7", "6.1", "12.1"))
ACQUIRED, DERIVED = ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "MPR"]


def header(**values: Any) -> Dataset:
    ds = Dataset()
    ds.SOPInstanceUID = "1.2.3.4"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize(
    ("values", "looked_at"),
    [
        ({"Modality": "CT", "SOPClassUID": CT, "ImageType": ACQUIRED}, False),
        ({"Modality": "MR", "SOPClassUID": CT, "ImageType": ACQUIRED}, False),
        ({"Modality": "NM", "SOPClassUID": CT, "ImageType": ["ORIGINAL", "PRIMARY"]}, False),
        ({"Modality": "SEG", "SOPClassUID": CT, "ImageType": DERIVED}, False),
        ({"Modality": "CT", "SOPClassUID": CT, "ImageType": ACQUIRED, "BurnedInAnnotation": "YES"}, True),
        ({"Modality": "CT", "SOPClassUID": CT, "ImageType": ["ORIGINAL", "SECONDARY", "SCREEN SAVE"]}, True),
        ({"Modality": "CT", "SOPClassUID": CT, "ImageType": DERIVED}, True),
        ({"Modality": "CT", "SOPClassUID": CT, "ImageType": DERIVED, "BurnedInAnnotation": "NO"}, True),
        ({"Modality": "CT", "SOPClassUID": CT}, True),
        ({"Modality": "CT", "SOPClassUID": SC, "ImageType": ACQUIRED}, True),
        ({"Modality": "CT", "SOPClassUID": f"{SC}.2", "ImageType": ACQUIRED}, True),
        ({"Modality": "CR", "SOPClassUID": CR, "ImageType": ACQUIRED, "BurnedInAnnotation": "NO"}, True),
        ({"Modality": "US", "SOPClassUID": US, "ImageType": ACQUIRED, "BurnedInAnnotation": "NO"}, True),
        ({"Modality": "XA", "SOPClassUID": XA, "ImageType": ACQUIRED}, True),
        ({"Modality": "", "SOPClassUID": CT, "ImageType": ACQUIRED}, True),
    ],
)
def test_what_is_looked_at(values: dict[str, Any], looked_at: bool) -> None:
    assert pixel_policy.must_look(header(**values), PixelPolicy()) is looked_at


def test_the_sample_takes_its_share_and_the_same_images_each_time() -> None:
    objects = [header(Modality="CT", SOPClassUID=CT, ImageType=ACQUIRED) for _ in range(400)]
    for number, ds in enumerate(objects):
        ds.SOPInstanceUID = f"1.2.3.{number}"
    taken = [pixel_policy.must_look(ds, PixelPolicy("mask", 0.25)) for ds in objects]
    assert 60 <= sum(taken) <= 140
    assert taken == [pixel_policy.must_look(ds, PixelPolicy("mask", 0.25)) for ds in objects]
    assert all(pixel_policy.must_look(ds, PixelPolicy("mask", 1.0)) for ds in objects)


def test_with_quarantine_nothing_is_looked_at_and_screens_are_refused() -> None:
    policy = PixelPolicy("quarantine")
    assert not pixel_policy.must_look(header(Modality="CT", SOPClassUID=CT, ImageType=DERIVED), policy)
    with pytest.raises(QuarantineError):
        pixel_policy.must_look(header(Modality="US", SOPClassUID=US, BurnedInAnnotation="NO"), policy)


@pytest.mark.parametrize("mode", ["mask", "quarantine"])
def test_an_overlay_in_unused_pixel_bits_is_refused(mode: Any) -> None:
    ds = header(Modality="CT", SOPClassUID=CT, ImageType=ACQUIRED)
    ds.add_new((0x6000, 0x0102), "US", 12)
    with pytest.raises(QuarantineError, match="unused bits"):
        pixel_policy.must_look(ds, PixelPolicy(mode))
    ds.add_new((0x6000, 0x3000), "OW", b"\0\0")  # planes of their own are removed by the recipe
    assert not pixel_policy.must_look(ds, PixelPolicy(mode))


def test_a_derived_slice_that_nobody_looked_at_is_not_claimed_to_be_clean() -> None:
    assert not pixel_policy.known_clean(header(Modality="CT", SOPClassUID=CT, ImageType=DERIVED))
    assert pixel_policy.known_clean(header(Modality="CT", SOPClassUID=CT, ImageType=ACQUIRED))


def device(**values: Any) -> Dataset:
    return header(
        Modality="US", SOPClassUID=US, Manufacturer="Philips Medical", ManufacturerModelName="EPIQ 7G", **values
    )


def test_a_rule_applies_to_its_device_and_size_only() -> None:
    assert device_rules.rectangles_for(device(Rows=768, Columns=1024), 768, 1024) == (Rectangle(0, 0, 49, 1024),)
    assert device_rules.rectangles_for(device(Rows=700, Columns=1024), 700, 1024) == ()
    ds = device(Rows=768, Columns=900)
    assert device_rules.rectangles_for(ds, 768, 900) == (Rectangle(0, 0, 49, 900),)  # cut to the image
    ds.Manufacturer = "Other"
    assert device_rules.rectangles_for(ds, 768, 900) == ()


def test_a_rule_by_file_meta_and_one_with_alternatives() -> None:
    ds = header(Modality="US")
    ds.file_meta = Dataset()
    ds.file_meta.ImplementationVersionName = "MINDRAY_1"
    assert device_rules.rectangles_for(ds, 800, 1000) == (Rectangle(0, 0, 69, 1000),)
    localizer = header(
        Modality="CT", ManufacturerModelName="LightSpeed VCT", ImageType=["DERIVED", "SECONDARY", "LOCALIZER"]
    )
    assert Rectangle(0, 0, 85, 80) in device_rules.rectangles_for(localizer, 512, 512)


def test_words_of_a_series_blank_nothing_of_primary_slices() -> None:
    values = {"Modality": "CT", "ManufacturerModelName": "SOMATOM Definition AS+", "SeriesDescription": "Enhancement"}
    assert device_rules.rectangles_for(header(**values, ImageType=DERIVED), 512, 512) == ()
    assert device_rules.rectangles_for(header(**values, ImageType=["DERIVED", "SECONDARY"]), 512, 512) != ()


def test_regions_outside_the_image_or_without_numbers_blank_nothing() -> None:
    region = Dataset()
    assert device_rules.outside_regions(header(SequenceOfUltrasoundRegions=[region]), 100, 100) == ()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 200, 200
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 300, 300
    assert device_rules.outside_regions(header(SequenceOfUltrasoundRegions=[region]), 100, 100) == ()


def test_what_lies_outside_is_each_pixel_in_no_region() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        corners = rng.integers(-5, 45, (int(rng.integers(1, 5)), 4))
        regions = [Rectangle(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners.tolist()]
        inside = np.zeros((40, 32), int)
        for region in regions:
            inside[region.clipped(40, 32).window] = 1
        left = np.zeros((40, 32), int)
        for one in outside(regions, 40, 32):
            left[one.window] += 1
        assert np.array_equal(left, 1 - inside)


def test_covered_and_empty_rectangles_go() -> None:
    large, small, other = Rectangle(0, 0, 9, 9), Rectangle(2, 2, 4, 4), Rectangle(5, 5, 12, 8)
    assert without_covered([small, other, large, Rectangle(3, 3, 3, 9), large]) == (large, other)
