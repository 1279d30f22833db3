"""Encoding: which items are embedded, which vectors are reused, and what is rejected."""

import hashlib
import io
import json
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alignment.errors import EmbeddingSetError
from alignment.modality import MODALITIES, Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray
from connector.corpora.formats import open_corpus
from connector.corpora.items import Corpus, Entry, Item, Remark
from connector.encoding.encode import encode
from connector.encoding.encoders import Encoder
from connector.encoding.unit_encoder import WINDOWS_AHEAD
from connector.errors import CorpusError
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.rejects import Reject
from tests.support.encoding import (
    BATCH,
    CountingImages,
    CountingTexts,
    Encoders,
    encode_with,
    files,
    stored,
)
from tests.support.errors import raises
from tests.support.fakes import NAN_WORD, FakeImageEncoder, FakeTextEncoder, Pair, fake_pairs, write_manifest


@dataclass
class Encoded:
    """What an encode did: its counts, its rejects as (key, stage, reason), how many items of which were embedded."""

    counts: dict[str, int]
    rejects: list[tuple[str | None, str, str]]
    images: list[int]
    texts: list[int]


def encoders() -> Encoders:
    return {"image": CountingImages(), "text": CountingTexts()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def run_encode(
    corpus: Corpus | Path, path: Path, modalities: Sequence[Modality] = ("image", "text"), **options: Any
) -> Encoded:
    images, texts = CountingImages(), CountingTexts()
    both: dict[Modality, Encoder] = {"image": images, "text": texts}
    encoders = {modality: both[modality] for modality in modalities}
    run = encode_with(corpus, path, encoders, **options)
    rejects: list[tuple[str | None, str, str]] = [(reject.key, reject.stage, reject.reason) for reject in run.refused]
    return Encoded({k: v for k, v in run.counts.items() if v}, rejects, images.batches, texts.batches)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return fake_pairs(tmp_path, 25, seed=3, captions=2)


@pytest.fixture
def manifest(tmp_path: Path, pairs: list[Pair]) -> Path:
    return write_manifest(tmp_path / "corpus.jsonl", pairs)


def paint(path: Path, colour: tuple[int, int, int]) -> None:
    Image.new("RGB", (8, 8), colour).save(path)


class TestFirst:
    def test_every_item_becomes_a_row(self, manifest: Path, pairs: list[Pair], tmp_path: Path) -> None:
        done = run_encode(manifest, tmp_path / "s")
        assert done.counts == {"encoded": 75}
        images, texts = stored(tmp_path / "s", "image"), stored(tmp_path / "s", "text")
        assert list(images) == [pair.key for pair in pairs]
        assert list(texts) == [f"{pair.key}#{i}" for pair in pairs for i in range(2)]
        expected = FakeImageEncoder().encode("image", [Image.open(pair.image).convert("RGB") for pair in pairs])
        np.testing.assert_allclose([row[3] for row in images.values()], expected, atol=1e-6)
        captions = [caption for pair in pairs for caption in pair.captions]
        expected = FakeTextEncoder().encode("text", captions)
        np.testing.assert_allclose([row[3] for row in texts.values()], expected, atol=1e-6)
        assert [row[0] for row in images.values()] == [pair.group for pair in pairs]
        assert [row[2] for row in texts.values()] == [{"caption": caption} for caption in captions]

    def test_batches_and_shards_have_their_sizes(self, manifest: Path, tmp_path: Path) -> None:
        done = run_encode(manifest, tmp_path / "s")
        assert done.images == [BATCH] * 6 + [1]
        assert done.texts == [BATCH] * 12 + [2]
        embedded = EmbeddingSet.open(tmp_path / "s")
        # A shard is cut by the first batch that fills it.
        rows = [len(batch) for _, _, batch in embedded.batches("image", 1000)]
        assert rows == [12, 12, 1]
        run_encode(manifest, tmp_path / "even", ["image"], batch_items=5, shard_rows=10)
        rows = [len(batch) for _, _, batch in EmbeddingSet.open(tmp_path / "even").batches("image", 1000)]
        assert rows == [10, 10, 5]
        assert embedded.card.counts == {"image": 25, "text": 50}
        assert embedded.card.complete

    def test_progress_reaches_the_number_of_rows(self, manifest: Path, tmp_path: Path) -> None:
        steps: list[int] = []
        run_encode(manifest, tmp_path / "s", advance=steps.append)
        assert sum(steps) == open_corpus(manifest).total() == 25
        assert min(steps) >= 0

    def test_equal_content_is_embedded_once_it_stands_in_a_shard(self, pairs: list[Pair], tmp_path: Path) -> None:
        twin = replace(pairs[0], key="twin", group="twin")
        manifest = write_manifest(tmp_path / "corpus.jsonl", [*pairs, twin])
        done = run_encode(manifest, tmp_path / "s", ["image"])
        assert done.counts == {"encoded": 25, "reused": 1, "left_out": 52}
        images = stored(tmp_path / "s", "image")
        assert images["twin"][3] == images[pairs[0].key][3]

    @pytest.mark.parametrize(
        ("row", "missing"),
        [({"image": "images/s3-00000.png"}, "captions"), ({"caption": "red"}, "images"), ({}, "")],
    )
    def test_a_modality_that_the_corpus_lacks_is_named(
        self,
        pairs: list[Pair],
        row: dict[str, str],
        missing: str,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        rows = [{"key": "a", **row}] if row else []
        run_encode(write_manifest(tmp_path / "m.jsonl", [] if row else pairs, *rows), tmp_path / "s")
        assert [missing in text and "--" not in text for text in caplog.messages] == ([True] if missing else [])

    @pytest.mark.parametrize(
        "row", [{"key": "", "image": "images/s3-00000.png", "caption": "red"}, {"key": "{}", "image": "none.png"}]
    )
    def test_a_corpus_of_which_everything_was_refused_says_how_to_see_why(
        self, pairs: list[Pair], row: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = [{name: value.format(number) for name, value in row.items()} for number in range(7)]
        done = run_encode(write_manifest(tmp_path / "m.jsonl", [], *rows), tmp_path / "s")
        assert done.counts == {"rejected": 7}
        said = caplog.messages[-1]
        assert "7 rows were refused" in said
        assert "modalign rejects 1" in said
        assert "--" not in said

    def test_rows_that_were_refused_may_hide_the_modality_that_is_missing(
        self, pairs: list[Pair], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = [{"key": "a", "image": "images/s3-00000.png"}, {"caption": "without a key"}]
        run_encode(write_manifest(tmp_path / "m.jsonl", [], *rows), tmp_path / "s")
        (said,) = caplog.messages
        assert "no captions" in said
        assert "modalign rejects 1" in said

    @pytest.mark.parametrize(
        ("given", "left_out"), [("image", ["14 captions", "--text-encoder"]), ("text", ["7 images", "--image-encoder"])]
    )
    def test_items_that_no_encoder_was_given_for_are_named(
        self, pairs: list[Pair], given: Modality, left_out: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = [{"key": f"more {number}", "caption": f"red {number}"} for number in range(2)]
        corpus = write_manifest(tmp_path / "m.jsonl", pairs[:6], *rows, {"key": "x", "image": "images/s3-00000.png"})
        caplog.set_level("INFO")
        assert run_encode(corpus, tmp_path / "s", [given]).counts["left_out"] == int(left_out[0].split()[0])
        (said,) = caplog.messages
        assert [value for value in left_out if value not in said] == []

    def test_what_is_remarked_of_the_corpus_is_said_once_with_its_sum(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        @dataclass(frozen=True, slots=True)
        class Remarkable(Corpus):
            def __iter__(self) -> Iterator[Entry]:
                yield Remark("rows without a group", 2)
                yield Item("text", "a", "a", "a text", {}, "list", 1)
                yield Remark("quotes are kept")
                yield Remark("rows without a group", 3)

            def total(self) -> int:
                return 1

        encoders: Encoders = {"text": FakeTextEncoder()}
        steps: list[int] = []
        with SetWriter(tmp_path / "s", corpus="c", encoders={"text": encoders["text"].card}) as writer:
            encode(Remarkable(tmp_path), writer, encoders, Run(1), advance=steps.append)
        assert caplog.messages == ["rows without a group: 5", "quotes are kept"]
        assert sum(steps) == 1

    def test_a_corpus_of_remarks_alone_is_empty(self, tmp_path: Path) -> None:
        @dataclass(frozen=True, slots=True)
        class Empty(Corpus):
            def __iter__(self) -> Iterator[Entry]:
                yield Remark("columns without a name are left out")

            def total(self) -> int:
                return 0

        encoders: Encoders = {"text": FakeTextEncoder()}
        with (
            SetWriter(tmp_path / "s", corpus="c", encoders={"text": encoders["text"].card}) as writer,
            raises(CorpusError, tmp_path, "empty"),
        ):
            encode(Empty(tmp_path), writer, encoders, Run(1))

    def test_half_precision_is_close(self, manifest: Path, tmp_path: Path) -> None:
        encoders: Encoders = {"image": FakeImageEncoder()}
        with SetWriter(tmp_path / "s", corpus="c", encoders={"image": encoders["image"].card}, dtype="float16") as w:
            encode(open_corpus(manifest), w, encoders, Run(1))
        run_encode(manifest, tmp_path / "whole", ["image"])
        half, whole = (EmbeddingSet.open(tmp_path / name).load("image").vectors for name in ("s", "whole"))
        np.testing.assert_allclose(half, whole, atol=2e-3)
        assert half.dtype == np.float32
        assert not np.array_equal(half, whole)


class TestAgain:
    def test_nothing_changed(self, manifest: Path, tmp_path: Path) -> None:
        run_encode(manifest, tmp_path / "s")
        before = files(tmp_path / "s")
        times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "s").iterdir()}
        done = run_encode(manifest, tmp_path / "s")
        assert done.counts == {"already_in_set": 75}
        assert (done.images, done.texts) == ([], [])
        assert files(tmp_path / "s") == before
        assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "s").iterdir()} == times

    def test_other_batches_and_shards_are_no_change(self, manifest: Path, tmp_path: Path) -> None:
        run_encode(manifest, tmp_path / "s")
        before = files(tmp_path / "s")
        assert run_encode(manifest, tmp_path / "s", batch_items=7, shard_rows=3).counts == {"already_in_set": 75}
        assert files(tmp_path / "s") == before

    def test_new_items_are_added(self, pairs: list[Pair], tmp_path: Path) -> None:
        run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs[:20]), tmp_path / "s")
        before = files(tmp_path / "s")
        done = run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs), tmp_path / "s")
        assert done.counts == {"already_in_set": 60, "encoded": 15}
        assert set(stored(tmp_path / "s", "image")) == {pair.key for pair in pairs}
        del before["card.json"]
        assert {name: files(tmp_path / "s")[name] for name in before} == before

    def test_changed_content_is_encoded_and_the_old_row_goes(self, pairs: list[Pair], tmp_path: Path) -> None:
        manifest = write_manifest(tmp_path / "corpus.jsonl", pairs)
        run_encode(manifest, tmp_path / "s")
        old = stored(tmp_path / "s", "image"), stored(tmp_path / "s", "text")
        fingerprint = EmbeddingSet.open(tmp_path / "s").card.fingerprint
        paint(pairs[2].image, (10, 200, 30))
        paint(pairs[14].image, (200, 10, 30))
        pairs[5] = replace(pairs[5], captions=[pairs[5].captions[0], "something else"])
        done = run_encode(write_manifest(manifest, pairs), tmp_path / "s")
        assert done.counts == {"already_in_set": 72, "encoded": 3}
        assert (sum(done.images), sum(done.texts)) == (2, 1)
        new = stored(tmp_path / "s", "image"), stored(tmp_path / "s", "text")
        assert {key for key in old[0] if old[0][key] != new[0][key]} == {pairs[2].key, pairs[14].key}
        assert {key for key in old[1] if old[1][key] != new[1][key]} == {f"{pairs[5].key}#1"}
        assert (set(new[0]), set(new[1])) == (set(old[0]), set(old[1]))
        expected = FakeTextEncoder().encode("text", ["something else"])[0]
        np.testing.assert_allclose(new[1][f"{pairs[5].key}#1"][3], expected, atol=1e-6)
        assert EmbeddingSet.open(tmp_path / "s").card.fingerprint != fingerprint
        # What came of it is what a fresh encode makes.
        run_encode(manifest, tmp_path / "fresh")
        assert (stored(tmp_path / "fresh", "image"), stored(tmp_path / "fresh", "text")) == new
        assert EmbeddingSet.open(tmp_path / "fresh").card.fingerprint == (
            EmbeddingSet.open(tmp_path / "s").card.fingerprint
        )

    def test_content_that_changes_back_and_forth(self, pairs: list[Pair], tmp_path: Path) -> None:
        manifest = write_manifest(tmp_path / "corpus.jsonl", pairs)
        run_encode(manifest, tmp_path / "s")
        first = stored(tmp_path / "s", "image")
        file = pairs[7].image.read_bytes()
        for _ in range(3):
            paint(pairs[7].image, (1, 2, 3))
            assert run_encode(manifest, tmp_path / "s").counts == {"already_in_set": 74, "encoded": 1}
            pairs[7].image.write_bytes(file)
            assert run_encode(manifest, tmp_path / "s").counts == {"already_in_set": 74, "encoded": 1}
        assert stored(tmp_path / "s", "image") == first

    def test_contents_that_swap_are_not_embedded(self, pairs: list[Pair], tmp_path: Path) -> None:
        manifest = write_manifest(tmp_path / "corpus.jsonl", pairs)
        run_encode(manifest, tmp_path / "s")
        first = stored(tmp_path / "s", "image")
        one, other = pairs[0].image.read_bytes(), pairs[20].image.read_bytes()
        pairs[0].image.write_bytes(other)
        pairs[20].image.write_bytes(one)
        done = run_encode(manifest, tmp_path / "s")
        assert done.counts == {"already_in_set": 73, "reused": 2}
        assert done.images == []
        swapped = stored(tmp_path / "s", "image")
        assert swapped[pairs[0].key][3] == first[pairs[20].key][3]
        assert swapped[pairs[20].key][3] == first[pairs[0].key][3]

    @pytest.mark.parametrize("change", ["group", "payload"])
    def test_a_new_description_needs_no_embedding(self, pairs: list[Pair], tmp_path: Path, change: str) -> None:
        run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs), tmp_path / "s")
        before = stored(tmp_path / "s", "image"), stored(tmp_path / "s", "text")
        changed = {**pairs[3].row(tmp_path), **({"group": "new"} if change == "group" else {"licence": "CC0"})}
        manifest = write_manifest(tmp_path / "corpus.jsonl", [p for p in pairs if p is not pairs[3]], changed)
        done = run_encode(manifest, tmp_path / "s")
        assert done.counts == {"already_in_set": 72, "reused": 3}
        assert (done.images, done.texts) == ([], [])
        for modality, old in zip(MODALITIES, before, strict=True):
            new = stored(tmp_path / "s", modality)
            changed_keys = {key for key in old if old[key] != new[key]}
            assert changed_keys == {key for key in old if key.partition("#")[0] == pairs[3].key}
            for key in changed_keys:
                group, sha, payload, vector = new[key]
                assert (sha, vector) == (old[key][1], old[key][3])
                if change == "group":
                    assert (group, payload) == ("new", old[key][2])
                else:
                    assert (group, payload) == (old[key][0], {**old[key][2], "licence": "CC0"})

    def test_pictures_that_move_are_not_embedded_again_and_the_fingerprint_tells_where_they_are(
        self, pairs: list[Pair], tmp_path: Path
    ) -> None:
        def encode_at(place: str) -> tuple[Encoded, str]:
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / "images").rename(tmp_path / place / "images")
            moved = [replace(pair, image=tmp_path / place / "images" / pair.image.name) for pair in pairs]
            done = run_encode(write_manifest(tmp_path / place / "corpus.jsonl", moved), tmp_path / "s")
            (tmp_path / place / "images").rename(tmp_path / "images")
            return done, EmbeddingSet.open(tmp_path / "s").card.fingerprint

        _, first = encode_at("one")
        moved, second = encode_at("two")
        assert (moved.counts, moved.images) == ({"already_in_set": 50, "reused": 25}, [])
        assert second != first
        assert encode_at("one")[1] == first

    def test_a_new_name_needs_no_embedding(self, pairs: list[Pair], tmp_path: Path) -> None:
        run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs), tmp_path / "s")
        renamed = replace(pairs[4], key="renamed", group="renamed")
        done = run_encode(write_manifest(tmp_path / "corpus.jsonl", [*pairs[:4], renamed, *pairs[5:]]), tmp_path / "s")
        assert done.counts == {"already_in_set": 72, "reused": 3, "no_longer_in_corpus": 3}
        assert (done.images, done.texts) == ([], [])
        images = stored(tmp_path / "s", "image")
        assert images["renamed"][3] == images[pairs[4].key][3]

    def test_rows_that_the_corpus_has_lost_are_counted_and_kept(self, pairs: list[Pair], tmp_path: Path) -> None:
        run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs), tmp_path / "s")
        before = files(tmp_path / "s")
        done = run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs[:10]), tmp_path / "s")
        assert done.counts == {"already_in_set": 30, "no_longer_in_corpus": 45}
        assert files(tmp_path / "s") == before

    def test_one_modality_after_the_other(self, manifest: Path, tmp_path: Path) -> None:
        done = run_encode(manifest, tmp_path / "s", ["text"])
        assert done.counts == {"encoded": 50, "left_out": 25}
        assert EmbeddingSet.open(tmp_path / "s").card.counts == {"image": 0, "text": 50}
        done = run_encode(manifest, tmp_path / "s", ["image"])
        # Texts that are left out this time are in the corpus all the same.
        assert done.counts == {"encoded": 25, "left_out": 50}
        run_encode(manifest, tmp_path / "together")
        one, together = EmbeddingSet.open(tmp_path / "s").card, EmbeddingSet.open(tmp_path / "together").card
        assert (one.counts, one.fingerprint) == (together.counts, together.fingerprint)

    @pytest.mark.parametrize("modality", ["image", "text"])
    def test_another_encoder_is_refused_by_name(self, manifest: Path, tmp_path: Path, modality: Modality) -> None:
        run_encode(manifest, tmp_path / "s")
        before = files(tmp_path / "s")
        others: dict[Modality, Encoder] = {"image": FakeImageEncoder("large"), "text": FakeTextEncoder("large")}
        other = others[modality]
        values = f"fake-{modality}:small", f"fake-{modality}:large", other.fingerprint[:12], "--set"
        with raises(EmbeddingSetError, *values):
            encode_with(manifest, tmp_path / "s", {modality: other})
        assert files(tmp_path / "s") == before


