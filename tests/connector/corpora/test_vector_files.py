"""Vectors that were computed elsewhere: the three layouts, what is refused, and the set that they become."""

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from alignment.errors import EmbeddingSetError
from alignment.modality import Modality
from alignment.sets.cards import EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.vectors import invalid_rows
from connector.corpora.items import Item, Vector, reached
from connector.corpora.vector_files import open_vectors
from connector.encoding.encoders import ImportedEncoder
from connector.encoding.loading import load_encoder
from connector.errors import CorpusError, EncoderError, MismatchError, SettingsError
from connector.home import Home
from connector.provenance.database import upgrade
from connector.rejects import Reject
from connector.requests import FitRequest, ImportRequest, IngestRequest, PushRequest
from connector.settings import Settings
from tests.support.errors import raises
from tests.support.units_contract import check_units

N, DIM, TEXT_DIM = 7, 4, 3
SearchHit = list[Item | Reject]
Vectors = npt.NDArray[Any]


def clip_retrieval(directory: Path, X: Vectors, Y: Vectors, parts: int = 2, **columns: Any) -> Path:
    """Write what clip-retrieval writes: images X (n, d), texts Y (n, e)."""
    table = {"image_path": [f"{n}.jpg" for n in range(len(X))], "caption": [f"text {n}" for n in range(len(X))]}
    for part, rows in enumerate(np.array_split(np.arange(len(X)), parts)):
        for folder, vectors in (("img_emb", X), ("text_emb", Y)):
            (directory / folder).mkdir(exist_ok=True)
            np.save(directory / folder / f"{folder}_{part}.npy", vectors[rows])
        (directory / "metadata").mkdir(exist_ok=True)
        each = {name: [values[row] for row in rows] for name, values in {**table, **columns}.items()}
        pq.write_table(pa.table(each), directory / "metadata" / f"metadata_{part}.parquet")
    return directory


def lists(X: Vectors, kind: str = "fixed") -> pa.Array:
    """A column of vectors."""
    value = pa.from_numpy_dtype(X.dtype)
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])
    return pa.array(list(X), pa.list_(value) if kind == "list" else pa.large_list(value))


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def vectors_of(found: SearchHit, modality: Modality) -> dict[str, list[float]]:
    return {
        item.key: np.frombuffer(item.content.values, "<f4").tolist()
        for item in found
        if isinstance(item, Item) and item.modality == modality and isinstance(item.content, Vector)
    }


def reasons(found: SearchHit) -> list[tuple[int, str, str | None]]:
    return [(one.position, one.reason, one.key) for one in found if isinstance(one, Reject)]


@pytest.fixture(name="X")
def image_vectors(rng: np.random.Generator) -> Vectors:
    return rng.standard_normal((N, DIM)).astype(np.float32)


@pytest.fixture(name="Y")
def text_vectors(rng: np.random.Generator) -> Vectors:
    return rng.standard_normal((N, TEXT_DIM)).astype(np.float32)


