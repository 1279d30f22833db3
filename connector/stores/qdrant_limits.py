"""What a server allows in one request: learned from the first refusal, kept as long as the store is open, and obeyed.

Strict mode, which hosted servers switch on, limits requests by collection: hits, queries and points of a request,
`hnsw_ef`, oversampling, exact searches, what a minute may cost. The server tells a limit in the sentence that refuses a
request. `LimitBook.obey` reads it there, and sends the request again as the limit allows.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from connector.errors import (
    AccessDeniedError,
    ExactRefusedError,
    FilterRefusedError,
    RequestOverRateError,
    RequestRefusedError,
    RequestTooLargeError,
    SettingsError,
    StoreError,
    StoreFullError,
)
from connector.stores.collection import SearchLimits
from connector.stores.layout import Layout

if TYPE_CHECKING:
    from qdrant_client.models import Filter, StrictModeConfigOutput

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Counted = Literal["hits", "queries", "points", "ids"]

REQUEST_POINTS = 128  # enough to keep a server's threads busy
REQUEST_QUERIES = 128
REQUEST_BYTES = 8 << 20  # well below a server's 32 MB
OWN_CONDITIONS = 2  # of one filter that modalign makes itself, at most
ID_BYTES = 64  # of an id in a request, at most

VALUES = re.compile(r"Condition size limit reached \(\d+ > (\d+)\)")
EXCEEDED = re.compile(r'Limit exceeded \S+ > (\d+(?:\.\d+)?) for \\?"([^"\\]+)\\?"')
# How the server names what it limits, and the field of `Limits` that holds it.
FIELDS = {
    "limit": "hits",
    "search batch size": "queries",
    "upsert limit": "points",
    "hnsw_ef": "ef",
    "oversampling": "oversampling",
}
LIMIT_BYTES = re.compile(r"limit: (\d+) bytes")
# Sentences of a server by what they mean. REST answers them as 400 and 429, gRPC as INVALID_ARGUMENT,
# RESOURCE_EXHAUSTED and OUT_OF_RANGE: codes that mean other things as well.
MEANINGS: tuple[tuple[str, type[StoreError]], ...] = (
    ("Exact search disabled", ExactRefusedError),
    ("Index required but not found for", FilterRefusedError),
    ("Filter condition limit reached", FilterRefusedError),
    ("Condition size limit reached", FilterRefusedError),
    ("request larger than rate limiter capacity", RequestOverRateError),
    ("is larger than allowed (limit:", RequestTooLargeError),
    ("payload reached size limit", RequestTooLargeError),
    ("message length too large", RequestTooLargeError),
    ("larger than max", RequestTooLargeError),
    ("Max points count limit of", StoreFullError),
    ("Max vector storage size limit of", StoreFullError),
    ("Max payload storage size limit of", StoreFullError),
    ("Resident memory usage is at", StoreFullError),
    ("Disk usage is at", StoreFullError),
)
# What to do about a refusal that nothing can obey.
ADVICE: Mapping[type[StoreError], str] = {
    AccessDeniedError: "; check MODALIGN_QDRANT_API_KEY",
    ExactRefusedError: "; search without --exact, or set search_allow_exact in the collection's strict mode",
    RequestOverRateError: "; raise the rate limit in the collection's strict mode",
    StoreFullError: "; nothing of this request is recorded: make room, then run the same command again",
}


# The same of a refused filter, by the server's words.
FILTER_ADVICE = {
    "Index required": "; filter by indexed fields; a field gets its index when a release is made, by --payload-index "
    "FIELD=KIND",
    "Filter condition limit": "; raise filter_max_conditions in the collection's strict mode: filters of modalign's "
    f"own have up to {OWN_CONDITIONS} conditions, more where condition_max_size cuts them, beside those of --filter",
    "Condition size limit": "; raise condition_max_size in the collection's strict mode, or filter by shorter lists",
}


def advice(kind: type[StoreError], sentence: str) -> str:
    """Return what to do about a refusal in this sentence that nothing can obey; empty: the sentence says it."""
    if kind is FilterRefusedError:
        return next((advice for words, advice in FILTER_ADVICE.items() if words in sentence), "")
    return ADVICE.get(kind, "")


def meaning(sentence: str) -> type[StoreError] | None:
    """Return the kind of refusal that a server's sentence means; None: its status says it."""
    folded = sentence.casefold()
    return next((kind for words, kind in MEANINGS if words.casefold() in folded), None)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one collection allows in a request, as far as it is known.

    Attributes:
        hits: of a search, or points of a page.
        queries: of one request.
        points: of one write.
        ids: of one request that reads or deletes.
        bytes: of a body.
        values: of one condition of a filter; None: any.
        ef: `hnsw_ef` that may be asked for; None: any.
        oversampling: that may be asked for; None: any.
        exact: exact searches and exact counts are answered.
    """

    hits: int = 1 << 15
    queries: int = REQUEST_QUERIES
    points: int = REQUEST_POINTS
    ids: int = 4096
    bytes: int = REQUEST_BYTES
    values: int | None = None
    ef: int | None = None
    oversampling: float | None = None
    exact: bool = True

    def after(self, refusal: StoreError) -> "Limits":
        """Return the limits that are known once the server has refused a request."""
        if isinstance(refusal, ExactRefusedError):
            return replace(self, exact=False)
        if isinstance(refusal, RequestTooLargeError):
            told = LIMIT_BYTES.search(str(refusal))
            return replace(self, bytes=min(self.bytes, int(told[1]))) if told and int(told[1]) else self
        if told := VALUES.search(str(refusal)):
            most = min(int(told[1]), self.values or int(told[1]))
            return replace(self, values=most) if most else self
        told = EXCEEDED.search(str(refusal))
        field = FIELDS.get(told[2]) if told else None
        if told is None or field is None or float(told[1]) < 1:
            return self
        limit: Any = float(told[1]) if field == "oversampling" else int(float(told[1]))
        known = getattr(self, field)
        return replace(self, **{field: limit if known is None else min(known, limit)})


class LimitBook:
    """The limits of each collection, by the name that requests give it. Safe to use from several threads.

    Args:
        unknown: of a collection that has refused nothing yet.
    """

    def __init__(self, unknown: Limits = Limits()) -> None:
        self._unknown = unknown
        self._limits: dict[str, Limits] = {}

    def of(self, name: str) -> Limits:
        """Return what is known of a collection or alias."""
        return self._limits.get(name, self._unknown)

    def learn(self, name: str, refusal: StoreError, before: Limits) -> bool:
        """Keep what a refusal tells of limits; return whether more is known than `before`, when the request was made.

        Another thread may have learned it meanwhile: then the request is made again all the same.
        """
        self._limits[name] = self.of(name).after(refusal)
        return self._limits[name] != before

    def narrow(self, name: str, **fields: int) -> None:
        """Lower fields of the limits of a collection to these numbers."""
        limits = self.of(name)
        self._limits[name] = replace(limits, **{field: min(n, getattr(limits, field)) for field, n in fields.items()})

    def obey(
        self,
        name: str,
        send: Callable[[Limits], Answer],
        *,
        counted: Counted | None = None,
        count: Callable[[Limits], int] = lambda limits: 1,
    ) -> Answer:
        """Send a request, again whenever its refusal tells a limit that was not known.

        Args:
            name: of the collection or alias.
            send: makes the request within the limits it is given, and sends it.
            counted: the field of `Limits` by which `send` cuts the request; None: it cannot be cut.
            count: how many of these `send` sends. If they are too many together, half of them are tried.

        Raises:
            StoreError: as `send`; a refusal that tells no limit, or one that cannot be obeyed.
        """
        while True:
            limits = self.of(name)
            try:
                return send(limits)
            except (RequestRefusedError, RequestTooLargeError) as refusal:
                if self.learn(name, refusal, limits):
                    continue
                if counted is None or count(limits) < 2 or not isinstance(refusal, RequestTooLargeError):
                    raise
                self.narrow(name, **{counted: count(limits) // 2})

    def obey_in_parts(
        self,
        name: str,
        items: Sequence[Item],
        counted: Counted,
        send: Callable[[Sequence[Item], Limits], Answer],
        *,
        item_bytes: int,
        most: int | None = None,
    ) -> Iterator[Answer]:
        """Send `items` in as few requests as are allowed; yield the answer to each.

        Args:
            name: of the collection or alias.
            items: what is sent.
            counted: the field of `Limits` that bounds how many one request has.
            send: sends one request.
            item_bytes: of an item in a request, at most.
            most: items of a request, whatever is allowed.
        """
        start = 0
        while start < len(items):
            left = items[start:]

            def count(limits: Limits, left: Sequence[Item] = left) -> int:
                allowed: int = min(getattr(limits, counted), limits.bytes // item_bytes, most or len(left))
                return max(1, min(allowed, len(left)))

            def send_part(limits: Limits, left: Sequence[Item] = left) -> tuple[int, Answer]:
                part = left[: count(limits)]
                return len(part), send(part, limits)

            sent, answer = self.obey(name, send_part, counted=counted, count=count)
            start += sent
            yield answer


def check_strict_mode(strict: "StrictModeConfigOutput | None", layout: Layout, what: str) -> None:
    """Refuse a layout that strict mode of a new collection would not let be created whole, or searched as it says.

    Raises:
        SettingsError: the message names the limit.
    """
    if strict is None or not strict.enabled:
        return
    most = strict.search_max_oversampling
    if layout.quantization and most is not None and layout.oversampling > most:
        raise SettingsError(
            f"{what}: oversampling {layout.oversampling:g}: strict mode of the server allows {most:g} at most "
            f"(search_max_oversampling); push with --oversampling {max(most, 1):g}, or without quantization"
        )
    count, most_indexes = len(layout.payload_indexes), strict.max_payload_index_count
    if most_indexes is not None and count > most_indexes:
        raise SettingsError(
            f"{what}: {count} payload indexes ({', '.join(layout.payload_indexes)}): strict mode of the server allows "
            f"{most_indexes} at most (max_payload_index_count); leave some out, or raise the limit on the server"
        )


def search_limits(known: Limits, strict: "StrictModeConfigOutput | None") -> SearchLimits:
    """Return what searches may ask for, as refusals and the strict mode of the collection tell."""
    told = SearchLimits()
    if strict is not None and strict.enabled:
        told = SearchLimits(strict.search_max_hnsw_ef, strict.search_max_oversampling)
    ef = min((most for most in (known.ef, told.ef) if most is not None), default=None)
    oversampling = min((m for m in (known.oversampling, told.oversampling) if m is not None), default=None)
    return SearchLimits(ef, oversampling)


def filter_bytes(filter: "Filter | None") -> int:
    """Return the bytes of a filter as JSON, which each query of a request carries."""
    return 0 if filter is None else len(filter.model_dump_json(exclude_none=True))
