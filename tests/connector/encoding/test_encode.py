"""Encoding: what is embedded, what is reused, what is refused, and that a kill changes nothing."""

import json
import os
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from alignment.errors import EmbeddingSetError
from alignment.modality import MODALITIES, Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.shards import shard_paths
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray
from connector.corpora.formats import open_corpus
from connector.corpora.items import Corpus, Item
from connector.encoding.encode import WINDOWS_AHEAD, encode
from connector.encoding.encoders import Encoder
from connector.encoding.set_index import SetIndex
from connector.errors import CorpusError
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.rejects import Reject
from tests.support.fakes import NAN_WORD, FakeImageEncoder, FakeTextEncoder, Pair, fake_pairs, fake_rows, write_manifest

BATCH, SHARD = 4, 10
Encoders = Mapping[Modality, Encoder]


class CountingImages(FakeImageEncoder):
    """Counts what it embeds."""

    def __init__(self, name: str = "small") -> None:
        super().__init__(name)
        self.batches: list[int] = []

    def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        self.batches.append(len(prepared))
        return super().embed(modality, prepared)


class CountingTexts(FakeTextEncoder):
    """Counts what it embeds."""

    def __init__(self, name: str = "small") -> None:
        super().__init__(name)
        self.batches: list[int] = []

    def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        self.batches.append(len(prepared))
        return super().embed(modality, prepared)


@dataclass
class Encoded:
    """What an encode did: its counts, its rejects as (key, stage, reason), how many items of which were embedded."""

    counts: dict[str, int]
    rejects: list[tuple[str | None, str, str]]
    images: list[int]
    texts: list[int]


def run_encode(
    corpus: Corpus | Path, path: Path, modalities: Sequence[Modality] = ("image", "text"), **options: Any
) -> Encoded:
    images, texts = CountingImages(), CountingTexts()
    both: dict[Modality, Encoder] = {"image": images, "text": texts}
    encoders = {modality: both[modality] for modality in modalities}
    run = encode_with(corpus, path, encoders, **options)
    rejects = [(row.key, row.stage, row.reason) for row in run._rejects]
    return Encoded({k: v for k, v in run.counts.items() if v}, rejects, images.batches, texts.batches)


def encode_with(corpus: Corpus | Path, path: Path, encoders: Encoders, **options: Any) -> Run:
    read = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    run = Run(1)
    cards = {modality: encoder.card for modality, encoder in encoders.items()}
    with SetWriter(path, corpus="corpus", encoders=cards) as writer:
        encode(read, writer, encoders, run, **{"batch_items": BATCH, "shard_rows": SHARD, **options})
    return run


