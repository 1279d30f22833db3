"""The registry of metrics, and the text that names one."""

from alignment.errors import MetricError
from alignment.metrics.divergences import ChiSquare, Hellinger, JensenShannon
from alignment.metrics.hubness import Nnn
from alignment.metrics.kullback_leibler import KullbackItemQuery, KullbackQueryItem
from alignment.metrics.learned import Bilinear, MixtureOfLogits, Perceptron
from alignment.metrics.metric import Metric, arguments, with_parameters
from alignment.metrics.native import Cosine, Dot, Euclid, Manhattan, Wasserstein1
from alignment.names import did_you_mean

# Every metric by its name, with its default parameters.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Cosine(),
        Dot(),
        Euclid(),
        Manhattan(),
        ChiSquare(),
        KullbackQueryItem(),
        KullbackItemQuery(),
        JensenShannon(),
        Hellinger(),
        Wasserstein1(),
        Bilinear(),
        MixtureOfLogits(),
        Perceptron(),
    )
}
CORRECTION = "+nnn"


def parse(text: str) -> Metric:
    """Return the metric that prints as `text`, or that `text` names with some of its parameters or none.

    Raises:
        MetricError: there is no such metric, or not with such parameters.
    """
    plain, correction, rest = text.partition(CORRECTION)
    try:
        name, given = arguments(plain)
        metric = with_parameters(METRICS[name], given)
        if not correction:
            return metric
        name, given = arguments(Nnn.name + rest)
        if name != Nnn.name:
            raise ValueError(text)
        return with_parameters(Nnn(metric), given)
    except (KeyError, ValueError) as error:
        if isinstance(error, MetricError):
            raise
        near = did_you_mean(text.partition("(")[0], METRICS)
        raise MetricError(
            f"unknown metric {text!r}{near}; expected one of {', '.join(METRICS)}, with parameters as in "
            "chi2(map=split), and +nnn after one that lowers to Dot"
        ) from None
