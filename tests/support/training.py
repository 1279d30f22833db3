"""Data and heads that training is tested on."""

import numpy as np
import torch

from alignment.fitting.heads import Head, Linear
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.vectors import l2_normalize

DIM = 16


def swapped_pairs(rng: np.random.Generator, groups: int, *, captions: int = 1, first: int = 0) -> GroupedEmbeddings:
    """Images and their texts, with neighbouring coordinates of the texts swapped, so that cosine is at chance.

    Args:
        groups: how many; each has one image and `captions` texts.
        first: code of the first group.
    """
    Z = rng.standard_normal((groups, DIM))
    X = Z + 0.1 * rng.standard_normal(Z.shape)
    Y = np.repeat(Z, captions, axis=0)
    Y = Y + 0.1 * rng.standard_normal(Y.shape)
    swapped = Y.reshape(len(Y), -1, 2)[:, :, ::-1].reshape(len(Y), DIM)
    codes = first + np.arange(groups)
    return GroupedEmbeddings(
        ModalityEmbeddings(l2_normalize(X), codes),
        ModalityEmbeddings(l2_normalize(swapped), np.repeat(codes, captions)),
    )


def linear_heads(data: GroupedEmbeddings, seed: int = 0) -> tuple[Head, Head]:
    """Two random linear heads from the spaces of `data` to 6 dimensions."""
    torch.manual_seed(seed)
    image, text = (Linear(0.1 * torch.randn(side.vectors.shape[1], 6)) for side in (data.image, data.text))
    return image, text
