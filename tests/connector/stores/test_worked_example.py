"""The worked example of CONTRIBUTING.md: a store that is added as it says keeps the contract, and serves a push."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from connector.search.retriever import Retriever
from connector.settings import Settings
from connector.stores import opening
from connector.stores.contract import Store
from connector.stores.opening import STORES, StoreKind, url_of
from tests.support.filter_contract import FilterContract
from tests.support.store_contract import OpenStore, StoreContract
from tests.support.world import COLLECTION, World, alignment, cards, embedded, latent, pairs

CONTRIBUTING = Path(__file__).parents[3] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def example() -> Iterator[Callable[[str], Store]]:
    """The class that the code of CONTRIBUTING defines."""
    blocks = re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "class MemoryStore" in block)
    module = ModuleType("worked_store")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, module.__name__, module)
        exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
        yield module.MemoryStore


@pytest.fixture(scope="module")
def open_store(example: Callable[[str], Store]) -> OpenStore:
    return lambda: example("example")


@pytest.fixture(scope="module")
def keeps_settings() -> bool:
    return True


@pytest.fixture(scope="module")
def builds_graphs() -> bool:
    return False


class TestStore(StoreContract):
    """Collections, points, searches and aliases."""


class TestFilters(FilterContract):
    """Filters."""


def test_one_entry_adds_it(example: Callable[[str], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = StoreKind("memory:NAME", lambda settings: example(settings.store_url.removeprefix("memory:")), str)
    monkeypatch.setattr(opening, "STORES", {**STORES, "memory:": kind})
    settings = Settings(tmp_path, "memory:mine", "sqlite://")
    with opening.open_store(settings) as store:
        assert store.url == url_of(settings) == "memory:mine"
        world = World(tmp_path, store)
        with world.provenance:
            world.alignment()
            images, texts = pairs(30, noise=0.3)
            world.push(world.set("s", images, texts), metrics=["euclid"])
            X = embedded("text", latent(5, seed=9), noise=0.2)
            retriever = Retriever.open(world.provenance, store, COLLECTION)
            results = retriever.search_embeddings("text", X, 4, encoder=cards()["text"].fingerprint)
            items = alignment().project("image", images.vectors)
            distances = np.linalg.norm(alignment().project("text", X)[:, None] - items[None], axis=2)
            for result, row in zip(results, distances, strict=True):
                assert [hit.key for hit in result] == [str(number) for number in np.argsort(row)[:4]]