class TestRefused:
    def test_broken_images_do_not_stop_their_batch(self, pairs: list[Pair], tmp_path: Path) -> None:
        broken = {
            "truncated": ("decode", "image-broken", pairs[0].image.read_bytes()[:60]),
            "text": ("decode", "image-unidentified", b"hello, I am no image"),
            "empty": ("read", "image-empty", b""),
            "missing": ("read", "image-missing", None),
            "directory": ("read", "image-not-a-file", None),
            "black": ("encode", "vector-zero", None),
        }
        rows: list[dict[str, Any]] = []
        for name, (_, _, content) in broken.items():
            path = tmp_path / "images" / f"{name}.png"
            if content is not None:
                path.write_bytes(content)
            rows.append({"key": name, "image": f"images/{name}.png", "caption": f"a {name} one"})
        (tmp_path / "images" / "directory.png").mkdir()
        paint(tmp_path / "images" / "black.png", (0, 0, 0))
        lines = [pair.row(tmp_path) for pair in pairs]
        for place, row in enumerate(rows):
            lines.insert(3 * place, row)
        manifest = tmp_path / "corpus.jsonl"
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = run_encode(manifest, tmp_path / "s")
        assert sorted(done.rejects) == sorted((key, stage, reason) for key, (stage, reason, _) in broken.items())
        assert done.counts == {"encoded": 25 + 50 + 6, "rejected": 6}
        assert set(stored(tmp_path / "s", "image")) == {pair.key for pair in pairs}
        assert {f"{name}#0" for name in broken} <= set(stored(tmp_path / "s", "text"))
        # They are tried again, nothing else is.
        again = run_encode(manifest, tmp_path / "s")
        assert sorted(again.rejects) == sorted(done.rejects)
        assert again.counts == {"already_in_set": 81, "rejected": 6}
        assert again.images == [1]

    def test_a_vector_that_is_nan_is_refused_alone(self, pairs: list[Pair], tmp_path: Path) -> None:
        bad = {"key": "bad", "caption": ["fine before", f"this is {NAN_WORD}", "fine after"]}
        manifest = write_manifest(tmp_path / "corpus.jsonl", pairs[:3], bad)
        done = run_encode(manifest, tmp_path / "s")
        assert done.rejects == [("bad#1", "encode", "vector-not-finite")]
        assert done.counts == {"encoded": 3 + 6 + 2, "rejected": 1}
        texts = stored(tmp_path / "s", "text")
        assert {"bad#0", "bad#2"} <= set(texts)
        assert "bad#1" not in texts
        expected = FakeTextEncoder().encode("text", ["fine after"])[0]
        np.testing.assert_allclose(texts["bad#2"][3], expected, atol=1e-6)

    def test_a_batch_of_nothing_but_nan(self, tmp_path: Path) -> None:
        bad = {"key": "bad", "caption": [f"{NAN_WORD} {i}" for i in range(BATCH)]}
        done = run_encode(write_manifest(tmp_path / "corpus.jsonl", [], bad), tmp_path / "s")
        assert done.counts == {"rejected": BATCH}
        assert EmbeddingSet.open(tmp_path / "s").card.counts == {"image": 0, "text": 0}

    @pytest.mark.parametrize("place", [0, BATCH - 1, BATCH, 24])
    def test_preprocessing_that_fails_ends_its_item_alone(
        self, manifest: Path, pairs: list[Pair], tmp_path: Path, place: int
    ) -> None:
        unwanted = Image.open(pairs[place].image).convert("RGB").tobytes()

        class Choosy(CountingImages):
            def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
                assert isinstance(content, Image.Image)
                if content.tobytes() == unwanted:
                    raise ZeroDivisionError("no such crop")
                return super().prepare(modality, content)

        encoder = Choosy()
        run = encode_with(manifest, tmp_path / "s", {"image": encoder})
        [reject] = run.refused
        assert (reject.key, reject.modality, reject.position) == (pairs[place].key, "image", place + 1)
        assert (reject.stage, reject.reason) == ("encode", "preprocessing-failed")
        assert reject.detail == f"line {place + 1}: ZeroDivisionError: no such crop"
        assert run.counts == {"encoded": 24, "rejected": 1, "left_out": 50, "reused": 0, "no_longer_in_corpus": 0}
        assert encoder.batches == [BATCH] * 6
        run_encode(manifest, tmp_path / "plain", ["image"])
        expected = stored(tmp_path / "plain", "image")
        del expected[pairs[place].key]
        assert stored(tmp_path / "s", "image") == expected

    def test_preprocessing_that_fails_on_a_text_ends_it_alone(self, manifest: Path, tmp_path: Path) -> None:
        class Choosy(CountingTexts):
            def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
                if content == "strange":
                    raise ValueError("no such token")
                return super().prepare(modality, content)

        odd = {"key": "odd", "caption": ["red before", "strange", "blue after"]}
        encoder = Choosy()
        run = encode_with(write_manifest(manifest, [], odd), tmp_path / "s", {"text": encoder})
        found = [(reject.key, reject.stage, reject.reason, reject.detail) for reject in run.refused]
        assert found == [("odd#1", "encode", "preprocessing-failed", "line 1: ValueError: no such token")]
        assert encoder.batches == [2]
        expected = FakeTextEncoder().encode("text", ["red before", "blue after"])
        texts = stored(tmp_path / "s", "text")
        np.testing.assert_allclose([texts["odd#0"][3], texts["odd#2"][3]], expected, atol=1e-6)
        assert len(texts) == 2

    def test_a_key_that_came_before_is_refused(self, pairs: list[Pair], tmp_path: Path) -> None:
        twin = {**pairs[0].row(tmp_path), "caption": "another text"}
        manifest = write_manifest(tmp_path / "corpus.jsonl", pairs, twin)
        done = run_encode(manifest, tmp_path / "s")
        assert done.rejects == [(key, "read", "key-duplicate") for key in (pairs[0].key, f"{pairs[0].key}#0")]
        assert done.counts == {"encoded": 75, "rejected": 2}
        assert stored(tmp_path / "s", "text")[f"{pairs[0].key}#0"][2] == {"caption": pairs[0].captions[0]}
        assert run_encode(manifest, tmp_path / "s").counts == {"already_in_set": 75, "rejected": 2}

    @pytest.mark.parametrize("column", [None, "digest"])
    def test_rows_of_one_picture_that_are_apart_say_that_it_is_the_key(
        self, column: str | None, tmp_path: Path
    ) -> None:
        buffers = [io.BytesIO(), io.BytesIO()]
        for shade, buffer in enumerate(buffers):
            Image.new("RGB", (4, 4), (9, 9, 200 * shade)).save(buffer, "PNG")
        pictures = [buffer.getvalue() for buffer in buffers]
        rows = [
            {"image": {"bytes": pictures[n % 2], "path": None}, "caption": f"{n}", "digest": sha256(pictures[n % 2])}
            for n in (0, 2, 1, 4, 3)
        ]
        shuffled, ordered = tmp_path / "shuffled.parquet", tmp_path / "sorted.parquet"
        pq.write_table(pa.Table.from_pylist(rows), shuffled)
        run = encode_with(open_corpus(shuffled, key=column), tmp_path / "s", encoders())
        assert sorted((r.reason, r.position, str(r.modality)) for r in run.refused) == [
            ("key-duplicate", position, modality) for position in (4, 5) for modality in MODALITIES
        ]
        assert {("SHA-256" in r.detail, "--key" in r.detail, str(r.key)[:64] in r.detail) for r in run.refused} == {
            (True, True, False)
        }
        table = pq.read_table(shuffled)  # as docs/corpora.md says
        pq.write_table(table.take(pc.sort_indices(pc.struct_field(table["image"], "bytes"))), ordered)
        run = encode_with(open_corpus(ordered, key=column), tmp_path / "t", encoders())
        assert (run.refused, run.counts["encoded"]) == ([], 2 + 5)

    def test_rows_that_cannot_be_read_are_refused(self, pairs: list[Pair], tmp_path: Path) -> None:
        manifest = write_manifest(tmp_path / "corpus.jsonl", pairs[:5], {"caption": "no key"}, {"key": "k"})
        with manifest.open("a") as file:
            file.write("{broken\n")
        done = run_encode(manifest, tmp_path / "s")
        assert [reason for _, _, reason in done.rejects] == [
            "key-missing",
            "row-without-image-or-caption",
            "row-unreadable",
        ]
        assert done.counts == {"encoded": 15, "rejected": 3}

    def test_an_image_that_breaks_keeps_its_old_row(self, manifest: Path, pairs: list[Pair], tmp_path: Path) -> None:
        run_encode(manifest, tmp_path / "s")
        before = stored(tmp_path / "s", "image")
        pairs[0].image.write_bytes(b"broken")
        done = run_encode(manifest, tmp_path / "s")
        assert done.rejects == [(pairs[0].key, "decode", "image-unidentified")]
        assert done.counts == {"already_in_set": 74, "rejected": 1}
        assert stored(tmp_path / "s", "image") == before

    def test_a_file_name_that_is_no_unicode_is_refused(self, pairs: list[Pair], tmp_path: Path) -> None:
        try:
            pairs[0].image.rename(os.fsdecode(os.fsencode(tmp_path / "images") + b"/caf\xe9.png"))
        except OSError:
            pytest.skip("this file system takes no such name")
        done = run_encode(tmp_path / "images", tmp_path / "s")
        assert done.rejects == [(None, "read", "path-not-unicode")]
        assert done.counts == {"encoded": 24, "rejected": 1}

    def test_rejects_are_recorded(self, pairs: list[Pair], tmp_path: Path, provenance: Provenance) -> None:
        bad = {"key": "bad", "image": "missing.png"}
        manifest = write_manifest(tmp_path / "corpus.jsonl", pairs[:2], bad)
        encoders: Encoders = {"image": FakeImageEncoder()}
        with (
            provenance.runs.start("encode", {}) as run,
            SetWriter(tmp_path / "s", corpus="c", encoders={"image": encoders["image"].card}) as writer,
        ):
            encode(open_corpus(manifest), writer, encoders, run)
        [row] = provenance.runs.rejects(run.id)
        assert (row.source, row.position, row.key, row.modality) == (str(manifest), 3, "bad", "image")
        assert (row.stage, row.reason) == ("read", "image-missing")
        assert str(tmp_path / "missing.png") in row.detail
        assert provenance.runs.newest(1)[0].counts["rejected"] == 1


