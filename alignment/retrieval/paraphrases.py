"""Paraphrases: queries about seen items that are not their own captions, where a corpus has no other captions.

An own caption of the fit sits on its item and is found first whatever the offset; it says nothing about what people
ask. A paraphrase is the embedding of a caption, or of an image, moved to the cosine `SAME` with itself, at random but
within the space that the embeddings of the corpus fill: in other directions noise would tell nothing, or everything,
by the number of coordinates that an encoder has. It loses to an offset about what synonyms lose: see "Seen and unseen
items" in docs/alignment-figures.md.
"""

import hashlib
import zlib
from dataclasses import replace

import numpy as np

from alignment.sets.rows import Rows
from alignment.vectors import FloatArray, l2_normalize

SAME = 0.6
# Embeddings that directions are mixed of, at most.
MIXED = 256
# Share of directions outside of their space: where there is but one embedding, there are no others.
OUTSIDE = 1e-6


def paraphrased(X: FloatArray, *, seed: int = 0) -> FloatArray:
    """Return unit vectors (n, d) at the cosine `SAME` with the rows of raw embeddings (n, d), n vectors of d above 1.

    Directions are random mixtures of the rows, less their mean. They follow from the seed and from the rows, in
    whatever order these are, so two audits of the same items ask the same.
    """
    own = l2_normalize(X)
    codes = [zlib.crc32(vector.tobytes()) for vector in np.ascontiguousarray(X)]
    mixed = own[np.argsort(codes, kind="stable")[:: -(-len(X) // MIXED) or 1]]
    mixed = mixed - mixed.mean(axis=0) if len(mixed) else mixed
    shares, outside = np.empty((len(X), len(mixed)), np.float32), np.empty(X.shape, np.float32)
    for row, code in enumerate(codes):
        draw = np.random.default_rng([seed, code])
        shares[row] = draw.standard_normal(len(mixed), np.float32)
        outside[row] = draw.standard_normal(X.shape[1], np.float32)
    noise = shares @ mixed + OUTSIDE * outside
    across = l2_normalize(noise - np.einsum("nd,nd->n", noise, own)[:, None] * own)
    moved: FloatArray = (SAME * own + np.sqrt(1 - SAME**2) * across).astype(np.float32)
    return moved


def paraphrases(rows: Rows, *, seed: int = 0) -> Rows:
    """Return the rows with paraphrases as vectors, mixed of each other.

    Their contents name the seed and the items that they are mixed of: others are not the same queries, and no stored
    item has such content.
    """
    among = hashlib.sha256("".join(sorted(rows.content_sha256)).encode()).hexdigest()
    contents = [f"{sha} paraphrased {seed} among {among}" for sha in rows.content_sha256]
    return replace(rows, vectors=paraphrased(rows.vectors, seed=seed), content_sha256=contents)
