"""A Qdrant server in strict mode: the failing server, with the refusals that Qdrant 1.18.3 was recorded with."""

from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from tests.support.faulty_server import FaultyServer, RefusedError, Request


@dataclass
class StrictMode:
    """The limits of every collection; None: there is none."""

    max_query_limit: int | None = None
    search_max_batchsize: int | None = None
    upsert_max_batchsize: int | None = None
    search_max_hnsw_ef: int | None = None
    search_max_oversampling: float | None = None
    search_allow_exact: bool = True
    rate_capacity: int | None = None
    max_points_count: int | None = None


class StrictServer(FaultyServer):
    """The server. Change `strict` to change its limits."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.strict = StrictMode()

    @override
    def carry_out(self, request: Request, *, half: bool = False) -> Any:
        self._check(request.method, request.path.rpartition("/points")[2], request.body or {})
        return super().carry_out(request, half=half)

    def _check(self, method: str, what: str, body: dict[str, Any]) -> None:
        searches = body.get("searches", [])
        self._limit(len(searches), self.strict.search_max_batchsize, "search batch size")
        for search in searches:
            params = search["params"]
            self._limit(search["limit"], self.strict.max_query_limit, "limit")
            self._exact(params["exact"])
            self._limit(
                (params.get("quantization") or {}).get("oversampling"),
                self.strict.search_max_oversampling,
                "oversampling",
            )
            self._limit(params.get("hnsw_ef"), self.strict.search_max_hnsw_ef, "hnsw_ef")
        if what == "/scroll":
            self._limit(body["limit"], self.strict.max_query_limit, "limit")
        if what == "/count":
            self._exact(body["exact"])
        if method == "PUT" and "batch" in body:
            count = len(body["batch"]["ids"])
            self._limit(count, self.strict.upsert_max_batchsize, "upsert limit")
            if self.strict.max_points_count is not None:
                raise RefusedError(
                    400, f"Bad request: Max points count limit of {self.strict.max_points_count} reached!"
                )
            self._rate(count, "Write")
        elif what == "/delete":
            self._rate(len(body["points"]), "Write")
        else:
            self._rate(len(searches) or len(body.get("ids", [])), "Read")

    def _limit(self, value: float | None, limit: float | None, name: str) -> None:
        if value is not None and limit is not None and value > limit:
            raise RefusedError(
                400,
                f'Bad request: Limit exceeded {value:g} > {limit:g} for "{name}". '
                f'Help: Reduce the "{name}" parameter to or below {limit:g}.',
            )

    def _exact(self, wanted: bool) -> None:
        if wanted and not self.strict.search_allow_exact:
            raise RefusedError(400, "Bad request: Exact search disabled!. Help: Set exact=false.")

    def _rate(self, cost: int, kind: str) -> None:
        if self.strict.rate_capacity is not None and cost > self.strict.rate_capacity:
            raise RefusedError(
                429,
                f"Rate limiting exceeded: {kind} rate limit exceeded, request larger than rate limiter capacity, "
                "please try to split your request",
            )
