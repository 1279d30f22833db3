"""A server that is killed while it switches aliases: each of them leads to the old collection or to the new one."""

import threading
import time
from collections.abc import Iterator

import pytest

from connector.errors import StoreError
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import RetryPolicy
from tests.support.qdrant_nodes import Node
from tests.support.store_contract import config

ALIASES = 300  # the server saves after each, so that the switch takes a while
ROUNDS = 6


@pytest.fixture
def names(own_server: Node, collection: str) -> Iterator[list[str]]:
    """Two collections."""
    names = [f"{collection}-{number}" for number in range(2)]
    own_server.start()
    with own_server.connect() as store:
        for name in names:
            store.create(name, config())
    yield names
    own_server.start()
    with own_server.connect() as store:
        for name in names:
            store.drop(name)


def test_no_alias_is_lost_and_a_repeat_finishes(own_server: Node, names: list[str], collection: str) -> None:
    aliases = [f"{collection}-alias-{number}" for number in range(ALIASES)]
    with own_server.connect() as store:
        started = time.monotonic()
        store.set_aliases(dict.fromkeys(aliases, names[0]))
        duration = time.monotonic() - started
    halves = 0
    for number in range(ROUNDS):
        target = names[(number + 1) % 2]
        with own_server.connect(retry=RetryPolicy(attempts=1)) as store:
            switching = threading.Thread(target=switch, args=(store, aliases, target))
            switching.start()
            time.sleep(duration * (number + 1) / (ROUNDS + 1))
            own_server.kill()
            switching.join()
        own_server.start()
        with own_server.connect() as store:
            present = {alias: at for alias, at in store.aliases().items() if alias in aliases}
            assert sorted(present) == sorted(aliases)
            halves += len(set(present.values())) == 2
            store.set_aliases(dict.fromkeys(aliases, target))
            assert {at for alias, at in store.aliases().items() if alias in aliases} == {target}
    assert halves  # otherwise no kill came in the middle, and nothing was tried


def switch(store: QdrantStore, aliases: list[str], target: str) -> None:
    try:
        store.set_aliases(dict.fromkeys(aliases, target))
    except StoreError:
        return  # the server is gone
