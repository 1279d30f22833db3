"""Clients of a Qdrant server: made from a URL, over REST or gRPC, whose requests end at the deadline that holds."""

import logging
import math
import ssl
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

import httpx
from qdrant_client import QdrantClient

from connector.errors import SettingsError
from connector.safe_text import redacted
from connector.stores.consistent_client import ConsistentClient
from connector.stores.deadlines import shortened
from connector.stores.qdrant_address import FORMS
from connector.stores.request_deadline import DeadlineTransport

_log = logging.getLogger(__name__)

GRPC_PORT = 6334
GRPC_CHANNELS = 3
# A server sends a compressed answer in pieces. The last one waits until the first is acknowledged, which the system may
# put off for 40 ms: ten times as long as a search takes.
UNCOMPRESSED = {"Accept-Encoding": "identity"}
ANSWER_SECONDS = 1  # to answer, beyond the time that a server is told to wait
LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


def make_client(url: str, *, api_key: str | None, ca_file: Path | None, timeout: int) -> QdrantClient:
    """Make a client of the server at `url`.

    Args:
        url: judged by `connector.stores.qdrant_address.check_address`.
        api_key: of the server.
        ca_file: PEM file of the authority to trust instead of the system's.
        timeout: seconds a request may take.

    Raises:
        SettingsError: the URL or the file is invalid.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        # A server that is not there has to be known by the deadline too; to connect over gRPC takes this timeout.
        timeout = math.ceil(shortened(timeout) or timeout)
        options: dict[str, Any] = {"api_key": api_key, "timeout": timeout, "check_compatibility": False}
        if parts.scheme in ("grpc", "grpcs"):
            options |= _grpc(parts.hostname or "", port or GRPC_PORT, parts.scheme == "grpcs", ca_file)
        elif parts.scheme in ("http", "https"):
            options |= {"url": parts.geturl(), "verify": _trusting(ca_file), "event_hooks": {"request": [_shorten]}}
            options["metadata"] = UNCOMPRESSED
            if not getproxies():  # of the environment; httpx goes through them itself, without a deadline
                options["transport"] = DeadlineTransport(options["verify"])
            if parts.username is not None:
                options["auth"] = (unquote(parts.username), unquote(parts.password or ""))
        else:
            raise ValueError
        if api_key and parts.scheme in ("http", "grpc") and parts.hostname not in LOOPBACK:
            warn_of_open_key()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Api key is used with an insecure connection", UserWarning)
            client = ConsistentClient(**options)
        if parts.scheme.startswith("grpc"):
            _shorten_calls(client)
    except SettingsError:
        raise
    except ValueError:  # its text may hold the URL with the password in it
        raise SettingsError(f"store {redacted(url)!r}: expected {FORMS}") from None
    return client


@cache
def warn_of_open_key() -> None:
    """Say once that the key is not encrypted; one that never leaves the machine need not be."""
    _log.warning("MODALIGN_QDRANT_API_KEY travels unencrypted; write https:// or grpcs:// if the server speaks TLS")


def secrets_of(url: str) -> tuple[str | None, ...]:
    """Return what must not be shown of a URL, as written there and decoded; None or empty: there is none."""
    parts = urlsplit(url)
    token = parts.username if parts.password is None else None  # https://TOKEN@host
    return unquote(parts.password or ""), parts.password, token, unquote(token or "")


def _grpc(host: str, port: int, encrypted: bool, ca_file: Path | None) -> dict[str, Any]:
    if not host:
        raise ValueError
    options: dict[str, Any] = {"host": f"[{host}]" if ":" in host else host, "grpc_port": port, "https": encrypted}
    if encrypted and ca_file:
        _trusting(ca_file)  # gRPC would find out with the first request, and say something else
        options["grpc_options"] = {"root_certificates": ca_file.read_bytes()}
    return {**options, "prefer_grpc": True, "pool_size": GRPC_CHANNELS}


def _shorten(request: httpx.Request) -> None:
    """Let a request of httpx end at the deadline that holds where it is made.

    The client waits exactly as long as it tells a server to wait: too short for the answer that says so.
    """
    more = ANSWER_SECONDS if "timeout" in request.url.params else 0
    timeouts = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {name: shortened(s if s is None else s + more) for name, s in timeouts.items()}


def _shorten_calls(client: QdrantClient) -> None:
    """Let every call of gRPC end at the deadline that holds where it is made."""

    def ending(call: Callable[..., Any]) -> Callable[..., Any]:
        def with_deadline(request: Any, timeout: float | None = None, **options: Any) -> Any:
            return call(request, timeout=shortened(timeout), **options)

        return with_deadline

    for _ in range(GRPC_CHANNELS):  # the client has a stub for each, and hands out one after the other
        for stub in (client.grpc_points, client.grpc_collections):
            for name, call in vars(stub).items():
                setattr(stub, name, ending(call))


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an SSLError is one
        raise SettingsError(f"MODALIGN_QDRANT_CA_FILE: {ca_file} cannot be read as PEM: {error}") from error
