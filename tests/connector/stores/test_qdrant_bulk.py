"""Where a server listens for gRPC beside its REST address."""

import pytest

from connector.stores.qdrant_bulk import grpc_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://db", "grpc://db:6334"),
        ("http://db:6333/", "grpc://db:6334"),
        ("https://db.example", "grpcs://db.example:6334"),
        ("http://[::1]:7000", "grpc://[::1]:7001"),
    ],
)
def test_it_is_the_port_after_that_of_rest(url: str, expected: str) -> None:
    assert grpc_url([url]) == expected


@pytest.mark.parametrize(
    "urls",
    [
        ["http://db:6333", "http://other:6333"],
        ["http://db/qdrant"],
        ["http://user:word@db"],
        ["http://db:65535"],
        ["https://db:443"],
        ["http://db:80"],
        ["grpc://db:6334"],
    ],
)
def test_it_is_not_known_behind_proxies_of_several_addresses_and_of_grpc(urls: list[str]) -> None:
    assert grpc_url(urls) is None
