"""What a model was taught opens the input gate for other modalities, never for what only claims to be CT or MR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from workflow_samples import pages_in_ct

from dicomnode.domain import ModelId, Shows
from dicomnode.models.embedder import Embedder
from dicomnode.models.study import NoSearch
from dicomnode.testing import write_study
from dicomnode.workflow.embedding import StudyEmbedder


def taught(embedder: Embedder, *shows: Shows) -> StudyEmbedder:
    return StudyEmbedder(ModelId("m"), lambda: embedder, shows)


@pytest.mark.parametrize("shows", [(), (Shows("CT", "CHEST"),), (Shows("CT/MR"), Shows("CR"))])
def test_pages_that_claim_to_be_ct_are_refused_whatever_the_model_was_taught(
    embedder: Embedder, tmp_path: Path, shows: tuple[Shows, ...]
) -> None:
    pages = write_study(pages_in_ct(), tmp_path)
    assert taught(embedder, *shows).embed_study(pages).not_searchable is NoSearch.NO_SLICE


def test_modalities_beside_ct_and_mr(embedder: Embedder) -> None:
    assert taught(embedder, Shows("CT", "CHEST"), Shows("CR"), Shows("DX/US"), Shows("")).modalities == {
        "CR",
        "DX",
        "US",
    }
    noise = np.random.default_rng(0).random((1, 224, 224), dtype=np.float32)
    known = taught(embedder, Shows("XA"))
    assert [known.judge(noise, claimed=True, modality=m)[0].passes for m in ("XA", "CT", "")] == [True, False, False]
