"""An encode that is killed anywhere ends, when run again, where an undisturbed one does."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from alignment.errors import EmbeddingSetError
from alignment.modality import Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.shards import shard_paths
from alignment.vectors import FloatArray
from connector.encoding.encoders import Encoder
from tests.support.encoding import (
    CountingTexts,
    Encoders,
    encode_with,
    files,
    stored,
)
from tests.support.errors import raises
from tests.support.fakes import NAN_WORD, FakeImageEncoder, fake_pairs, write_manifest
from tests.support.slow import slow_unless


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


def plain_texts() -> Encoders:
    return {"text": CountingTexts()}


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_a_batch(manifest: Path, path: Path, moment: int, encoders: Callable[[], Encoders] = neighbourly) -> None:
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
        encode_with(manifest, path, encoders())


def killed_in_a_rename(manifest: Path, path: Path, moment: int) -> None:
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


MOMENTS: list[tuple[Callable[[Path, Path, int], None], int]] = [
    *((killed_in_a_batch, moment) for moment in (0, 1, 3, 8, 14, 19)),
    *((killed_in_a_rename, moment) for moment in (0, 1, 2, 3, 5, 8, 11)),
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
    @pytest.mark.slow
    @pytest.mark.parametrize(("crash", "moment"), MOMENTS)
    def test_the_next_run_ends_where_an_undisturbed_one_does(
        self,
        processes: ForkServerContext,
        corpus: Path,
        undisturbed: dict[str, bytes],
        tmp_path: Path,
        crash: Callable[[Path, Path, int], None],
        moment: int,
    ) -> None:
        path = tmp_path / "s"
        die(processes, crash, corpus, path, moment)
        if (path / "card.json").exists():
            whole = shard_paths(path, "image") + shard_paths(path, "text")
            assert all(file.read_bytes() == undisturbed[file.name] for file in whole)
            if files(path) != undisturbed:
                with raises(EmbeddingSetError, path):
                    EmbeddingSet.open(path)
        encode_with(corpus, path, neighbourly())
        assert files(path) == undisturbed

    @pytest.mark.slow
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
        ("crash", "moment"),
        slow_unless(
            lambda case: case[1] in (1, 4, 7),
            [(killed_in_a_batch, 1), *((killed_in_a_rename, moment) for moment in range(8))],
        ),
    )
    def test_a_killed_update_ends_as_an_undisturbed_one(
        self,
        processes: ForkServerContext,
        corpus: Path,
        undisturbed: dict[str, bytes],
        tmp_path: Path,
        crash: Callable[[Path, Path, int], None],
        moment: int,
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
        die(processes, killed_in_a_batch, manifest, tmp_path / "s", moment, plain_texts)
        run = encode_with(manifest, tmp_path / "s", plain_texts())
        assert run.counts["rejected"] == 9
        assert stored(tmp_path / "s", "text") == stored(tmp_path / "plain", "text")
        assert len(stored(tmp_path / "s", "text")) == 51
        fingerprints = {EmbeddingSet.open(tmp_path / name).card.fingerprint for name in ("s", "plain")}
        assert len(fingerprints) == 1
