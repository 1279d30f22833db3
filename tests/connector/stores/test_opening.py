"""The registry of stores: which store a URL names."""

from pathlib import Path

import pytest

from connector.errors import SettingsError
from connector.settings import Settings
from connector.stores.edge import EdgeStore
from connector.stores.opening import STORES, open_store, url_of
from connector.stores.qdrant import QdrantStore
from tests.support.errors import raises
from tests.support.qdrant_nodes import Server


def test_a_directory(tmp_path: Path) -> None:
    settings = Settings(tmp_path, f"edge:{tmp_path / 'new' / 'store'}", "sqlite://")
    with open_store(settings) as store:
        assert isinstance(store, EdgeStore)
        assert store.url == url_of(settings) == f"edge:{tmp_path / 'new' / 'store'}"
        assert store.collections() == []


@pytest.mark.parametrize("beginning", STORES)
def test_a_url_of_each_kind_begins_as_its_form_does(beginning: str) -> None:
    assert STORES[beginning].form.startswith(beginning)


@pytest.mark.parametrize(
    ("url", "example"),
    [
        ("localhost:6333", "http://localhost:6333"),
        ("db", "http://db"),
        ("a:6333, b:6333", "http://a:6333,http://b:6333"),
        ("me:s3cret@db:6333", "http://***@db:6333"),
    ],
)
def test_an_address_without_a_scheme_says_so_and_what_it_would_be_with_one(
    tmp_path: Path, url: str, example: str
) -> None:
    with raises(SettingsError, "scheme", example, *(kind.form for kind in STORES.values())):
        open_store(Settings(tmp_path, url, "sqlite://"))


@pytest.mark.parametrize("url", ["", "edge:", "http://", "qdrant", "ftp://host", "http:host", "localhost:6333"])
def test_what_names_no_store(tmp_path: Path, url: str) -> None:
    for action in (open_store, url_of):
        with raises(SettingsError, *(kind.form for kind in STORES.values())):
            action(Settings(tmp_path, url, "sqlite://"))


def test_a_server(tmp_path: Path, qdrant_server: Server) -> None:
    settings = Settings(tmp_path, qdrant_server.url, "sqlite://", api_key=qdrant_server.api_key)
    with open_store(settings) as store:
        assert isinstance(store, QdrantStore)
        assert store.url == url_of(settings)
        assert store.collections() == sorted(store.collections())
