"""Metrics as values: how two aligned vectors are compared, and how Qdrant is made to compare them that way.

A metric prints as text and parses back. It compares and hashes, so SQL, collection metadata and the command line can
hold it. Adding one is one class: CONTRIBUTING.md has the steps.

    >>> parse("euclid")
    Euclid()
    >>> str(parse("chi2"))
    'chi2(map=split)'
    >>> parse("chi2") == parse("chi2(map=split)") != parse("chi2(map=softmax)")
    True
"""

from alignment.distance import Distance
from alignment.errors import MetricError
from alignment.metrics.divergences import ChiSquare, Hellinger, JensenShannon
from alignment.metrics.hubness import BANK, Nnn, bank_name
from alignment.metrics.kullback_leibler import KullbackItemQuery, KullbackQueryItem
from alignment.metrics.learned import Bilinear, LearnedMetric, MixtureOfLogits, Perceptron
from alignment.metrics.lowering import Guarantee, Lowering
from alignment.metrics.metric import Metric
from alignment.metrics.native import Cosine, Dot, Euclid, Manhattan, Wasserstein1
from alignment.metrics.registry import METRICS, parse
from alignment.metrics.rescored import Rescored
from alignment.metrics.seen_offset import SeenOffset, with_seen

__all__ = [
    "BANK",
    "METRICS",
    "Bilinear",
    "ChiSquare",
    "Cosine",
    "Distance",
    "Dot",
    "Euclid",
    "Guarantee",
    "Hellinger",
    "JensenShannon",
    "KullbackItemQuery",
    "KullbackQueryItem",
    "LearnedMetric",
    "Lowering",
    "Manhattan",
    "Metric",
    "MetricError",
    "MixtureOfLogits",
    "Nnn",
    "Perceptron",
    "Rescored",
    "SeenOffset",
    "Wasserstein1",
    "bank_name",
    "parse",
    "with_seen",
]
