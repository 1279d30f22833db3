"""How much captions count where images and captions are searched together: what finds most, or else a default."""

from collections.abc import Callable, Sequence

import numpy as np

# Of captions, below 1; images have the rest. It counts where nothing better was measured. More would find a little more
# of what people ask in a caption's own words, and much less of what they ask in others: see docs/search.md.
CAPTION_WEIGHT = 0.75
# Weights to try; of equally good ones the nearest to `CAPTION_WEIGHT` is chosen.
WEIGHTS = (0.1, 0.25, 0.5, 0.75, 0.9)
# Queries that it is chosen by: at most, and at least. They are captions that no fit saw, and never find themselves.
MOST_QUERIES, FEWEST_QUERIES = 64, 30


def best_weight(ranks_at: Callable[[float], Sequence[float]]) -> float:
    """Return the weight with the best mean reciprocal rank.

    Args:
        ranks_at: the ranks of what the queries look for, from 1, at a weight.
    """
    nearest_first = sorted(WEIGHTS, key=lambda weight: abs(weight - CAPTION_WEIGHT))
    return max(nearest_first, key=lambda weight: float(np.mean([1 / rank for rank in ranks_at(weight)])))
