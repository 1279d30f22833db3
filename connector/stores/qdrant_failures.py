"""Failures of requests to a Qdrant server: what a status means, and how several failures are said as one."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import grpc
import httpcore
import httpx
from qdrant_client.http.exceptions import ResponseHandlingException

from connector.errors import (
    AccessDeniedError,
    CollectionNotFoundError,
    DeadlinePassedError,
    RequestRefusedError,
    RequestTooLargeError,
    StoreError,
    StoreUnavailableError,
)
from connector.stores.deadlines import given

TRANSIENT_STATUS = frozenset((408, 429, 500, 502, 503, 504))
# What the others that mean something tell.
KIND_OF_STATUS: Mapping[int, type[StoreError]] = {
    400: RequestRefusedError,
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: CollectionNotFoundError,
    413: RequestTooLargeError,
    422: RequestRefusedError,
}
# What a gRPC status would be in HTTP, where every decision is made once.
HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 412,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.ABORTED: 503,
    grpc.StatusCode.CANCELLED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.DATA_LOSS: 507,
}
NEVER_SENT = (
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
    httpcore.LocalProtocolError,
    httpcore.UnsupportedProtocol,
)
SHOWN = 500  # characters of an answer
# What to do about a server that cannot be reached.
CHECK = (
    "; check that it runs, that MODALIGN_QDRANT_URL names it, and that MODALIGN_QDRANT_TIMEOUT leaves it the time it "
    "needs"
)


def sentence_of(content: bytes) -> str:
    """Return what an answer says is wrong: Qdrant's sentence, without the JSON around it, or the text of a proxy.

    >>> sentence_of(b'{"status": {"error": "Forbidden: Global access is required"}, "time": 0.1}')
    'Forbidden: Global access is required'
    """
    text = content.decode(errors="replace")
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        text = str(json.loads(text)["status"]["error"])
    return text[:SHOWN]


def together(failures: Sequence[StoreUnavailableError]) -> StoreUnavailableError:
    """Return one error that says all failures, of the kind of the last."""
    last = failures[-1]
    texts = [str(failure) for failure in failures]
    message = "; ".join(dict.fromkeys(text.replace(CHECK, "") for text in texts))
    advice = CHECK if any(CHECK in text for text in texts) else ""
    return type(last)(message + advice, last.retry_after)


def no_time_after(failure: StoreUnavailableError) -> DeadlinePassedError:
    """Return the error of a request that failed, and for which no time is left to try it again."""
    return DeadlinePassedError(f"{failure}; {given()} leave no time for another attempt", failure.retry_after)


def timed_out(error: Exception) -> bool:
    """Say whether an error of the client only says that no answer came."""
    source = error.source if isinstance(error, ResponseHandlingException) else error
    if isinstance(source, grpc.Call):  # a server that ran out of time itself says more
        return source.code() is grpc.StatusCode.DEADLINE_EXCEEDED and source.details() == "Deadline Exceeded"
    return isinstance(source, httpx.TimeoutException | httpcore.TimeoutException | grpc.FutureTimeoutError)


def retry_seconds(text: str | None) -> float | None:
    """Read the header Retry-After, which holds seconds or a date; None if it is neither."""
    try:
        seconds = float(text or "")
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text or "") - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, IndexError, OverflowError):  # no date, one without a zone or out of all range
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
