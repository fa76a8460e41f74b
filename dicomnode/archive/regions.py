"""Which regions of the body a series says it shows: words of descriptions, English and Spanish, and Body Part Examined.

Descriptions come first and alone decide a ranking: Body Part Examined was wrong in 15 % of images (Gueld et al. 2002),
so it may call for a caution but not push a case down. Reads text, never pixels; a word it does not know tells nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

# Whole words, without accents. Parts of Body Part Examined (PS3.16 Annex L, Table L-1) are words here too.
_WORDS: Final[dict[str, str]] = {
    "HEAD": "HEAD BRAIN SKULL CRANIUM CRANIAL CEREBRAL FACE FACIAL ORBIT ORBITS SINUS SINUSES SELLA PITUITARY IAC"
    " CABEZA CEREBRO CRANEO CARA ORBITA ORBITAS SENOS SILLA HIPOFISIS",
    "NECK": "NECK CERVICAL CSPINE CAROTID CAROTIDS LARYNX PHARYNX THYROID CUELLO CAROTIDA CAROTIDAS LARINGE FARINGE"
    " TIROIDES",
    "CHEST": "CHEST THORAX THORACIC LUNG LUNGS PULMONARY HEART CARDIAC CORONARY MEDIASTINUM TORAX TORACICO TORACICA"
    " PULMON PULMONES PULMONAR CORAZON CARDIACO CARDIACA CORONARIAS MEDIASTINO",
    "ABDOMEN": "ABDOMEN ABDOMINAL ABD LIVER HEPATIC PANCREAS KIDNEY KIDNEYS RENAL ADRENAL PELVIS PELVIC PROSTATE UTERUS"
    " BLADDER COLON HIGADO HEPATICO RINON RINONES SUPRARRENAL PELVICO PROSTATA UTERO VEJIGA",
    "SPINE": "TSPINE LSPINE SSPINE LUMBAR SACRUM DORSOLUMBAR LUMBOSACRA",
    "BREAST": "BREAST BREASTS MAMMARY MAMA MAMAS MAMARIA",
    "LIMB": "EXTREMITY LEG HAND FOOT ANKLE KNEE ELBOW WRIST SHOULDER FEMUR TIBIA HUMERUS FOREARM EXTREMIDAD PIERNA"
    " BRAZO MANO PIE TOBILLO RODILLA CODO MUNECA HOMBRO ANTEBRAZO",
}
_REGION_OF: Final = {word: region for region, words in _WORDS.items() for word in words.split()}
# Thoracic and cervical are words of the spine where the spine is named beside them.
_SPINE: Final = re.compile(r"\b(SPINE|COLUMNA|RAQUIS|VERTEBRA\w*)\b")
_NO_SPINE: Final = frozenset({"CERVICAL", "THORACIC", "TORACICA", "TORACICO"})


def regions_in(text: str) -> frozenset[str]:
    """Regions (keys of ``domain.REGION_WORDS``) that a description or a Body Part Examined names."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().upper()
    words = frozenset(re.split(r"[^A-Z]+", plain))
    spine = _SPINE.search(plain) is not None
    found = {_REGION_OF[w] for w in words if w in _REGION_OF and not (spine and w in _NO_SPINE)}
    return frozenset(found | {"SPINE"}) if spine else frozenset(found)


def described_region(series: str, study: str) -> str:
    """What the descriptions of a series and of its study say, several as "ABDOMEN/CHEST"; "" where they say nothing."""
    return joined(regions_in(series) or regions_in(study))


def joined(regions: Iterable[str]) -> str:
    """Regions as one text, sorted, each once; an entry may hold several."""
    return "/".join(sorted({one for entry in regions for one in entry.split("/") if one}))
