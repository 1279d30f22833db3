"""Names of measures and formats of numbers on pages. docs/audits-measures.md has the formulas."""

import math
from datetime import datetime
from typing import Any

from alignment.retrieval.bootstrap import Estimate
from connector.audits.measures import find_measure

ARROWS = {"text-to-image": "text → image", "image-to-text": "image → text"}

UNCHANGED = "0.000"  # a difference that is too small to print


def sentence(name: str) -> str:
    """Return the description of a measure; empty for a measure of an older modalign.

    >>> sentence("recall@10")
    'queries with a right answer among the first 10, as production searches'
    """
    measure, k = find_measure(name)
    return measure.explained(k) if measure else ""


def called(name: str) -> str:
    """Return the display name of a measure.

    >>> called("exact.ndcg@10"), called("mrr"), called("fidelity@10.p5")
    ('exact nDCG@10', 'MRR', 'fidelity@10 p5')
    """
    measure, k = find_measure(name)
    return (measure.title if measure else "").replace("{k}", k) or name.replace(".", " ")


def number(value: float | None, name: str = "") -> str:
    """Format a value with three decimals; ranks and values from 100 without.

    >>> number(0.5), number(math.inf), number(None), number(120.0), number(4.0, "median_rank")
    ('0.500', '∞', '–', '120', '4')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    measure, _ = find_measure(name)
    return f"{value:.0f}" if value >= 100 or (measure and measure.is_rank) else f"{value:.3f}"


def within(value: Any) -> str:
    """Format the interval of a value; empty if it has none."""
    name = getattr(value, "name", "")
    return "" if value.low is None or value.high is None else f"{number(value.low, name)}–{number(value.high, name)}"


def signed(value: float) -> str:
    """Format a difference with its sign and three decimals.

    >>> signed(-0.0124), signed(0.5), signed(-0.0001), signed(math.inf)
    ('−0.012', '+0.500', '0.000', '+∞')
    """
    text = number(abs(value))
    return text if text in (UNCHANGED, "–") else f"{'+' if value > 0 else '−'}{text}"


def loss(value: float) -> str:
    """Format a loss with three decimals; a gain is negative."""
    return signed(value).removeprefix("+")


def kind_of(lost: Estimate) -> str:
    """Return `worse` or `better` for a significant loss or gain, else `same`."""
    return "worse" if lost.low > 0 else "better" if lost.high < 0 else "same"


def minute(at: datetime) -> str:
    """Format a time to the minute."""
    return f"{at:%-d %B %Y, %H:%M} UTC"


FILTERS = {
    "number": number,
    "within": within,
    "signed": signed,
    "loss": loss,
    "kind_of": kind_of,
    "minute": minute,
}
