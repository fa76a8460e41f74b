"""Rankings of index rows: packs through the node's own vector store and search, controls through its exact search.

The rows of an evaluation are put into a real ``VectorIndex`` in a temporary folder, with its checks and checksums, and
ranked by ``Searcher.search_rows``, the search of every query of a node, with closed rows masked inside the search. The
whole order is asked for (average precision needs it), which that search answers exactly; what an MRPT snapshot loses on
top is measured and bounded where it is built (docs/index.md), not here. Case ranking needs a catalogue of studies and
is measured by ``evaluation.repository``. Controls that are no unit vectors are ordered by distance, ties by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from dicomnode.domain import ModelId, Pseudonym, PseudoUid, SliceRef
from dicomnode.evaluation.metrics import Bools, Floats
from dicomnode.evaluation.task import Ranker
from dicomnode.index import exact
from dicomnode.index.standalone import standalone_index

Vectors = npt.NDArray[np.float32]
SERIES = PseudoUid("series")


@contextmanager
def index_ranker(model_id: ModelId, index: Vectors, queries: Vectors) -> Iterator[Ranker]:
    """Ranks by a vector index that holds ``index`` float32 [n, dim]; queries float32 [m, dim], all of length 1.

    Raises
    ------
    InputError
        A vector is not finite or not of length 1.
    """
    temporary = TemporaryDirectory(prefix="dicomnode-evaluate-")
    with temporary as folder, standalone_index(Path(folder), model_id, index.shape[1]) as held:
        refs = [
            SliceRef(PseudoUid(f"row.{i}"), SERIES, PseudoUid(f"row.{i}"), Pseudonym(f"row.{i}"))
            for i in range(len(index))
        ]
        held.add(refs, index)
        now = held.searcher.refresh()

        def ranked(query: int, mask: Bools) -> npt.NDArray[np.int64]:
            wanted = int(mask.sum())
            if not wanted:
                return np.empty(0, dtype=np.int64)
            found: npt.NDArray[np.int64] = held.searcher.search_rows(now, queries[query][None], wanted, mask)[0][0]
            return found

        yield ranked


def cosine_ranker(index: Vectors, queries: Vectors) -> Ranker:
    """Ranks unit vectors of a control by cosine with the same exact search, without a store."""

    def ranked(query: int, mask: Bools) -> npt.NDArray[np.int64]:
        wanted = int(mask.sum())
        if not wanted:
            return np.empty(0, dtype=np.int64)
        found: npt.NDArray[np.int64] = exact.top_k(queries[query][None], index, wanted, mask)[0][0]
        return found

    return ranked


def distance_ranker(index: Floats, queries: Floats) -> Ranker:
    """Ranks rows [n, d] by Euclidean distance, equal distances by row."""

    def ranked(query: int, mask: Bools) -> npt.NDArray[np.int64]:
        rows = np.flatnonzero(mask)
        apart = np.round(np.linalg.norm(index[rows] - queries[query], axis=1), exact.DECIMALS)
        return rows[np.lexsort((rows, apart))]

    return ranked
