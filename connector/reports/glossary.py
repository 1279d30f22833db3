"""What the measures of audits are called, say and look like on pages for people. docs/audits.md has the formulas."""

import math
import re
from datetime import datetime
from typing import Any

from alignment.retrieval.bootstrap import Estimate

SENTENCES = {
    "recall@{k}": "queries with a right answer among the first {k}, as production searches",
    "exact.recall@{k}": "the same if nothing were lost by the search itself",
    "chance.recall@{k}": "the same if the order were random",
    "found@{k}": "of everything that would be right, what is among the first {k}",
    "exact.found@{k}": "the same if nothing were lost by the search itself",
    "ndcg@{k}": "right answers among the first {k}, counted for more the earlier they come",
    "exact.ndcg@{k}": "the same if nothing were lost by the search itself",
    "mrr": "1 divided by the rank of the first right answer, on average",
    "r_precision": "of so many answers as would be right, those that are",
    "median_rank": "where the first right answer stands for half of the queries; lower is better",
    "fidelity@{k}": "of the first {k} by the metric itself, what production finds",
    "fidelity@{k}.p5": "the same for the twentieth of the queries where it is least",
    "fidelity@{k}.least": "the same for the worst query",
    "fidelity@{k}.below90": "queries of which less than nine tenths are found; lower is better",
    "certified": "answers that are proved to be complete",
    "hubness": "how unevenly production finds items: skewness, above 1 a few crowd out others; lower is better",
    "gap": "root of what the squared distance of images and texts has beyond that of samples of one modality",
    "gap.raw": "distance of images and texts, with what the size of the sample adds",
    "gap.p": "how often chance alone makes such a gap",
    "gap.centroid": "distance of the mean image from the mean text",
    "gap.centred": "what is left of the gap once both means are one",
    "sliced": "the gap, along random directions",
    "bures": "the gap of Gaussians of the same mean and spread",
    "mutual_neighbours": "near images whose texts are near each other too",
}
NAMES = {
    "mrr": "MRR",
    "r_precision": "R-precision",
    "median_rank": "median rank",
    "mutual_neighbours": "mutual neighbours",
}
ARROWS = {"text-to-image": "text → image", "image-to-text": "image → text"}
MEDIAN_RANK = "median_rank"
SHORT = {"recall": "Recall", "ndcg": "nDCG"}


def sentence(name: str) -> str:
    """Say what a measure is; empty for one that says it itself.

    >>> sentence("recall@10")
    'queries with a right answer among the first 10, as production searches'
    """
    k = re.search(r"@(\d+|K)", name)
    general = name.replace(f"@{k[1]}", "@{k}") if k else name
    return SENTENCES.get(general, "").replace("{k}", k[1] if k else "")


def called(name: str) -> str:
    """Return what people call a measure.

    >>> called("exact.ndcg@10"), called("mrr"), called("fidelity@10.p5")
    ('exact nDCG@10', 'MRR', 'fidelity@10 p5')
    """
    if name in NAMES:
        return NAMES[name]
    return re.sub(r"recall|ndcg", lambda match: SHORT[match[0]], name).replace(".", " ")


def number(value: float | None, name: str = "") -> str:
    """Three digits, as far as there is a number; of a rank those that it has.

    >>> number(0.5), number(math.inf), number(None), number(120.0), number(4.0, "median_rank")
    ('0.500', '∞', '–', '120', '4')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.0f}" if value >= 100 or name == MEDIAN_RANK else f"{value:.3f}"


def within(its: Any) -> str:
    """The interval of a value, where it has one."""
    name = getattr(its, "name", "")
    return "" if its.low is None or its.high is None else f"{number(its.low, name)}–{number(its.high, name)}"


def signed(value: float) -> str:
    """A difference to three digits.

    >>> signed(-0.0124), signed(0.5), signed(-0.0001), signed(math.inf)
    ('−0.012', '+0.500', '0.000', '+∞')
    """
    text = number(abs(value))
    return text if text in ("0.000", "–") else f"{'+' if value > 0 else '−'}{text}"


def loss(value: float) -> str:
    """What is lost, to three digits; below 0 it was won."""
    return signed(value).removeprefix("+")


def kind_of(lost: Estimate) -> str:
    """Whether a loss is more than chance, and which way."""
    return "worse" if lost.low > 0 else "better" if lost.high < 0 else "same"


def minute(at: datetime) -> str:
    """A point in time for people."""
    return f"{at:%-d %B %Y, %H:%M} UTC"


FILTERS = {
    "number": number,
    "within": within,
    "signed": signed,
    "loss": loss,
    "kind_of": kind_of,
    "minute": minute,
}


# Measures of the whole that the table shows, in its order; {k} is each K.
SHOWN = (
    "recall@{k}",
    "exact.recall@{k}",
    "chance.recall@{k}",
    "found@{k}",
    "ndcg@{k}",
    "mrr",
    "r_precision",
    "median_rank",
    "fidelity@{k}",
    "certified",
    "hubness",
)
# Measures of a history that are shown unless others are named.
TREND = ("recall@{k}", "fidelity@{k}", "gap")