class TestLayouts:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
    def test_clip_retrieval(self, dtype: str, X: Vectors, Y: Vectors, tmp_path: Path) -> None:
        path = clip_retrieval(tmp_path, X.astype(dtype), Y.astype(dtype), url=[f"http://x/{n}" for n in range(N)])
        opened = open_vectors(path, ["image", "text"])
        found = list(opened)
        assert found == list(opened)
        assert (opened.total(), opened.dims()) == (N, {"image": DIM, "text": TEXT_DIM})
        check_units(opened)
        assert list(vectors_of(found, "image").values()) == X.astype(dtype).astype(np.float32).tolist()
        assert list(vectors_of(found, "text").values()) == Y.astype(dtype).astype(np.float32).tolist()
        image, text = found[2:4]
        assert isinstance(image, Item)
        assert isinstance(text, Item)
        assert (image.key, image.group, image.position) == ("1.jpg", "1.jpg", 2)
        assert (text.key, text.group, text.position) == ("1.jpg#0", "1.jpg", 2)
        assert image.payload == {"image": "1.jpg", "url": "http://x/1", "caption": "text 1"}
        assert text.payload == {"caption": "text 1", "url": "http://x/1"}

    def test_parts_are_in_the_order_of_their_numbers(self, X: Vectors, Y: Vectors, tmp_path: Path) -> None:
        many = np.repeat(X, 2, axis=0)[:12]
        found = list(open_vectors(clip_retrieval(tmp_path, many, many, parts=12), ["text"]))
        assert [one.key for one in found] == [f"{n}.jpg#0" for n in range(12)]

    def test_an_array_with_its_table(self, X: Vectors, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", np.asfortranarray(X))
        parquet(tmp_path / "v.parquet", id=[f"k{n}" for n in range(N)], page=["p"] * N, split=["train"] * N)
        found = list(open_vectors(tmp_path / "v.npy", ["image"], key="id", group="page"))
        assert list(vectors_of(found, "image").values()) == X.tolist()
        first = found[0]
        assert isinstance(first, Item)
        assert (first.key, first.group, first.payload) == ("k0", "p", {"corpus_split": "train"})

    def test_columns_of_paths_and_captions_may_have_other_names(self, X: Vectors, tmp_path: Path) -> None:
        columns: dict[str, Any] = {"sku": ["a", "b"], "photo": ["1.jpg", "2.jpg"], "title": ["one", "two"]}
        path = parquet(tmp_path / "t.parquet", **columns, caption=["x", "y"], score=[0.5, math.nan], v=lists(X[:2]))
        found = list(open_vectors(path, ["text"], key="sku", image="photo", caption="title"))
        first, fault, second = found
        assert isinstance(first, Item)
        assert isinstance(second, Item)
        assert first.payload == {"caption": "one", "corpus_caption": "x", "score": 0.5}
        assert second.payload == {"caption": "two", "corpus_caption": "y"}
        assert isinstance(fault, Reject)
        assert (fault.reason, fault.key, fault.position) == ("payload-not-json", "b", 2)

    @pytest.mark.parametrize("role", ["key", "group", "image", "caption"])
    def test_a_named_column_that_is_not_there(self, role: str, X: Vectors, tmp_path: Path) -> None:
        path = parquet(tmp_path / "t.parquet", key=["a"], photo=["1.jpg"], v=lists(X[:1]))
        with raises(CorpusError, path, f"--{role}", "'foto'", "did you mean 'photo'?"):
            named: Any = {role: "foto"}
            list(open_vectors(path, ["image"], **named))

    @pytest.mark.parametrize("kind", ["fixed", "list", "large"])
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_columns_of_a_table(self, kind: str, dtype: str, X: Vectors, Y: Vectors, tmp_path: Path) -> None:
        table = {"key": list(range(N)), "x": lists(X.astype(dtype), kind), "y": lists(Y.astype(dtype), kind)}
        path = parquet(tmp_path / "t.parquet", **table)
        opened = open_vectors(path, ["image", "text"], columns={"image": "x", "text": "y"})
        assert list(vectors_of(list(opened), "text").values()) == Y.astype(dtype).astype(np.float32).tolist()
        (only, *_) = open_vectors(path, ["image"], columns={"image": "x"})
        assert isinstance(only, Item)
        assert only.payload == {}

    def test_a_folder_of_tables(self, X: Vectors, tmp_path: Path) -> None:
        for part, rows in enumerate(np.array_split(np.arange(N), 3)):
            parquet(tmp_path / f"{part}.parquet", key=[str(row) for row in rows], vector=lists(X[rows]))
        assert list(vectors_of(list(open_vectors(tmp_path, ["text"])), "text").values()) == X.tolist()

    def test_rows_of_one_key_are_captions_of_one_image(self, X: Vectors, Y: Vectors, tmp_path: Path) -> None:
        X[1] = X[0]
        path = parquet(tmp_path / "t.parquet", key=["a", "a", "b", "a"], x=lists(X[:4]), y=lists(Y[:4]))
        found = list(open_vectors(path, ["image", "text"], columns={"image": "x", "text": "y"}))
        assert [one.key for one in found] == ["a", "a#0", "a#1", "b", "b#0", "a", "a#0"]  # the last is refused later

    @pytest.mark.parametrize("modalities", [["image"], ["image", "text"]])
    def test_an_image_with_rows_for_its_captions_carries_the_first(
        self, modalities: list[Modality], X: Vectors, tmp_path: Path
    ) -> None:
        columns: dict[Modality, str] = {"image": "x", "text": "y"}
        path = parquet(
            tmp_path / "t.parquet", key=["a", "a"], caption=["one", "two"], x=lists(X[[0, 0]]), y=lists(X[:2])
        )
        opened = open_vectors(path, modalities, columns={m: columns[m] for m in modalities})
        image, *texts = opened.with_captions()
        assert (len(texts), isinstance(image, Item) and image.payload) == (2 * len(modalities) - 2, {"caption": "one"})

    @pytest.mark.parametrize("changed", ["vector", "payload", "group"])
    def test_rows_of_one_key_that_differ_are_rejects(self, changed: str, X: Vectors, tmp_path: Path) -> None:
        if changed != "vector":
            X[:] = X[0]
        values = ["x", "x", "y"] if changed != "vector" else ["x"] * 3
        other = {"payload": "place", "group": "group"}.get(changed, "place")
        rows = [0, 0, 1] if changed == "vector" else [0, 0, 0]
        path = parquet(tmp_path / "t.parquet", key=["p"] * 3, v=lists(X[rows]), **{other: values})
        assert reasons(list(open_vectors(path, ["image"]))) == [(3, "key-duplicate", "p")]

    def test_files_are_paired_by_the_digits_as_written(self, X: Vectors, tmp_path: Path) -> None:
        (tmp_path / "img_emb").mkdir()
        (tmp_path / "metadata").mkdir()
        for row, digits in enumerate(("00", "0")):
            np.save(tmp_path / "img_emb" / f"img_emb_{digits}.npy", X[[row]])
            parquet(tmp_path / "metadata" / f"metadata_{digits}.parquet", key=[digits])
        found = vectors_of(list(open_vectors(tmp_path, ["image"])), "image")
        assert found == {"0": X[1].tolist(), "00": X[0].tolist()}

    @pytest.mark.parametrize("name", ["other_0.npy", "loose.npy"])
    def test_files_that_cannot_be_paired_are_an_error(self, name: str, X: Vectors, Y: Vectors, tmp_path: Path) -> None:
        np.save(clip_retrieval(tmp_path, X, Y) / "img_emb" / name, X)
        with raises(CorpusError, name):
            open_vectors(tmp_path, ["image"])


class TestRows:
    """A row that cannot be used is a reject with its reason."""

    def test_vectors_that_are_none(self, X: Vectors, tmp_path: Path) -> None:
        X[1], X[3, 0], X[5, 2] = 0, np.nan, np.inf
        found = list(open_vectors(clip_retrieval(tmp_path, X, X), ["image"]))
        assert reasons(found) == [
            (2, "vector-zero", "1.jpg"),
            (4, "vector-not-finite", "3.jpg"),
            (2, "vector-not-finite", "5.jpg"),
        ]
        assert len(vectors_of(found, "image")) == N - 3

    def test_vectors_of_another_dimension(self, tmp_path: Path) -> None:
        column = pa.array([[1.0, 2], [1.0], None, [1.0, 2, 3], [], [None, 1.0], [3.0, 4]], pa.list_(pa.float32()))
        found = list(open_vectors(parquet(tmp_path / "t.parquet", key=[*"abcdefg"], x=column), ["text"]))
        assert vectors_of(found, "text") == {"a#0": [1, 2], "g#0": [3, 4]}
        wrong = "vector-dimension"
        assert reasons(found) == [
            (2, wrong, "b#0"),
            (3, wrong, "c#0"),
            (4, wrong, "d#0"),
            (5, wrong, "e#0"),
            (6, "vector-not-finite", "f#0"),
        ]

    def test_doubles_beyond_single_precision(self, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", np.array([[1e300, 1.0], [1.0, 1.0]]))
        found = list(open_vectors(tmp_path / "v.npy", ["image"], metadata=parquet(tmp_path / "m.parquet", key=[1, 2])))
        assert reasons(found) == [(1, "vector-not-finite", "1")]

    @pytest.mark.parametrize(
        ("columns", "refused"),
        [
            ({"key": [None, "b"]}, (1, "key-missing", "None")),
            ({"key": ["", "b"]}, (1, "key-missing", "")),
            ({"key": [1.5, 2.5]}, (1, "key-not-text", "1.5")),
            ({"key": ["a", "b"], "caption": [["x"], None]}, (1, "caption-not-text", "a")),
            ({"key": ["a", "b"], "group": [{"x": 1}, None]}, (1, "group-not-text", "a")),
            ({"key": ["a", "b"], "n": [float("nan"), 1.0]}, (1, "payload-not-json", "a")),
            ({"key": ["a", "b"], "caption": ["x\0", None]}, (1, "row-unreadable", "a")),
        ],
    )
    def test_a_row_that_names_nothing(self, columns: Mapping[str, Any], refused: Any, tmp_path: Path) -> None:
        path = parquet(tmp_path / "t.parquet", **columns, vector=lists(np.ones((2, 2))))
        assert reasons(list(open_vectors(path, ["image"])))[0] == refused


class TestErrors:
    """What does not belong together is no corpus, and nothing of it is taken."""

    def test_rows_that_do_not_match(self, X: Vectors, Y: Vectors, tmp_path: Path) -> None:
        path = clip_retrieval(tmp_path, X, Y)
        np.save(path / "text_emb" / "text_emb_1.npy", Y[:2])
        with raises(CorpusError, "text_emb_1.npy", 2, "metadata_1.parquet", 3):
            next(iter(open_vectors(path, ["image", "text"])))

    def test_parts_of_two_dimensions(self, X: Vectors, Y: Vectors, tmp_path: Path) -> None:
        path = clip_retrieval(tmp_path, X, Y)
        np.save(path / "img_emb" / "img_emb_1.npy", X[:3, :2])
        with raises(CorpusError, "image", "metadata_0.parquet: 4", "metadata_1.parquet: 2"):
            next(iter(open_vectors(path, ["image"])))

    @pytest.mark.parametrize("gone", ["img_emb/img_emb_0.npy", "metadata/metadata_1.parquet"])
    def test_a_part_that_is_missing(self, gone: str, X: Vectors, Y: Vectors, tmp_path: Path) -> None:
        (clip_retrieval(tmp_path, X, Y) / gone).unlink()
        with raises(CorpusError, tmp_path, "img_emb", "metadata"):
            open_vectors(tmp_path, ["image"])

    @pytest.mark.parametrize(
        "content",
        [np.ones(3), np.ones((3, 2), np.int64), np.ones((3, 2, 2)), np.ones((3, 0)), np.ones((3, 2), complex)],
        ids=["1-d", "integers", "3-d", "no columns", "complex"],
    )
    def test_an_array_of_something_else(self, content: Vectors, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", content)
        parquet(tmp_path / "v.parquet", key=["a", "b", "c"])
        with raises(CorpusError, tmp_path / "v.npy"):
            list(open_vectors(tmp_path / "v.npy", ["image"]))

    def test_a_second_array_in_one_file_is_named(self, tmp_path: Path) -> None:
        """As `np.save` leaves it that is called twice with an open file: a reader sees the first one alone."""
        table = parquet(tmp_path / "v.parquet", key=[1, 2, 3])
        with (tmp_path / "v.npy").open("wb") as file:
            for _ in range(2):
                np.save(file, np.ones((3, 2), np.float32))
        with raises(CorpusError, tmp_path / "v.npy"):
            list(open_vectors(tmp_path / "v.npy", ["image"], metadata=table))

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> Any:
                return (Path.touch, (ran,))

        np.save(tmp_path / "v.npy", np.array([[Evil()]], dtype=object), allow_pickle=True)
        parquet(tmp_path / "v.parquet", key=["a"])
        (tmp_path / "w.npy").write_bytes(pickle.dumps(Evil()))
        parquet(tmp_path / "w.parquet", key=["a"])
        for name in ("v.npy", "w.npy"):
            with raises(CorpusError, tmp_path / name):
                list(open_vectors(tmp_path / name, ["image"]))
        assert not ran.exists()

    def test_files_that_were_cut_off(self, X: Vectors, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", X)
        parquet(tmp_path / "v.parquet", key=[str(n) for n in range(N)])
        for name in ("v.npy", "v.parquet"):
            content = (tmp_path / name).read_bytes()
            for length in (0, 5, 60, len(content) // 2, len(content) - 1):
                (tmp_path / name).write_bytes(content[:length])
                with raises(CorpusError, tmp_path / name):
                    list(open_vectors(tmp_path / "v.npy", ["image"]))
            (tmp_path / name).write_bytes(content)

    def test_headers_that_are_no_text(self, X: Vectors, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", X)
        parquet(tmp_path / "v.parquet", key=[str(n) for n in range(N)])
        for name, sound, damaged in (("v.npy", b"'shape': (", b"'shape': {"), ("v.parquet", b"key", b"k\xffy")):
            content = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(content.replace(sound, damaged))
            with raises(CorpusError, tmp_path / name):
                list(open_vectors(tmp_path / "v.npy", ["image"]))
            (tmp_path / name).write_bytes(content)

    def test_columns_have_to_be_named_where_there_are_several(self, X: Vectors, Y: Vectors, tmp_path: Path) -> None:
        path = parquet(tmp_path / "t.parquet", key=list(range(N)), x=lists(X), y=lists(Y), tokens=[[1, 2]] * N)
        with raises(CorpusError, "x, y", "--image-vectors"):
            open_vectors(path, ["image"])
        with raises(CorpusError, "text", "tokens"):
            open_vectors(path, ["text"], columns={"text": "tokens"})

    @pytest.mark.parametrize(
        ("options", "values"),
        [
            ({}, ["key", "image_path", "id", "--key"]),
            ({"key": "x"}, ["x", "id", "--key"]),
            ({"key": "id", "group": "y"}, ["y", "id", "--group"]),
        ],
    )
    def test_columns_that_are_missing(self, options: Any, values: list[str], tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", np.ones((1, 2)))
        parquet(tmp_path / "v.parquet", id=["a"])
        with raises(CorpusError, "v.parquet", *values):
            list(open_vectors(tmp_path / "v.npy", ["image"], **options))

    def test_what_holds_no_vectors(self, tmp_path: Path) -> None:
        with raises(CorpusError, tmp_path / "none"):
            open_vectors(tmp_path / "none", ["image"])
        with raises(CorpusError, tmp_path, ".npy", ".parquet"):
            open_vectors(tmp_path, ["image"])
        np.save(tmp_path / "v.npy", np.ones((1, 2)))
        with raises(CorpusError, tmp_path / "v.npy", "image", "text"):
            open_vectors(tmp_path / "v.npy", ["image", "text"])
        column = pa.array([None, []], pa.list_(pa.float32()))
        with raises(CorpusError, tmp_path / "t.parquet", "image"):
            list(open_vectors(parquet(tmp_path / "t.parquet", key=["a", "b"], x=column), ["image"]))


def test_rows_are_counted_in_the_file_that_is_named(tmp_path: Path) -> None:
    for number in range(3):
        keys = ["same", None, f"{number}"]
        parquet(tmp_path / f"{number}.parquet", key=keys, v=lists(np.eye(3, dtype=np.float32) + number))
    found = list(open_vectors(tmp_path, ["image"]))
    missing = [(one.source, one.position) for one in found if isinstance(one, Reject) and one.reason == "key-missing"]
    assert missing == [(str(tmp_path / f"{number}.parquet"), 2) for number in range(3)]
    assert [reached(one) for one in found] == list(range(1, 10))


@given(arrays.arrays(np.float16, st.tuples(st.integers(1, 6), st.integers(1, 4))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_every_row_is_a_vector_or_a_reject(tmp_path: Path, X: Vectors) -> None:
    path = parquet(tmp_path / "t.parquet", key=list(range(len(X))), v=lists(X))
    found = list(open_vectors(path, ["image"]))
    assert [one.position for one in found] == list(range(1, len(X) + 1))
    wrong = invalid_rows(X.astype(np.float32))
    assert {position - 1: reason for position, reason, _ in reasons(found)} == wrong
    assert list(vectors_of(found, "image").values()) == [row.tolist() for n, row in enumerate(X) if n not in wrong]


class TestImport:
    @pytest.fixture
    def home(self, tmp_path: Path) -> Any:
        chosen = Settings.load(home=tmp_path / "home", device="cpu")
        upgrade(chosen.database_url)
        with Home(chosen) as home:
            yield home

    @pytest.fixture
    def vectors(self, rng: np.random.Generator, tmp_path: Path) -> Path:
        latent = rng.standard_normal((60, 4))
        X, Y = latent @ rng.standard_normal((4, 6)), latent @ rng.standard_normal((4, 5))
        directory = tmp_path / "clip"
        directory.mkdir()
        return clip_retrieval(directory, X.astype(np.float32), Y.astype(np.float32), parts=3)

    def test_what_is_imported_is_an_embedding_set_that_says_so(self, home: Home, vectors: Path) -> None:
        made_by: dict[Modality, str] = {"image": "my-resnet v2", "text": "my-bert"}
        result = home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders=made_by))
        assert {name: count for name, count in result.counts.items() if count} == {"imported": 120}
        opened = home.embedding_set("s")
        image = opened.card.encoders["image"]
        assert image == ImportedEncoder("my-resnet v2", 6).card
        assert image.spec == "imported:my-resnet v2"
        assert opened.card.counts == {"image": 60, "text": 60}
        first = np.load(vectors / "text_emb" / "text_emb_0.npy")
        np.testing.assert_array_equal(opened.load("text").vectors[: len(first)], first)
        assert json.loads(opened.load("text").payloads[0]) == {"caption": "text 0"}

    def test_again_changes_nothing_and_a_change_is_taken(self, home: Home, vectors: Path) -> None:
        before = home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={"image": "a"})).value.card
        again = home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={"image": "a"}))
        assert again.counts["already_in_set"] == 60
        assert home.embedding_set("s").card == before
        path = vectors / "img_emb" / "img_emb_0.npy"
        X = np.load(path)
        X[3] += 1
        np.save(path, X)
        result = home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={"image": "a"}))
        assert (result.counts["imported"], result.counts["already_in_set"]) == (1, 59)
        after = home.embedding_set("s")
        assert after.card.fingerprint != before.fingerprint
        rows = after.load("image")
        np.testing.assert_array_equal(rows.vectors[rows.keys.index("3.jpg")], X[3])

    def test_vectors_that_the_stored_type_cannot_hold_are_rejects(self, home: Home, tmp_path: Path) -> None:
        X = np.array([[1, 2], [1e-9, 2e-9], [7e4, 1], [1e-7, 2e-7], [3, 1e-9], [6e4, 6e4]], np.float32)
        path = parquet(tmp_path / "t.parquet", key=[*"abcdef"], v=lists(X))
        request = ImportRequest(vectors=path, set="s", encoders={"image": "x"}, dtype="float16")
        result = home.import_vectors(request)
        assert result.value.load("image").keys == ["a", "e", "f"]
        assert [(row.key, row.reason) for row in home.rejects(result.run).rows] == [
            ("b", "vector-underflow"),
            ("c", "vector-overflow"),
            ("d", "vector-underflow"),
        ]
        assert home.import_vectors(replace(request, set="t", dtype="float32")).counts["imported"] == 6

    def test_texts_may_be_added_to_images(self, home: Home, vectors: Path) -> None:
        home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={"image": "a"}))
        result = home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={"text": "b"}))
        assert {name: count for name, count in result.counts.items() if count} == {"imported": 60}
        assert home.embedding_set("s").card.counts == {"image": 60, "text": 60}

    def test_keys_that_repeat_are_refused(self, home: Home, tmp_path: Path) -> None:
        path = parquet(tmp_path / "t.parquet", key=["a", "b", "a"], v=lists(np.eye(3)))
        result = home.import_vectors(ImportRequest(vectors=path, set="s", encoders={"image": "x"}))
        assert (result.counts["imported"], result.counts["rejected"]) == (2, 1)
        assert [row.reason for row in home.rejects(result.run).rows] == ["key-duplicate"]

    @pytest.mark.slow
    def test_it_is_fitted_pushed_and_searched_with_vectors_alone(self, home: Home, vectors: Path) -> None:
        home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={"image": "a", "text": "b"}))
        home.fit(FitRequest(sets=["s"], alignment="m", method="ridge"))
        home.push(PushRequest(set="s", into="things", alignment="m"))
        retriever = home.retriever("things")
        query = EmbeddingSet.open(home.settings.set_path("s")).load("text").vectors[:5]
        made_by = ImportedEncoder("b", 5)
        found = retriever.search_embeddings("text", query, 3, encoder=made_by.fingerprint)
        assert sum(f"{n}.jpg" in [one.key for one in answer] for n, answer in enumerate(found)) >= 4
        with raises(MismatchError, "imported:b"):
            retriever.search_embeddings("text", query, 3, encoder=ImportedEncoder("c", 5).fingerprint)
        with raises(EncoderError, "imported:b", "search_embeddings"):
            retriever.search_texts(["a dog"])

    def test_a_corpus_cannot_be_ingested_with_what_was_imported(self, home: Home, vectors: Path) -> None:
        home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={"image": "a", "text": "b"}))
        home.fit(FitRequest(sets=["s"], alignment="m", method="ridge"))
        (vectors / "corpus.jsonl").write_text('{"key": "a", "caption": "b"}\n')
        with raises(EncoderError, "imported:a"):
            home.ingest(IngestRequest(corpus=vectors / "corpus.jsonl", into="things", alignment="m"))

    def test_vectors_of_another_name_are_not_mixed_in(self, home: Home, vectors: Path) -> None:
        home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={"image": "a"}))
        with raises(EmbeddingSetError, "image", "imported:a", "imported:c"):
            home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={"image": "c"}))

    def test_somebody_has_to_say_what_made_them(self, home: Home, vectors: Path) -> None:
        with raises(SettingsError, "--image-encoder", "--text-encoder"):
            home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={}))
        with raises(EncoderError, "''"):
            home.import_vectors(ImportRequest(vectors=vectors, set="s", encoders={"image": "imported:"}))


def test_an_imported_encoder_is_its_name_and_dimension() -> None:
    assert ImportedEncoder("a", 3).fingerprint == ImportedEncoder("a", 3).fingerprint
    assert len({ImportedEncoder(name, dim).fingerprint for name, dim in (("a", 3), ("a", 4), ("b", 3))}) == 3
    assert ImportedEncoder("open_clip:ViT-B-32/openai", 512).card == EncoderCard(
        "imported:open_clip:ViT-B-32/openai", ImportedEncoder("open_clip:ViT-B-32/openai", 512).fingerprint, 512
    )
    with raises(EncoderError, "imported:open_clip:ViT-B-32/openai"):
        load_encoder("imported:open_clip:ViT-B-32/openai", "cpu")
