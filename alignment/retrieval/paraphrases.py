"""Paraphrases: queries about seen items that are not their own captions, where a corpus has no other captions.

An own caption of the fit sits on its item and is found first whatever the offset; it says nothing about what people
ask. A paraphrase is the embedding of a caption, or of an image, moved at random to the cosine `SAME` with itself. It
loses as much to an offset as synonyms do: see "Seen and unseen items" in docs/alignment-figures.md.
"""

import zlib

import numpy as np

from alignment.vectors import FloatArray, l2_normalize

SAME = 0.45


def paraphrased(X: FloatArray, *, seed: int = 0) -> FloatArray:
    """Return unit vectors (n, d) at the cosine `SAME` with the rows of raw embeddings (n, d), n vectors of d above 1.

    The direction follows from the seed and the row alone, so two audits ask the same of an item.
    """
    own, noise = l2_normalize(X), np.empty(X.shape, np.float32)
    for row, vector in enumerate(np.ascontiguousarray(X)):
        draw = np.random.default_rng([seed, zlib.crc32(vector.tobytes())])
        noise[row] = draw.standard_normal(X.shape[1], np.float32)
    across = l2_normalize(noise - np.einsum("nd,nd->n", noise, own)[:, None] * own)
    moved: FloatArray = (SAME * own + np.sqrt(1 - SAME**2) * across).astype(np.float32)
    return moved
