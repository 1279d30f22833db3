"""Searches on a server: cut into requests, within what the server allows, and told where it allows less than wanted."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from qdrant_client import models

from connector.errors import ExactRefusedError
from connector.stores.filter_lowering import with_short_lists
from connector.stores.points import Hit
from connector.stores.qdrant_connection import Connection
from connector.stores.qdrant_limits import LimitBook, Limits, filter_bytes
from connector.stores.search_options import SearchOptions

Number = TypeVar("Number", int, float)

_log = logging.getLogger(__name__)

NUMBER_BYTES = 25  # of a float32 written as JSON, at most: a sign, 17 digits, a point, an exponent, a comma
QUERY_BYTES = 512  # of the JSON around a vector
HITS_AT_ONCE = 1 << 15  # hits of one request together


class Searcher:
    """Searches collections through a connection.

    Args:
        connection: to the server.
        read: calls its client with a consistency, and translates errors.
        limits: of the collections.
        laid_out: returns what is known of a collection or alias; it is asked for every search.
    """

    def __init__(
        self,
        connection: Connection,
        read: Callable[..., Any],
        limits: LimitBook,
        laid_out: Callable[[str], models.CollectionInfo],
    ):
        self._connection = connection
        self._read = read
        self._limits = limits
        self._laid_out = laid_out
        self._told: set[tuple[str, str, float]] = set()

    def search(
        self, name: str, vector_name: str, queries: npt.NDArray[np.floating], k: int, options: SearchOptions
    ) -> list[list[Hit]]:
        """Return up to `k` hits for each query (n, d), best first.

        Raises:
            ExactRefusedError: an exact search is wanted, and the server answers none.
        """
        config = self._laid_out(name).config

        def send(rows: Sequence[int], limits: Limits) -> list[list[Hit]]:
            if options.exact and not limits.exact:
                raise ExactRefusedError(
                    f"{self._connection.url}: collection {name} answers no exact searches, as its strict mode says "
                    "(search_allow_exact)"
                )
            params = self._params(name, k, options, limits, config)
            asked = options._replace(filter=with_short_lists(options.filter, limits.values))
            return self._ask(name, vector_name, queries[list(rows)], k, asked, params, limits.hits)

        number = queries.itemsize if self._connection.grpc else NUMBER_BYTES
        item_bytes = QUERY_BYTES + queries.shape[1] * number + filter_bytes(options.filter)
        parts = self._limits.obey_in_parts(
            name, range(len(queries)), "queries", send, item_bytes=item_bytes, most=max(1, HITS_AT_ONCE // k)
        )
        return [hits for part in parts for hits in part]

    def _params(
        self, name: str, k: int, options: SearchOptions, limits: Limits, config: models.CollectionConfig
    ) -> models.SearchParams:
        """Return how a search is made, within the limits; tell once where they lower what was wanted."""
        if options.exact:  # no graph and no quantized vectors: strict mode would limit settings that mean nothing
            return models.SearchParams(exact=True)
        ef = self._allowed(name, "hnsw_ef", "search_max_hnsw_ef", options.ef, limits.ef)
        if k > limits.hits:  # every page of hits has to come from the same search
            wanted = max(k, ef or config.hnsw_config.ef_construct)
            ef = wanted if limits.ef is None else min(wanted, limits.ef)
        quantization = None
        if config.quantization_config is not None:
            oversampling = None
            if options.quantized:
                wanted_times, most = options.oversampling, limits.oversampling
                oversampling = self._allowed(name, "oversampling", "search_max_oversampling", wanted_times, most)
            quantization = models.QuantizationSearchParams(
                ignore=not options.quantized, rescore=options.rescore, oversampling=oversampling
            )
        return models.SearchParams(exact=False, hnsw_ef=ef, quantization=quantization)

    def _allowed(
        self, name: str, setting: str, limit: str, wanted: Number | None, most: Number | None
    ) -> Number | None:
        if wanted is None or most is None or wanted <= most:
            return wanted
        if (name, setting, most) not in self._told:
            self._told.add((name, setting, most))
            _log.warning(
                "collection %s is searched with %s %s instead of %s, so fewer of the right items may be found: strict "
                "mode of the server allows no more (%s)",
                name,
                setting,
                most,
                wanted,
                limit,
            )
        return most

    def _ask(
        self,
        name: str,
        vector_name: str,
        queries: npt.NDArray[np.floating],
        k: int,
        options: SearchOptions,
        params: models.SearchParams,
        most: int,
    ) -> list[list[Hit]]:
        """Search in one request; where more hits are wanted than `most`, in one for each page of them.

        Pages of an HNSW search may overlap, so hits are told apart by their ids.
        """
        found: list[dict[str, Hit]] = [{} for _ in queries]
        unfinished, offset = list(range(len(queries))), 0
        while unfinished:
            limit = min(k, most)
            requests = [
                models.QueryRequest(
                    query=models.NearestQuery(nearest=query),
                    using=vector_name,
                    filter=options.filter,
                    limit=limit,
                    offset=offset or None,
                    params=params,
                    with_payload=options.fields,
                )
                for query in queries[unfinished].tolist()
            ]
            query = partial(self._connection.client.query_batch_points, name, requests)  # takes a consistency
            answers = self._read(name, query, consistent=options.consistent)
            left = []
            for row, answer in zip(unfinished, answers, strict=True):
                for p in answer.points:
                    found[row].setdefault(str(p.id), Hit(str(p.id), p.score, p.payload or {}))
                # A page without the hits that replicas do not find alike is short, and still not the last.
                more = bool(answer.points) if options.consistent else len(answer.points) == limit
                if more and limit < k and len(found[row]) < k:
                    left.append(row)
            unfinished, offset = left, offset + limit
        return [list(hits.values())[:k] for hits in found]
