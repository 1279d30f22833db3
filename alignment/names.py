"""Names of what can be chosen, for help texts that must not load numpy; a test compares them with the registries."""

from collections.abc import Iterable
from difflib import get_close_matches

METRICS = (
    "cosine",
    "dot",
    "euclid",
    "manhattan",
    "chi2",
    "kl-query-item",
    "kl-item-query",
    "js",
    "hellinger",
    "w1",
    "bilinear",
    "mol",
    "mlp",
)
CLOSED_FORMS = ("identity", "procrustes", "ridge", "rcca", "kcca", "asif")
HEADS = ("linear", "residual", "fusemix", "star-glu")
METHODS = (*CLOSED_FORMS, *HEADS)
# What `compare` compares, unless it is told otherwise.
COMPARED_METRICS = ("cosine", "manhattan", "chi2", "kl-query-item", "dot+nnn", "bilinear")
PROTOCOLS = ("coco-5k", "coco-1k", "flickr30k")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return those of `names` that are near to a mistyped one, for a message; an empty text where none is.

    >>> did_you_mean("procruste", METHODS)
    " (did you mean 'procrustes'?)"
    """
    near = get_close_matches(name, list(names))
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
