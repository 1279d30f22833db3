"""A connection to a Qdrant server: made from a URL, with our own retries and our own exceptions.

The client retries immediately, without end, and on every error. Here the client never retries: `Connection.call`
retries transient failures, with exponential back-off and jitter or after the wait that the server asks for.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import grpc
import httpx
import stamina
from pydantic import ValidationError
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse
from typing_extensions import override

from connector.errors import (
    CollectionNotFoundError,
    DeadlinePassedError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
)
from connector.safe_text import redacted, split_urls, without_secrets
from connector.settings import REQUEST_SECONDS
from connector.stores.deadlines import deadline, given, shortened
from connector.stores.qdrant_address import check_address, wrong_address
from connector.stores.qdrant_clients import make_client, secrets_of
from connector.stores.qdrant_failover import Addresses
from connector.stores.qdrant_failures import (
    CHECK,
    HTTP_STATUS,
    KIND_OF_STATUS,
    NEVER_SENT,
    TRANSIENT_STATUS,
    no_time_after,
    retry_seconds,
    sentence_of,
    timed_out,
    together,
)
from connector.stores.qdrant_limits import advice, meaning

T = TypeVar("T")

_log = logging.getLogger(__name__)
_retrying: ContextVar[bool] = ContextVar("retrying", default=False)


class _NotOurs(logging.Filter):
    """Drops the line that stamina writes of each retry of ours: it says neither what failed nor where."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return not _retrying.get()


