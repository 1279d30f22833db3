"""The registry of stores: which one a URL names. To add a store, add an entry to `STORES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from connector.errors import SettingsError
from connector.safe_text import UNREADABLE, redacted
from connector.stores import edge_files

if TYPE_CHECKING:
    from connector.settings import Settings
    from connector.stores.contract import Store


@dataclass(frozen=True, slots=True)
class StoreKind:
    """A kind of store.

    Attributes:
        form: how its URLs look, for people.
        open: opens the store that the settings name; raises a `StoreError` if that fails.
        url: turns a URL into the `Store.url` that its store will have: without secrets, the same each time.
        shared: several processes may have it open at once.
        closed_points: of a store that is not shared, given its URL: how many points its collections hold, by their
            names, as far as that is known without opening it.
    """

    form: str
    open: Callable[["Settings"], "Store"]
    url: Callable[[str], str]
    shared: bool = True
    closed_points: Callable[[str], Mapping[str, int]] = lambda url: {}


def _open_edge(settings: "Settings") -> "Store":
    from connector.stores.edge import EdgeStore  # loads the engine, which users of a server need not have

    return EdgeStore(settings.store_url[len("edge:") :])


def _edge_url(url: str) -> str:
    return f"edge:{Path(url[len('edge:') :]).absolute()}"


def _closed_edge_points(url: str) -> Mapping[str, int]:
    return edge_files.closed_points(Path(url.removeprefix("edge:")))


def _connect(settings: "Settings") -> "Store":
    from connector.stores.qdrant import QdrantStore  # loads the client, which takes a second

    return QdrantStore.connect(
        settings.store_url, api_key=settings.api_key, ca_file=settings.ca_file, timeout=settings.timeout
    )


# By how the URL begins.
STORES: Mapping[str, StoreKind] = {
    "edge:": StoreKind("edge:DIRECTORY", _open_edge, _edge_url, shared=False, closed_points=_closed_edge_points),
    "http://": StoreKind("http://HOST:PORT", _connect, redacted),
    "https://": StoreKind("https://HOST:PORT", _connect, redacted),
    "grpc://": StoreKind("grpc://HOST:PORT", _connect, redacted),
    "grpcs://": StoreKind("grpcs://HOST:PORT", _connect, redacted),
}


def open_store(settings: "Settings") -> "Store":
    """Open the store that the settings name.

    Raises:
        SettingsError: the URL names no store.
        StoreError: it cannot be opened.
    """
    return _kind(settings.store_url).open(settings)


def open_shared(url: str) -> "Store":
    """Open the store at `url` beside the process that named it, with the key and certificates of this environment.

    Raises: as `open_store`.
    """
    from connector.settings import Settings  # which only needs to be known here

    return open_store(Settings.load(home=Path.cwd(), qdrant_url=url, database_url="sqlite://"))


def url_of(settings: "Settings") -> str:
    """Return the `Store.url` of the store that the settings name, without opening it.

    Raises:
        SettingsError: the URL names no store.
    """
    return _kind(settings.store_url).url(settings.store_url)


def is_shared(settings: "Settings") -> bool:
    """Say whether several processes may have the store open at once that the settings name.

    Raises:
        SettingsError: the URL names no store.
    """
    return _kind(settings.store_url).shared


def closed_points(settings: "Settings") -> Mapping[str, int]:
    """Return how many points the collections of a store hold that is not shared, by name, without opening it.

    Raises:
        SettingsError: the URL names no store.
        StoreError: the store is damaged.
    """
    return _kind(settings.store_url).closed_points(settings.store_url)


def _kind(url: str) -> StoreKind:
    for beginning, kind in STORES.items():
        if url.lower().startswith(beginning) and url.lower() != beginning:
            return kind
    forms = ", ".join(kind.form for kind in STORES.values())
    if guess := _with_scheme(url):
        raise SettingsError(
            f"store {guess.replace('http://', '')!r}: a scheme is missing; expected one of {forms}; for example {guess}"
        )
    raise SettingsError(f"store {redacted(url)!r}: expected one of {forms}")


def _with_scheme(url: str) -> str:
    """Return addresses without schemes with one each, and no secrets; empty: they are none."""
    if "://" in url:
        return ""
    guess = redacted(",".join(f"http://{address.strip()}" for address in url.split(",")))
    return "" if UNREADABLE in guess else guess
