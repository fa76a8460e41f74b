"""``python -m tests.deid_report``: the figures of ``docs/deid-report.md`` and ``.json``; ``make deid-report`` runs it.

``--names tune`` runs on the other list of names, for work on rules and word lists, prints and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path

from . import page
from .identities import REPORT, TUNE
from .pixels import REPORT_FONTS, TUNE_FONTS, plant_images
from .run import Run, deidentify_all, judge_pixels, plant_all

DOCS = Path(__file__).resolve().parents[2] / "docs"
SEED, ROUNDS, IMAGES = 20241007, 2, 36
DEFAULT = (
    "retain-longitudinal-modified-dates", "clean-descriptors", "clean-pixel-data", "retain-patient-characteristics",
)  # fmt: skip
# The profile alone, what the node does unless told otherwise, and the options that the challenge asked for.
OPTIONS: dict[str, tuple[str, ...]] = {
    "basic": (),
    "default": DEFAULT,
    "with device identity and safe private": (*DEFAULT, "retain-device-identity", "retain-safe-private"),
}

PIXELS_WITH = "default"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.deid_report", description=__doc__)
    parser.add_argument("--names", choices=["report", "tune"], default="report", help="which list of identities")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each object is planted anew")
    parser.add_argument("--images", type=int, default=IMAGES, help="images with text in their pixels")
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # pydicom warns of planted values that are longer than their VR allows
    names = REPORT if asked.names == "report" else TUNE
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory(prefix="deid-report-") as name:
        folder = Path(name)
        planted = plant_all(folder, names, asked.rounds, asked.seed)
        fonts = REPORT_FONTS if names is REPORT else TUNE_FONTS
        images = plant_images(folder, names, asked.images, asked.seed, fonts)
        for title, options in OPTIONS.items():
            runs[title] = deidentify_all(folder, planted, options)
            if title == PIXELS_WITH:  # the other options do not touch pixels
                judge_pixels(folder, images, runs[title])
            print(page.summary(title, runs[title]), flush=True)  # noqa: T201 (a command)
    if asked.names == "tune":
        return
    data = page.as_json(runs, planted, asked.seed, asked.rounds)
    (DOCS / "deid-report.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
    page.write(DOCS / "deid-report.md", data)


if __name__ == "__main__":
    main()
