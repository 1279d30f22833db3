"""Which store an address names."""

from pathlib import Path
from typing import TYPE_CHECKING

from connector.errors import SettingsError
from connector.safe_text import redacted
from connector.stores.contract import Store

if TYPE_CHECKING:
    from connector.settings import Settings


def open_store(settings: "Settings") -> Store:
    """Open the store that the settings name.

    Raises:
        SettingsError: the URL names no store.
        StoreError: it cannot be opened.
    """
    scheme, _, rest = settings.store_url.partition(":")
    if scheme == "edge" and rest:
        from connector.stores.edge import EdgeStore  # loads the engine, which a server's user need not have

        return EdgeStore(rest)
    if scheme in ("http", "https", "grpc", "grpcs") and rest.startswith("//"):
        from connector.stores.qdrant import QdrantStore  # loads the client, which takes a second

        return QdrantStore.connect(
            settings.store_url, api_key=settings.api_key, ca_file=settings.ca_file, timeout=settings.timeout
        )
    raise SettingsError(
        f"store {redacted(settings.store_url)!r}: expected edge:DIRECTORY, http(s)://HOST:PORT or grpc(s)://HOST:PORT"
    )


def url_of(settings: "Settings") -> str:
    """Return the URL that the store of these settings has, without opening it."""
    scheme, _, rest = settings.store_url.partition(":")
    return f"edge:{Path(rest).absolute()}" if scheme == "edge" else redacted(settings.store_url)
