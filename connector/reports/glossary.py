"""How measures and numbers read on pages for people. docs/audits.md has the formulas."""

import math
from datetime import datetime
from typing import Any

from alignment.retrieval.bootstrap import Estimate
from connector.audits.measures import find_measure

ARROWS = {"text-to-image": "text → image", "image-to-text": "image → text"}


def sentence(name: str) -> str:
    """Say what a measure is; empty for one that an older modalign recorded.

    >>> sentence("recall@10")
    'queries with a right answer among the first 10, as production searches'
    """
    measure, k = find_measure(name)
    return measure.explained(k) if measure else ""


def called(name: str) -> str:
    """Return what people call a measure.

    >>> called("exact.ndcg@10"), called("mrr"), called("fidelity@10.p5")
    ('exact nDCG@10', 'MRR', 'fidelity@10 p5')
    """
    measure, k = find_measure(name)
    return (measure.title if measure else "").replace("{k}", k) or name.replace(".", " ")


def number(value: float | None, name: str = "") -> str:
    """Three digits, as far as there is a number; of a rank those that it has.

    >>> number(0.5), number(math.inf), number(None), number(120.0), number(4.0, "median_rank")
    ('0.500', '∞', '–', '120', '4')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    measure, _ = find_measure(name)
    return f"{value:.0f}" if value >= 100 or (measure and measure.is_rank) else f"{value:.3f}"


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
