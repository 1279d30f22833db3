"""Which conditions of filters a Qdrant server knows, by its version.

Over REST a server refuses a condition that it does not know. Over gRPC it ignores it, so that every point matches:
`modalign delete --filter` would delete everything. So a condition is sent only to a version that is known to have it.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from connector.errors import FilterError
from connector.stores.filter_conditions import FIRST_ROUNDED
from connector.stores.filters import conditions_of, nested_filters

if TYPE_CHECKING:
    from qdrant_client.models import Filter

Version = tuple[int, int]

OLDEST_SERVER: Version = (1, 16)  # the first with collection metadata
# The classes of qdrant_client, each with the first version of the server that has it, or the oldest that is supported.
SINCE: Mapping[str, Version] = {
    "FieldCondition": OLDEST_SERVER,
    "Filter": OLDEST_SERVER,
    "HasIdCondition": OLDEST_SERVER,
    "HasVectorCondition": OLDEST_SERVER,
    "IsEmptyCondition": OLDEST_SERVER,
    "IsNullCondition": OLDEST_SERVER,
    "NestedCondition": OLDEST_SERVER,
    "MatchValue": OLDEST_SERVER,
    "MatchAny": OLDEST_SERVER,
    "MatchExcept": OLDEST_SERVER,
    "MatchText": OLDEST_SERVER,
    "MatchTextAny": OLDEST_SERVER,
    "MatchPhrase": OLDEST_SERVER,
    "MatchPrefix": (1, 19),
    "SliceCondition": (1, 19),
    "MatchSubstring": (1, 20),
}


def check_known(names: Collection[str], version: Version | None, url: str) -> None:
    """Return if a server knows all conditions and matches of these classes.

    Args:
        names: of classes of qdrant_client, see `connector.stores.filters.condition_names`.
        version: of the server, such as (1, 18); None: unknown, and then the oldest.
        url: of the server.

    Raises:
        FilterError: it does not, or nobody knows.
    """
    for name in sorted(names):
        if name not in SINCE:
            raise FilterError(f"{name}: expected one of {', '.join(SINCE)}; no Qdrant server is known to have others")
        if (version or OLDEST_SERVER) < SINCE[name]:
            needed, found = (".".join(map(str, numbers)) for numbers in (SINCE[name], version or OLDEST_SERVER))
            raise FilterError(f"{name}: expected Qdrant {needed} or newer, {url} is {found}; upgrade the server")


def check_rest_bounds(filter: "Filter", url: str) -> None:
    """Return if a server reads every bound of a range in a JSON body as the number that it is.

    The client writes whole numbers as `1700000000000003.0`. A server reads the digits as one whole number, rounds it to
    a float64 and divides by ten, so that one bound in ten beyond 9e14 becomes its neighbour. gRPC sends float64.

    Raises:
        FilterError: it does not.
    """
    for _, _, inner in nested_filters(filter):
        for condition in conditions_of(inner):
            tested = getattr(condition, "range", None)
            for bound in (getattr(tested, name, None) for name in ("lt", "lte", "gt", "gte")):
                if isinstance(bound, float) and abs(bound) < FIRST_ROUNDED and _misread(bound):
                    raise FilterError(
                        f"the range of {condition.key!r}: {url} would read {bound:.0f} as another number; give a "
                        "grpc:// address, or a bound that is one more or less"
                    )


def _misread(bound: float) -> bool:
    return bound.is_integer() and float(int(bound) * 10) / 10 != bound
