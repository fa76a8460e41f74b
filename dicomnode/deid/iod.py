"""Types (1, 2, 3) of the attributes in each image IOD, to choose among the X/Z/D of the table (PS3.15 E.1).

``python -m dicomnode.deid.iod DST`` reduces the 22 MB of highdicom's copy of PS3.3 to
``config/deid/iod-types.json``; at run time only that file is read. Source: PS3.3, by way of highdicom's wheel.
"""

from __future__ import annotations

import functools
import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword

from dicomnode.deid import table

_PIXEL_MODULES = {"image-pixel", "floating-point-image-pixel", "double-floating-point-image-pixel"}
_STRICTER = {"1": "1", "1C": "1", "2": "2", "2C": "2"}  # conditional attributes that are there stay there


@functools.cache
def _types() -> dict[str, dict[int, str]]:
    """SOP Class UID of each image IOD -> {tag: "1" or "2"}; a tag that is not listed is Type 3 or foreign."""
    raw = json.loads(table.data_file("iod-types.json").read_text("utf-8"))
    iods = {
        name: {int(tag, 16): kind for kind, tags in kinds.items() for tag in tags}
        for name, kinds in raw["iods"].items()
    }
    return {uid: iods[name] for uid, name in raw["sop_classes"].items()}


def is_image(sop_class: str) -> bool:
    """Whether the SOP Class is a known one whose IOD has pixels."""
    return sop_class in _types()


def image_sop_classes() -> tuple[str, ...]:
    """SOP Class UIDs of the known image IODs."""
    return tuple(_types())


def attribute_type(sop_class: str, tag: int) -> str:
    """ "1", "2" or "3": the strictest type of the attribute anywhere in the IOD that the profile leaves in place."""
    return _types().get(sop_class, {}).get(tag, "3")


def _iod_types(modules: list[dict[str, Any]], attributes: dict[str, Any]) -> dict[str, list[str]]:
    kinds: dict[int, str] = {}
    for module in modules:
        for attribute in attributes.get(module["key"], []):
            tag = tag_for_keyword(attribute["keyword"])
            kind = _STRICTER.get(attribute["type"])
            if tag is None or kind is None or tag not in table.by_tag():
                continue
            parents = (tag_for_keyword(keyword) for keyword in attribute["path"])
            if any(parent in table.by_tag() for parent in parents):
                continue  # the profile removes or empties the sequence around it
            kinds[tag] = min(kind, kinds.get(tag, kind))
    return {kind: sorted(f"{tag:08X}" for tag, value in kinds.items() if value == kind) for kind in ("1", "2")}


def regenerate(target: Path) -> int:
    """Write the reduced file from highdicom's ``_standard`` folder; returns the number of SOP Classes."""
    standard = resources.files("highdicom").joinpath("_standard")
    sop_classes, modules, attributes = (
        json.loads(standard.joinpath(name).read_text("utf-8"))
        for name in ("sop_class_iod_map.json", "iod_module_map.json", "module_attribute_map.json")
    )
    images = {
        uid: iod
        for uid, iod in sorted(sop_classes.items())
        if any(module["key"] in _PIXEL_MODULES for module in modules.get(iod, []))
    }
    out = {
        "source": "PS3.3 by way of highdicom/_standard; regenerate: python -m dicomnode.deid.iod DST",
        "sop_classes": images,
        "iods": {iod: _iod_types(modules[iod], attributes) for iod in sorted(set(images.values()))},
    }
    text = json.dumps(out, indent=0, separators=(",", ":"))
    target.write_text(text.replace('",\n"', '","') + "\n", "utf-8")
    return len(images)


if __name__ == "__main__":
    print(f"{regenerate(Path(sys.argv[1]))} SOP classes")  # noqa: T201 (a command)