def stored(path: Path, modality: Modality) -> dict[str, tuple[str, str, Any, list[float]]]:
    """The rows of a set by key: group, content hash, payload, vector. A key that stands twice is an error."""
    rows = EmbeddingSet.open(path).load(modality)
    assert len(set(rows.keys)) == len(rows)
    payloads = map(json.loads, rows.payloads)
    columns = zip(rows.keys, rows.groups, rows.content_sha256, payloads, rows.vectors.tolist(), strict=True)
    return {key: (group, sha, payload, vector) for key, group, sha, payload, vector in columns}


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


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
        assert done.counts == {"unchanged": 75}
        assert (done.images, done.texts) == ([], [])
        assert files(tmp_path / "s") == before
        assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "s").iterdir()} == times

    def test_other_batches_and_shards_are_no_change(self, manifest: Path, tmp_path: Path) -> None:
        run_encode(manifest, tmp_path / "s")
        before = files(tmp_path / "s")
        assert run_encode(manifest, tmp_path / "s", batch_items=7, shard_rows=3).counts == {"unchanged": 75}
        assert files(tmp_path / "s") == before

    def test_new_items_are_added(self, pairs: list[Pair], tmp_path: Path) -> None:
        run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs[:20]), tmp_path / "s")
        before = files(tmp_path / "s")
        done = run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs), tmp_path / "s")
        assert done.counts == {"unchanged": 60, "encoded": 15}
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
        assert done.counts == {"unchanged": 72, "encoded": 3}
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
            assert run_encode(manifest, tmp_path / "s").counts == {"unchanged": 74, "encoded": 1}
            pairs[7].image.write_bytes(file)
            assert run_encode(manifest, tmp_path / "s").counts == {"unchanged": 74, "encoded": 1}
        assert stored(tmp_path / "s", "image") == first

    def test_contents_that_swap_are_not_embedded(self, pairs: list[Pair], tmp_path: Path) -> None:
        manifest = write_manifest(tmp_path / "corpus.jsonl", pairs)
        run_encode(manifest, tmp_path / "s")
        first = stored(tmp_path / "s", "image")
        one, other = pairs[0].image.read_bytes(), pairs[20].image.read_bytes()
        pairs[0].image.write_bytes(other)
        pairs[20].image.write_bytes(one)
        done = run_encode(manifest, tmp_path / "s")
        assert done.counts == {"unchanged": 73, "reused": 2}
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
        assert done.counts == {"unchanged": 72, "reused": 3}
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

    def test_a_new_name_needs_no_embedding(self, pairs: list[Pair], tmp_path: Path) -> None:
        run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs), tmp_path / "s")
        renamed = replace(pairs[4], key="renamed", group="renamed")
        done = run_encode(write_manifest(tmp_path / "corpus.jsonl", [*pairs[:4], renamed, *pairs[5:]]), tmp_path / "s")
        assert done.counts == {"unchanged": 72, "reused": 3, "no_longer_in_corpus": 3}
        assert (done.images, done.texts) == ([], [])
        images = stored(tmp_path / "s", "image")
        assert images["renamed"][3] == images[pairs[4].key][3]

    def test_rows_that_the_corpus_has_lost_are_counted_and_kept(self, pairs: list[Pair], tmp_path: Path) -> None:
        run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs), tmp_path / "s")
        before = files(tmp_path / "s")
        done = run_encode(write_manifest(tmp_path / "corpus.jsonl", pairs[:10]), tmp_path / "s")
        assert done.counts == {"unchanged": 30, "no_longer_in_corpus": 45}
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
        message = rf"fake-{modality}:small.*fake-{modality}:large.*name another --set"
        with pytest.raises(EmbeddingSetError, match=message) as raised:
            encode_with(manifest, tmp_path / "s", {modality: other})
        assert other.fingerprint[:12] in str(raised.value)
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
        assert again.counts == {"unchanged": 81, "rejected": 6}
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
        [reject] = run._rejects
        assert (reject.key, reject.modality, reject.position) == (pairs[place].key, "image", place + 1)
        assert (reject.stage, reject.reason) == ("encode", "preprocessing-failed")
        assert reject.detail == "ZeroDivisionError: no such crop"
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
        found = [(reject.key, reject.stage, reject.reason, reject.detail) for reject in run._rejects]
        assert found == [("odd#1", "encode", "preprocessing-failed", "ValueError: no such token")]
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
        assert run_encode(manifest, tmp_path / "s").counts == {"unchanged": 75, "rejected": 2}

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
        assert done.counts == {"unchanged": 74, "rejected": 1}
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
        with pytest.raises(CorpusError, match=r"corpus\.jsonl is empty"):
            run_encode(manifest, tmp_path / "s")
        assert files(tmp_path / "s") == before
        assert EmbeddingSet.open(tmp_path / "s").card.counts == {"image": 25, "text": 50}

    def test_an_empty_corpus_makes_no_set(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(CorpusError, match="is empty"):
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
        with pytest.raises(EmbeddingSetError, match=r"incomplete.*run the same"):
            EmbeddingSet.open(tmp_path / "s")
        done = run_encode(manifest, tmp_path / "s", ["image"])
        assert done.counts == {"unchanged": 12, "encoded": 13, "left_out": 50}
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


def test_a_look_into_the_index_costs_the_same_in_a_large_set(tmp_path: Path) -> None:
    """SQLite's own count of instructions, by tens: what is linear here makes an encode quadratic."""
    with SetWriter(tmp_path / "s", corpus="c", encoders={"text": FakeTextEncoder().card}) as writer:
        writer.append(fake_rows("text", np.ones((5000, 10), np.float32)))
        index = SetIndex(writer)
    tens: list[int] = []
    index._database.set_progress_handler(lambda: tens.append(1) or 0, 10)  # type: ignore[func-returns-value]
    assert index.find_vector("text", "0" * 64) is None
    assert not index.knows("text", "0" * 64)
    assert index.find_key("text", "unknown") is None
    assert index.first_time("text", "unknown")
    assert len(tens) < 20
    index.close()


class Neighbourly(FakeImageEncoder):
    """Its vectors depend on their batch, as those of real models do in the last bits."""

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        plain = super().forward(modality, prepared)
        return plain + 1e-3 * plain.mean() + 1e-4 * len(prepared)


class NeighbourlyTexts(CountingTexts):
    """Its vectors depend on their batch, as those of real models do in the last bits."""

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        plain = super().forward(modality, prepared)
        return plain + 1e-3 * plain.nanmean() + 1e-4 * len(prepared)


def neighbourly() -> Encoders:
    return {"image": Neighbourly(), "text": NeighbourlyTexts()}


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_a_batch(manifest: Path, path: Path, moment: float) -> None:
    """Die before the batch with this number, of either modality."""
    left = moment

    def embed(self: Encoder, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        nonlocal left
        left -= 1
        if left < 0:
            kill_me()
        return plain(self, modality, prepared)

    plain = Encoder.embed
    with patch.object(Encoder, "embed", embed):
        encode_with(manifest, path, neighbourly())


def killed_in_a_rename(manifest: Path, path: Path, moment: float) -> None:
    """Die when the file with this number is written but does not stand in its place."""
    left = moment

    def rename(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            kill_me()
        return plain(self, target)

    plain = Path.replace
    with patch("pathlib.Path.replace", rename):
        encode_with(manifest, path, neighbourly())


def killed_by_the_clock(manifest: Path, path: Path, moment: float) -> None:
    """Die wherever it is after so many seconds of slow work."""

    def embed(self: Encoder, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        time.sleep(0.004)
        return plain(self, modality, prepared)

    plain = Encoder.embed
    threading.Timer(moment, kill_me).start()
    with patch.object(Encoder, "embed", embed):
        encode_with(manifest, path, neighbourly())
    time.sleep(60)


MOMENTS: list[tuple[Callable[[Path, Path, float], None], float]] = [
    *((killed_in_a_batch, moment) for moment in (0, 1, 3, 8, 14, 19)),
    *((killed_in_a_rename, moment) for moment in (0, 1, 2, 3, 5, 8, 11)),
    *((killed_by_the_clock, moment) for moment in np.random.default_rng(11).uniform(0.0, 0.12, 6).tolist()),
]


def die(processes: ForkServerContext, crash: Callable[..., None], *arguments: Any) -> None:
    child = processes.Process(target=crash, args=arguments, daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with twins, a broken image, a row that cannot be read and a duplicate key."""
    directory = tmp_path_factory.mktemp("corpus")
    pairs = fake_pairs(directory, 25, seed=3, captions=2)
    (directory / "images" / "broken.png").write_bytes(b"broken")
    twin = replace(pairs[1], key="twin", group="twin")
    broken = {"key": "broken", "image": "images/broken.png", "caption": "a broken image"}
    rows: list[dict[str, Any]] = [pair.row(directory) for pair in [*pairs[:18], twin, *pairs[18:]]]
    rows[5:5] = [broken, {"caption": "no key"}]
    rows.append(pairs[0].row(directory))
    manifest = directory / "corpus.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.fixture(scope="module")
def undisturbed(corpus: Path) -> dict[str, bytes]:
    encode_with(corpus, corpus.parent / "s", neighbourly())
    assert len(shard_paths(corpus.parent / "s", "image")) == 3
    assert len(shard_paths(corpus.parent / "s", "text")) == 5
    return files(corpus.parent / "s")


class TestKilled:
    @pytest.mark.parametrize(("crash", "moment"), MOMENTS)
    def test_the_next_run_ends_where_an_undisturbed_one_does(
        self,
        processes: ForkServerContext,
        corpus: Path,
        undisturbed: dict[str, bytes],
        tmp_path: Path,
        crash: Callable[[Path, Path, float], None],
        moment: float,
    ) -> None:
        path = tmp_path / "s"
        die(processes, crash, corpus, path, moment)
        if (path / "card.json").exists():
            whole = shard_paths(path, "image") + shard_paths(path, "text")
            assert all(file.read_bytes() == undisturbed[file.name] for file in whole)
            if files(path) != undisturbed:
                with pytest.raises(EmbeddingSetError, match="incomplete"):
                    EmbeddingSet.open(path)
        encode_with(corpus, path, neighbourly())
        assert files(path) == undisturbed

    def test_killed_again_and_again(
        self, processes: ForkServerContext, corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path
    ) -> None:
        path = tmp_path / "s"
        for moment in (4, 7, 8):
            die(processes, killed_in_a_batch, corpus, path, moment)
        for moment in (1, 0):
            die(processes, killed_in_a_rename, corpus, path, moment)
        encode_with(corpus, path, neighbourly())
        assert files(path) == undisturbed

    @pytest.mark.parametrize(
        ("crash", "moment"), [(killed_in_a_batch, 1), *((killed_in_a_rename, moment) for moment in range(8))]
    )
    def test_a_killed_update_ends_as_an_undisturbed_one(
        self,
        processes: ForkServerContext,
        corpus: Path,
        undisturbed: dict[str, bytes],
        tmp_path: Path,
        crash: Callable[[Path, Path, float], None],
        moment: float,
    ) -> None:
        """Rows that were superseded are neither lost nor kept twice, wherever the kill comes."""
        rows = [json.loads(line) for line in corpus.read_text().splitlines()]
        for row in rows[:20:3]:
            row["caption"] = f"changed {row.get('caption')}"
        rows[10]["group"] = "changed"
        manifest = corpus.with_name("changed.jsonl")
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in ("s", "plain"):
            shutil.copytree(corpus.parent / "s", tmp_path / name)
        encode_with(manifest, tmp_path / "plain", neighbourly())
        die(processes, crash, manifest, tmp_path / "s", moment)
        encode_with(manifest, tmp_path / "s", neighbourly())
        assert stored(tmp_path / "s", "image") == stored(tmp_path / "plain", "image")
        assert stored(tmp_path / "s", "text") == stored(tmp_path / "plain", "text")
        card = EmbeddingSet.open(tmp_path / "s").card
        assert card == replace(EmbeddingSet.open(tmp_path / "plain").card, name="s")
        assert card.fingerprint != json.loads(undisturbed["card.json"])["fingerprint"]

    @pytest.mark.parametrize("moment", [2, 9, 13])
    def test_rows_are_equal_where_the_encoder_refused_some(
        self, processes: ForkServerContext, tmp_path: Path, moment: int
    ) -> None:
        captions = [f"text {i} {NAN_WORD if i % 7 == 3 else ''}" for i in range(60)]
        manifest = write_manifest(tmp_path / "corpus.jsonl", [], {"key": "k", "caption": captions})
        encode_with(manifest, tmp_path / "plain", plain_texts())
        die(processes, killed_in_a_plain_batch, manifest, tmp_path / "s", moment)
        run = encode_with(manifest, tmp_path / "s", plain_texts())
        assert run.counts["rejected"] == 9
        assert stored(tmp_path / "s", "text") == stored(tmp_path / "plain", "text")
        assert len(stored(tmp_path / "s", "text")) == 51
        fingerprints = {EmbeddingSet.open(tmp_path / name).card.fingerprint for name in ("s", "plain")}
        assert len(fingerprints) == 1


def plain_texts() -> Encoders:
    return {"text": CountingTexts()}


def killed_in_a_plain_batch(manifest: Path, path: Path, moment: float) -> None:
    with patch("tests.connector.encoding.test_encode.neighbourly", plain_texts):
        killed_in_a_batch(manifest, path, moment)


def test_the_fakes_of_this_module_are_encoders() -> None:
    """Rows, which the tests compare, come from what the encoder says and nothing else."""
    rows = Rows("text", ["a"], ["a"], ["0"], ["{}"], CountingTexts().encode("text", ["red"]))
    np.testing.assert_allclose(rows.vectors, FakeTextEncoder().encode("text", ["red"]), atol=1e-7)


def test_content_is_looked_up_and_not_searched_for(tmp_path: Path) -> None:
    """Every item that is new asks for its content: at a million rows, a search would take a tenth of a second each."""
    rows = fake_rows("image", np.ones((5000, FakeImageEncoder().dim)))
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    with SetWriter(tmp_path / "s", corpus="c", encoders={"image": FakeImageEncoder().card}) as writer:
        writer.append(rows)
        index = SetIndex(writer)
        index._database.set_progress_handler(step, 10)  # instructions of SQLite's machine
        assert index.find_vector("image", "unknown") is None
        assert index.find_vector("image", rows.content_sha256[7]) is not None
        index.close()
    assert steps < 20
