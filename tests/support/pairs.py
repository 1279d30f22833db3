"""Labelled data from two matrices."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings

Matrix = npt.NDArray[np.floating]


def paired(
    X: npt.NDArray[np.floating],
    Y: npt.NDArray[np.floating],
    groups: Sequence[int] | npt.NDArray[np.int64] | None = None,
) -> GroupedEmbeddings:
    """Row i of both belongs to `groups[i]`; each to a group of its own where there are none."""
    codes = np.arange(len(X)) if groups is None else np.asarray(groups, np.int64)
    return GroupedEmbeddings(
        ModalityEmbeddings(X.astype(np.float32), codes), ModalityEmbeddings(Y.astype(np.float32), codes)
    )
