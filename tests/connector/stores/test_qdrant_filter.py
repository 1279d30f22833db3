"""Conditions that a server's version does not have: over gRPC it would ignore them, and every point would match."""

from typing import get_args

import pytest
from qdrant_client import QdrantClient, models

from connector.errors import FilterError
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import Connection
from connector.stores.qdrant_filter import OLDEST_SERVER, SINCE, check_known
from tests.support.errors import raises
from tests.support.filter_contract import NEW_MATCHES

URL = "grpc://127.0.0.1:1"  # where nobody answers: nothing is sent


def store(version: tuple[int, int] | None) -> QdrantStore:
    connection = Connection(
        QdrantClient(host="127.0.0.1", grpc_port=1, prefer_grpc=True, check_compatibility=False), URL
    )
    connection.version = version
    return QdrantStore(connection, uploads=1)


def test_every_condition_of_the_client_is_in_the_table() -> None:
    names = {kind.__name__ for kind in (*get_args(models.Condition), *get_args(models.Match))}
    assert names == SINCE.keys()


@pytest.mark.parametrize("name", SINCE)
def test_a_condition_is_sent_to_versions_that_have_it(name: str) -> None:
    needed = SINCE[name]
    check_known([name], needed, URL)
    check_known([name], (needed[0], needed[1] + 1), URL)
    if needed > OLDEST_SERVER:
        for older in (OLDEST_SERVER, (needed[0], needed[1] - 1), None):
            with raises(FilterError, name, ".".join(map(str, needed)), URL):
                check_known([name], older, URL)


def test_a_condition_that_nobody_knows_is_refused() -> None:
    with raises(FilterError, "MoonPhaseCondition"):
        check_known(["FieldCondition", "MoonPhaseCondition"], (1, 99), URL)


@pytest.mark.parametrize("what", NEW_MATCHES)
@pytest.mark.parametrize("version", [(1, 18), None])
@pytest.mark.parametrize("depth", [0, 1, 5])
def test_what_an_older_server_would_ignore_is_not_sent(what: str, version: tuple[int, int] | None, depth: int) -> None:
    condition = NEW_MATCHES[what][0]()
    for _ in range(depth):
        condition = models.Filter(must_not=[models.Filter(should=[condition])])
    with store(version) as opened, raises(FilterError, URL, "1.18" if version else "1.16"):
        opened.scroll("c", filter=condition)
    with store(version) as opened, raises(FilterError, URL):
        opened.count("c", filter=condition)