class TestEmpty:
    def test_an_empty_corpus_is_an_error_and_breaks_nothing(self, manifest: Path, tmp_path: Path) -> None:
        run_encode(manifest, tmp_path / "s")
        before = files(tmp_path / "s")
        manifest.write_text("\n\n")
        with raises(CorpusError, manifest):
            run_encode(manifest, tmp_path / "s")
        assert files(tmp_path / "s") == before
        assert EmbeddingSet.open(tmp_path / "s").card.counts == {"image": 25, "text": 50}

    def test_an_empty_corpus_makes_no_set(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with raises(CorpusError, tmp_path / "empty"):
            run_encode(tmp_path / "empty", tmp_path / "s")
        assert not (tmp_path / "s").exists()

    def test_an_encode_that_fails_goes_on_where_it_was(self, manifest: Path, tmp_path: Path) -> None:
        class Failing(CountingImages):
            def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
                if len(self.batches) == 4:
                    raise RuntimeError("out of memory")
                return super().embed(modality, prepared)

        with pytest.raises(RuntimeError, match="out of memory"):
            encode_with(manifest, tmp_path / "s", {"image": Failing()})
        with raises(EmbeddingSetError, tmp_path / "s"):
            EmbeddingSet.open(tmp_path / "s")
        done = run_encode(manifest, tmp_path / "s", ["image"])
        assert done.counts == {"already_in_set": 12, "encoded": 13, "left_out": 50}
        run_encode(manifest, tmp_path / "fresh", ["image"])
        assert {**files(tmp_path / "s"), "card.json": b""} == {**files(tmp_path / "fresh"), "card.json": b""}


@dataclass(frozen=True, slots=True)
class Listed(Corpus):
    """A corpus of given items that remembers how many were read."""

    items: Sequence[Item]
    read: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Item | Reject]:
        for item in self.items:
            self.read.append(item.position)
            yield item

    def total(self) -> int:
        return len(self.items)


