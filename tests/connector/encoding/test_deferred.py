"""Encoders of a set that exists load when something is to be encoded: when that is, and what is refused then."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from alignment.errors import DeviceError, EmbeddingSetError
from alignment.modality import MODALITIES, Modality
from alignment.sets.cards import SetCard
from connector.encoding import loading
from connector.encoding.embedding_sets import encoders_of_set
from connector.encoding.encoders import Encoder
from connector.errors import EncoderError
from tests.support.encoding import encode_with, files
from tests.support.errors import raises
from tests.support.fakes import FakeImageEncoder, FakeTextEncoder, Pair, fake_pairs, write_manifest

HERE = __name__
SPECS: dict[Modality, str] = {"image": "images:a", "text": "texts:a"}
THREADS = 8
MOST_WORDS = 99
LONG = "word " * 100


class Loads:
    """Of this test: which specs were loaded, and the weights at their places."""

    specs: ClassVar[list[str]] = []
    weights: ClassVar[dict[str, str]] = {}


class Images(FakeImageEncoder):
    scheme = "images"

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        loaded(self)


class Texts(FakeTextEncoder):
    scheme = "texts"

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        loaded(self)

    def truncates(self, text: str) -> bool:
        return len(text.split()) > MOST_WORDS


class SilentTexts(Texts):
    """Does not say whether it reads the whole of a text."""

    truncates = Encoder.truncates  # type: ignore[assignment]


def loaded(encoder: Encoder) -> None:
    Loads.specs.append(encoder.spec)
    weights = Loads.weights.get(encoder.scheme, "old")
    if weights == "broken":
        raise OSError("disk")
    encoder.fingerprint += f" {weights}"


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*, group: str) -> Sequence[EntryPoint]:
        classes = {"images": "Images", "texts": "Texts", "silent": "SilentTexts"}
        return [EntryPoint(scheme, f"{HERE}:{name}", group) for scheme, name in classes.items()]

    monkeypatch.setattr(loading, "entry_points", found)
    monkeypatch.setattr(Loads, "specs", [])
    monkeypatch.setattr(Loads, "weights", {})


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return fake_pairs(tmp_path, 12, seed=5, captions=2)


@pytest.fixture
def encode(tmp_path: Path) -> Callable[..., dict[str, int]]:
    """Encode pairs into the set as a command does; return the counts."""

    def run(pairs: Sequence[Pair], specs: dict[Modality, str] = SPECS, *extra: dict[str, Any]) -> dict[str, int]:
        Loads.specs.clear()
        manifest = write_manifest(tmp_path / "corpus.jsonl", pairs, *extra)
        encoders = encoders_of_set(tmp_path / "s", specs, "cpu")
        return {name: n for name, n in encode_with(manifest, tmp_path / "s", encoders).counts.items() if n}

    return run


def another(pair: Pair, caption: str) -> Pair:
    return replace(pair, captions=[caption, *pair.captions[1:]])


def unlike(modality: Modality, pairs: list[Pair], directory: Path) -> list[Pair]:
    """The pairs with one item more of a modality."""
    if modality == "text":
        return [another(pairs[0], "something that was not there before"), *pairs[1:]]
    (new,) = fake_pairs(directory / "more", 1, seed=6)
    new.image.replace(pairs[0].image)
    return pairs


# When it loads


def test_a_new_set_loads_its_encoders_at_once(encode: Callable[..., Any], pairs: list[Pair]) -> None:
    encode(pairs)
    assert Loads.specs == [*SPECS.values()]


def test_nothing_new_loads_nothing(encode: Callable[..., Any], pairs: list[Pair], tmp_path: Path) -> None:
    encode(pairs)
    before = files(tmp_path / "s")
    assert encode(pairs) == {"already_in_set": 36}
    assert Loads.specs == []
    assert files(tmp_path / "s") == before


@pytest.mark.parametrize("change", ["group", "payload", "key", "gone"])
def test_what_is_not_encoded_loads_nothing(
    encode: Callable[..., Any], pairs: list[Pair], change: str, tmp_path: Path
) -> None:
    encode(pairs)
    first, *rest = pairs
    changed = {
        "group": [replace(first, group="g"), *rest],
        "key": [replace(first, key="k"), *rest],
        "payload": rest,
        "gone": rest,
    }
    row = first.row(tmp_path) | {"colour": "red"}
    counts = encode(changed[change], SPECS, *([row] if change == "payload" else []))
    assert counts.get("encoded", 0) == 0
    assert Loads.specs == []
    assert SetCard.read(tmp_path / "s").truncated == 0


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_encoder_of_what_is_new_loads_alone(
    encode: Callable[..., Any], pairs: list[Pair], modality: Modality, tmp_path: Path
) -> None:
    encode(pairs)
    assert encode(unlike(modality, pairs, tmp_path))["encoded"] == 1
    assert Loads.specs == [SPECS[modality]]


def test_a_modality_that_the_set_has_not_yet_loads_at_once(encode: Callable[..., Any], pairs: list[Pair]) -> None:
    encode(pairs, {"image": "images:a"})
    assert encode(pairs)["encoded"] == 24
    assert Loads.specs == ["texts:a"]


@pytest.mark.parametrize("scheme", ["texts", "silent"])
def test_a_number_of_truncated_captions_that_is_known_needs_no_encoder(
    encode: Callable[..., Any], pairs: list[Pair], scheme: str, tmp_path: Path
) -> None:
    specs: dict[Modality, str] = {**SPECS, "text": f"{scheme}:a"}
    long = [another(pairs[0], LONG), *pairs[1:]]
    number = {"texts": 1, "silent": None}[scheme]
    for again in (False, True):
        encode(long, specs)
        assert SetCard.read(tmp_path / "s").truncated == number
        assert (Loads.specs == []) == again


def test_a_number_of_truncated_captions_is_counted_where_it_may_be_another(
    encode: Callable[..., Any], pairs: list[Pair], tmp_path: Path
) -> None:
    encode([another(pairs[0], LONG), *pairs[1:]])
    # A second caption of the same text, and then none of it: both reuse vectors, or need none.
    assert encode([another(pairs[0], LONG), another(pairs[1], LONG), *pairs[2:]])["truncated"] == 1
    assert SetCard.read(tmp_path / "s").truncated == 2
    encode(pairs)
    assert SetCard.read(tmp_path / "s").truncated == 0


# What is refused


@pytest.mark.parametrize("modality", MODALITIES)
def test_other_weights_are_refused_when_something_is_encoded(
    encode: Callable[..., Any], pairs: list[Pair], modality: Modality, tmp_path: Path
) -> None:
    """As itself, and not as a reject of each item, in whichever thread it is noticed."""
    encode(pairs)
    before = files(tmp_path / "s")
    Loads.weights[SPECS[modality].partition(":")[0]] = "new"
    assert encode(pairs) == {"already_in_set": 36}
    recorded = SetCard.read(tmp_path / "s").encoders[modality]
    with raises(EmbeddingSetError, recorded, modality, "--set"):
        encode(unlike(modality, pairs, tmp_path))
    assert files(tmp_path / "s") == before


@pytest.mark.parametrize("modality", MODALITIES)
def test_another_encoder_is_refused_at_once(
    encode: Callable[..., Any], pairs: list[Pair], modality: Modality, tmp_path: Path
) -> None:
    encode(pairs)
    other = SPECS[modality].replace(":a", ":b")
    with raises(EmbeddingSetError, SPECS[modality], other, "--set"):
        encode(pairs, {**SPECS, modality: other})


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_encoder_that_cannot_be_loaded_is_tried_once(
    encode: Callable[..., Any], pairs: list[Pair], modality: Modality, tmp_path: Path
) -> None:
    encode(pairs)
    Loads.weights[SPECS[modality].partition(":")[0]] = "broken"
    changed = [pair for number in range(4) for pair in unlike(modality, pairs[number : number + 1], tmp_path)]
    with raises(EncoderError, SPECS[modality], "disk"):
        encode([*changed, *pairs[4:]])
    assert Loads.specs == [SPECS[modality]]


@pytest.mark.parametrize(
    ("specs", "device", "kind", "value"),
    [
        ({"image": "nothing:a"}, "cpu", EncoderError, "nothing:a"),
        ({"text": "images:a"}, "cpu", EncoderError, "images:a"),
        (SPECS, "cuda:99", DeviceError, "cuda:99"),
        (SPECS, "abacus", DeviceError, "abacus"),
    ],
)
def test_what_needs_no_model_is_refused_although_nothing_is_new(
    encode: Callable[..., Any],
    pairs: list[Pair],
    tmp_path: Path,
    specs: dict[Modality, str],
    device: str,
    kind: type[Any],
    value: str,
) -> None:
    encode(pairs)
    Loads.specs.clear()
    with raises(kind, value):
        encoders_of_set(tmp_path / "s", specs, device)
    assert Loads.specs == []


def test_threads_that_need_it_load_it_once(encode: Callable[..., Any], pairs: list[Pair], tmp_path: Path) -> None:
    encode(pairs)
    Loads.specs.clear()
    encoder = encoders_of_set(tmp_path / "s", SPECS, "cpu")["text"]
    together = threading.Barrier(THREADS)

    def embed(_: int) -> Any:
        together.wait()
        return encoder.encode("text", ["red"]).tolist()

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(embed, range(THREADS)))
    assert answers == [answers[0]] * THREADS
    assert Loads.specs == ["texts:a"]
