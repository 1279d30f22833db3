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
# Names in a message, at most: a home may hold hundreds of alignments.
SHOWN = 20


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return those of `names` that are near to a mistyped one, for a message; an empty text where none is.

    >>> did_you_mean("procruste", METHODS)
    " (did you mean 'procrustes'?)"
    """
    near = _near(name, names)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def names_there(name: str, names: Iterable[str]) -> str:
    """List the names that there are, for a message that there is none like `name`; of many, `SHOWN` near ones first.

    >>> names_there("Shopp", ["emoji", "shop"])
    "emoji, shop (did you mean 'shop'?)"
    >>> names_there("shop", [])
    'none'
    """
    known = list(dict.fromkeys(names))
    shown = known if len(known) <= SHOWN else list(dict.fromkeys([*_near(name, known), *known]))[:SHOWN]
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"{', '.join(shown) or 'none'}{more}{did_you_mean(name, known)}"


def _near(name: str, names: Iterable[str]) -> list[str]:
    folded: dict[str, list[str]] = {}
    for known in names:
        folded.setdefault(known.casefold(), []).append(known)
    return [known for near in get_close_matches(name.casefold(), folded) for known in folded[near]]