class TestMemory:
    def test_the_corpus_is_read_a_few_batches_ahead(self, tmp_path: Path) -> None:
        n = 200
        texts = [Item("text", str(i), str(i), f"text {i}", {}, "list", i + 1) for i in range(n)]
        corpus = Listed(tmp_path, texts)
        ahead: list[int] = []

        class Watching(FakeTextEncoder):
            embedded = 0

            def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
                self.embedded += len(prepared)
                ahead.append(len(corpus.read) - self.embedded)
                return super().embed(modality, prepared)

        encode_with(corpus, tmp_path / "s", {"text": Watching()})
        assert len(corpus.read) == n
        assert len(ahead) == n // BATCH
        assert max(ahead) <= BATCH * (WINDOWS_AHEAD + 2)  # beside those: one in hand, one being read

    def test_few_images_are_held(self, tmp_path: Path) -> None:
        pairs = fake_pairs(tmp_path, 60)
        alive, most, lock = 0, 0, threading.Lock()

        def gone() -> None:
            nonlocal alive
            with lock:
                alive -= 1

        class Watching(FakeImageEncoder):
            def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
                nonlocal alive, most
                prepared = super().prepare(modality, content)
                with lock:
                    alive += 1
                    most = max(most, alive)
                weakref.finalize(prepared, gone)
                return prepared

        encode_with(write_manifest(tmp_path / "c.jsonl", pairs), tmp_path / "s", {"image": Watching()})
        assert EmbeddingSet.open(tmp_path / "s").card.counts["image"] == 60
        assert 0 < most <= (WINDOWS_AHEAD + 3) * BATCH
        assert alive == 0
