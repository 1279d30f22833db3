"""Ways to find items by a text: by their images, by their captions, or by both fused.

What a comparison and an audit say of them follows from these rules, so that both advise the same.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # the command line loads this module, which must stay light
    from alignment.retrieval.bootstrap import Estimate

# What a text is compared with to find an item: its images, its captions, or both.
Way = Literal["image", "caption", "fused"]
IMAGE, CAPTION, FUSED = WAYS = get_args(Way)
LARGEST_K = 10  # ranks of items by a way are exact up to this one


def advised(found: Mapping[Way, tuple[float, ...]], *, paraphrased: bool) -> Way:
    """Return the way that finds most; of equal ones the first in `WAYS`.

    Paraphrases of captions flatter captions, so they cannot advise these alone: in other words the same queries would
    find more by both.

    >>> advised({"image": (0.9, 0.5), "caption": (0.9, 0.9), "fused": (0.9, 0.9)}, paraphrased=False)
    'caption'
    >>> advised({"image": (0.9, 0.5), "caption": (0.9, 0.9), "fused": (0.9, 0.9)}, paraphrased=True)
    'fused'

    Args:
        found: recalls by each way, the one that decides first; the next one decides between equal ones.
        paraphrased: the queries were paraphrases of captions.
    """
    return max((way for way in WAYS if way != CAPTION or not paraphrased), key=lambda way: found[way])


def added(gain: "Estimate") -> str:
    """Say whether images add to captions, by Recall@k of both together less that of captions alone."""
    if gain.low > 0:
        return f"the alignment adds to captions: {change(gain)}"
    if gain.high < 0:
        return f"the alignment takes from captions: {change(gain)}"
    return f"both together cannot be told apart from captions alone: {change(gain)}"


def unaligned(bare: "Estimate", projected: "Estimate", k: int) -> str:
    """Say what captions find in the space of their encoder, and what the projection changes.

    Args:
        bare: Recall@k there.
        projected: Recall@k of aligned captions less that.
        k: length of the lists.
    """
    says = f"Without any alignment, by cosine of the text encoder, captions find {bare.value:.1%} among the first {k}"
    if projected.high < 0:
        return f"{says}: the projection spoils captions, {change(projected)}."
    if projected.low > 0:
        return f"{says}: the projection improves captions, {change(projected)}."
    return f"{says}: that cannot be told apart from aligned captions, {change(projected)}."


def change(estimate: "Estimate") -> str:
    """Print a difference of shares with its interval."""
    return f"{estimate.value:+.1%} [{estimate.low:+.1%}, {estimate.high:+.1%}]"