logging.getLogger("stamina").addFilter(_NotOurs())


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a failed request is retried. Times are in seconds.

    Attributes:
        attempts: how often a request is sent, the first time included.
        initial_backoff, max_backoff: the wait before the second attempt, and what doubling it is capped at.
        jitter: each wait grows by a random time up to this, so that clients do not return together.
        max_retry_after: the longest wait that a server may ask for by `Retry-After`.
        timeout: no attempt begins after so long.
    """

    attempts: int = 10
    initial_backoff: float = 0.2
    max_backoff: float = 15.0
    jitter: float = 1.0
    max_retry_after: float = 60.0
    timeout: float = 120.0


REPORT_SECONDS = 10.0  # how often waits for a server are told of
SHOWN = 300  # characters of a failure in the line that tells of a wait

# A mistyped URL should be known in seconds; a server that starts has them too.
ATTEMPTS_TO_CONNECT = 5


class Connection:
    """A client with its addresses, its secrets and its retry policy.

    Args:
        client: of the first address.
        url: the first address.
        others: clients of other addresses of the same cluster, by URL.

    Attributes:
        client: the client; call its methods through `call`.
        addresses: at which the client sends its requests.
        grpc: requests go over gRPC; over REST otherwise.
        retry: how transient failures are retried.
        version: of the server, such as (1, 19); None: unknown.
        timeout: seconds that a request may take.
    """

    def __init__(
        self,
        client: QdrantClient,
        url: str,
        *,
        others: Mapping[str, QdrantClient] = MappingProxyType({}),
        retry: RetryPolicy = RetryPolicy(),
        secrets: tuple[str, ...] = (),
        timeout: int = REQUEST_SECONDS,
    ):
        self.addresses = Addresses({url: client, **others})
        self.client = self.addresses.client
        self.grpc = url.lower().startswith("grpc")
        self.retry = retry
        self.version: tuple[int, int] | None = None
        self.timeout = timeout
        self._secrets = secrets
        self._turn = threading.Lock()
        self._told = -math.inf

    @property
    def url(self) -> str:
        """The address in use, without its password."""
        return redacted(self.addresses.in_use[0])

    def call(self, operation: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call the client, translate its errors, and retry transient ones, until the deadline that holds.

        Where the server says when to come back, one request of this connection waits for that at a time: several would
        take the time from each other, and one of them would have waited too long.
        """

        def once() -> T:
            return self.translated(operation, *args, **options)

        began = time.monotonic()
        try:
            return once()
        except DeadlinePassedError:
            raise
        except StoreUnavailableError as error:
            failed = error
        token = _retrying.set(True)
        try:
            return self._called(once, failed, began)
        finally:
            _retrying.reset(token)

    def _called(self, once: Callable[[], T], failed: StoreUnavailableError, began: float) -> T:
        """Go on after the first attempt `failed`, which `began` at that time by the monotonic clock."""
        try:
            return self._retried(_failing_first(failed, once), told=False, began=began)
        except StoreUnavailableError as error:
            if error.retry_after is None:
                raise
            refusal = error
        with self._my_turn(refusal) as waited:
            # If another request has waited meanwhile, it has spent the time that was asked for.
            again = once if waited else _failing_first(refusal, once)
            return self._retried(again, told=True, began=time.monotonic())

    @contextmanager
    def _my_turn(self, refusal: StoreUnavailableError) -> Iterator[bool]:
        """After a `refusal`, wait until no other request waits for a time that the server has told.

        Yields whether one did.
        """
        free = self._turn.acquire(blocking=False)
        if not free:
            left = shortened(None)
            if not self._turn.acquire(timeout=-1 if left is None else left):
                raise no_time_after(refusal)
        try:
            yield not free
        finally:
            self._turn.release()

    def _retried(self, once: Callable[[], T], *, told: bool, began: float) -> T:
        """Call `once` again and again while it fails for a time; `told`: also if the server says for how long."""
        retry = self.retry
        failed: StoreUnavailableError | None = None

        def wait(error: Exception) -> bool | float:
            if not isinstance(error, StoreUnavailableError) or isinstance(error, DeadlinePassedError):
                return False
            if error.retry_after is None:
                return True
            return min(error.retry_after, retry.max_retry_after) if told else False

        for attempt in stamina.retry_context(
            on=wait,
            attempts=retry.attempts,
            timeout=max(0.001, began + retry.timeout - time.monotonic()),
            wait_initial=retry.initial_backoff,
            wait_max=retry.max_backoff,
            wait_jitter=retry.jitter,
        ):
            with attempt:
                try:
                    return once()
                except DeadlinePassedError as error:
                    if failed:
                        raise together([failed, error]) from error
                    raise
                except StoreUnavailableError as error:
                    failed, end, holds = error, began + retry.timeout, deadline()
                    if wait(error) is not False and attempt.num < retry.attempts:
                        seconds = min(retry.max_retry_after, error.retry_after or attempt.next_wait)
                        if holds and seconds + (retry.jitter if error.retry_after is None else 0) >= holds.left:
                            raise no_time_after(error) from error
                        self._tell(error, seconds, attempt.num, min(end, holds.at) if holds else end)
                    raise
        raise AssertionError("unreachable: the last attempt raises")

    def _tell(self, error: StoreUnavailableError, seconds: float, attempt: int, until: float) -> None:
        """Say that a request failed and is tried again; once in a while, whatever number of requests fail."""
        now = time.monotonic()
        if now - self._told < REPORT_SECONDS:
            return
        self._told = now
        last = datetime.now().astimezone() + timedelta(seconds=until - now)
        _log.warning(
            "%s; trying again in %.1f s (attempt %d of %d, the last one before %s)",
            " ".join(str(error).split())[:SHOWN],
            seconds,
            attempt + 1,
            self.retry.attempts,
            f"{last:%H:%M:%S}",
        )

    def translated(self, operation: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call the client at the first address that answers, once at each, as `once`.

        If none does, the error says how each of them failed.
        """
        failures: list[StoreUnavailableError] = []
        for left in reversed(range(len(self.addresses))):
            url = self.addresses.in_use[0]
            self._check_time(failures)
            try:
                self.addresses.check()
                answer = self.once(operation, *args, **options)
                self.addresses.tell()
                return answer
            except StoreUnavailableError as error:
                failures.append(error)
                if len(self.addresses) > 1 and error.retry_after is None:
                    self.addresses.leave(url, error)
                if not left or error.retry_after is not None or isinstance(error, DeadlinePassedError):
                    if len(failures) > 1:
                        raise together(failures) from error
                    raise
        raise AssertionError("unreachable: the last address answers or raises")

    def _check_time(self, failures: Sequence[StoreUnavailableError] = ()) -> None:
        """Raise a `DeadlinePassedError` if no time is left to ask the server, after these failures."""
        holds = deadline()
        if holds and holds.left <= 0:
            passed = "have passed" if failures else "had passed before; what a command does first takes part of them"
            unasked = DeadlinePassedError(f"{self.url} was not asked: {given()} {passed}")
            raise together([*failures, unasked]) if failures else unasked

    def once(self, operation: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call the client once and turn its errors into a `StoreError`. The only place that does.

        The client's error is the cause of ours, unless it would show a secret.
        """
        self._check_time()
        holds = deadline()
        try:
            return operation(*args, **options)
        except StoreError:
            raise
        except Exception as error:
            failure = self._translation(error)
            if failure is None:
                raise
            if holds and holds.left <= 0 and isinstance(failure, StoreUnavailableError):
                silent = DeadlinePassedError(f"{self.url} did not answer within {given()}")
                failure = silent if timed_out(error) else no_time_after(failure)
            cause = error
        if any(secret in f"{cause} {cause!r}" for secret in self._secrets):
            raise failure
        raise failure from cause

    def _translation(self, error: Exception) -> StoreError | None:  # noqa: PLR0911  a table of cases
        """Return our error for an error of the client, most specific first; None if it is not the client's."""
        match error:
            case UnexpectedResponse():
                content = sentence_of(error.content)
                return self._answered(error.status_code or 0, content, retry_seconds(error.headers.get("Retry-After")))
            case ResponseHandlingException(source=ValidationError()):
                return self._no_qdrant(error)
            case ResponseHandlingException() | httpx.TransportError():
                source = error.source if isinstance(error, ResponseHandlingException) else error
                return self._unreachable(source)
            case ResourceExhaustedResponse():
                return self._overloaded(str(error), max(0.0, error.retry_after_s))
            case QdrantException():  # the client's complaint about a Retry-After that is a date, which it quotes
                return self._overloaded(str(error), retry_seconds(str(error).partition("integer: ")[2]))
            case grpc.RpcError():
                return self._rpc_failed(error)
            case ApiException() | grpc.FutureTimeoutError() | grpc.FutureCancelledError():
                return StoreError(self._shown(f"{self.url}: {error}"))
            case json.JSONDecodeError() | UnicodeDecodeError() | AssertionError():
                return self._no_qdrant(error)  # the client asserts that a response holds a result
            case ValueError() if "not found" in str(error):  # in memory, the client's word for missing collections
                return CollectionNotFoundError(self._shown(f"{self.url}: {error}"))
            case ValueError():  # the client's word for bad arguments
                return StoreError(self._shown(f"{self.url}: {error}"))
        return None

    def _answered(
        self, status: int, content: str, retry_after: float | None = None, *, name: str | None = None
    ) -> StoreError:
        """Return the error for an HTTP status; `name` is the name of the status in gRPC."""
        message = self._shown(f"{self.url} answered {name or status}: {content}")
        kind = meaning(content)
        if kind is None and status in TRANSIENT_STATUS:
            return StoreUnavailableError(message, retry_after)
        kind = kind or KIND_OF_STATUS.get(status, StoreError)
        return kind(message + advice(kind, content))

    def _rpc_failed(self, error: grpc.RpcError) -> StoreError:
        """Return the error for a gRPC status."""
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        details = (error.details() if isinstance(error, grpc.Call) else "") or ""
        if code is grpc.StatusCode.UNAVAILABLE or wrong_address(self.url, details):
            return self._unreachable(details)
        return self._answered(HTTP_STATUS[code], details, name=code.name)

    def _unreachable(self, why: object) -> StoreError:
        """Return the error for a request without a response."""
        if wrong := wrong_address(self.url, str(why)):
            return StoreError(f"{self.url} {wrong}")
        perhaps = (
            "; write grpcs:// if the port speaks TLS"
            if self.url.startswith("grpc://") and "Socket closed" in str(why)
            else ""
        )
        message = self._shown(f"{self.url} cannot be reached: {why}{perhaps}{CHECK}")
        if isinstance(why, RuntimeError):  # what httpx says of a client that was closed
            return StoreError(self._shown(f"{self.url} is closed: {why}"))
        never = isinstance(why, NEVER_SENT)
        return StoreError(message) if never else StoreUnavailableError(message)

    def _overloaded(self, why: str, retry_after: float | None) -> StoreError:
        return StoreUnavailableError(self._shown(f"{self.url} asks for fewer requests: {why}"), retry_after)

    def _no_qdrant(self, error: Exception) -> StoreError:
        return StoreError(
            self._shown(
                f"{self.url} did not answer as Qdrant does ({error}); check that MODALIGN_QDRANT_URL names its HTTP "
                "port, or its gRPC port after grpc://"
            )
        )

    def _shown(self, text: str) -> str:
        """Remove the secrets from a message: a proxy may echo a request."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return without_secrets(text)


def _failing_first(error: StoreUnavailableError, once: Callable[[], T]) -> Callable[[], T]:
    """Return `once`, the first call of which raises an error that is known already."""
    known = [error]

    def attempt() -> T:
        if known:
            raise known.pop()
        return once()

    return attempt


def connected(
    url: str,
    *,
    api_key: str | None = None,
    ca_file: Path | None = None,
    timeout: int = REQUEST_SECONDS,
    retry: RetryPolicy = RetryPolicy(),
) -> Connection:
    """Make a client for the server at `url`, or for a cluster at several with commas between; send no request yet.

    The default port is 6333, and 6334 for gRPC. User and password in an HTTP URL are sent as basic authentication.

    Raises:
        SettingsError: a URL, the key or the file is invalid.
    """
    if api_key and not (api_key.isascii() and api_key.isprintable() and api_key == api_key.strip()):
        raise SettingsError(
            "MODALIGN_QDRANT_API_KEY: expected printable ASCII without white space around it, as a header can carry; "
            "got other text"
        )
    first, *others = split_urls(url)
    for each in (first, *others):
        check_address(each)
    if len({each.partition(":")[0].lower().removesuffix("s") for each in (first, *others)}) > 1:
        raise SettingsError(f"MODALIGN_QDRANT_URL: expected one protocol for all addresses, got {redacted(url)}")
    clients = {each: make_client(each, api_key=api_key, ca_file=ca_file, timeout=timeout) for each in (first, *others)}
    secrets = [api_key, *(secret for each in clients for secret in secrets_of(each))]
    return Connection(
        clients.pop(first),
        first,
        others=clients,
        retry=retry,
        secrets=tuple(dict.fromkeys(filter(None, secrets))),
        timeout=timeout,
    )
