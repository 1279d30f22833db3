"""The command `delete`, and `ingest --prune`."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from alignment.modality import MODALITIES, Modality
from alignment.sets.embedding_set import EmbeddingSet
from tests.support.cli import N, done, modalign
from tests.support.fakes import fake_pairs, write_manifest


class TestDeleting:
    def test_nobody_is_there_to_ask(self, unbroken: Path, corpus: Path) -> None:
        for words in (
            ("delete", "things", "--key", "s0-00001"),
            ("ingest", corpus, "--into", "things", "--alignment", "a", "--prune"),
        ):
            ended = modalign(*words, "--home", unbroken)
            assert (ended.code, "add --yes" in ended.error) == (2, True)

    @pytest.mark.parametrize(("answer", "left"), [(True, N - 1), (False, N)])
    def test_on_a_terminal_it_asks(self, home: Path, monkeypatch: pytest.MonkeyPatch, answer: bool, left: int) -> None:
        asked: list[str] = []
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)

        def confirm(question: str, **_: Any) -> bool:
            asked.append(question)
            return answer

        monkeypatch.setattr(click, "confirm", confirm)
        ended = modalign("delete", "things", "--key", "s0-00001", "--home", home)
        assert ended.code == int(not answer)
        assert asked == ["delete 1 item, from the embedding sets: pairs; from the collection things?"]
        assert ("nothing was deleted" in ended.err) is not answer
        assert EmbeddingSet.open(home / "sets" / "pairs").card.counts["image"] == left

    def test_by_filter_with_yes(self, home: Path) -> None:
        condition = '{"must": [{"key": "group", "match": {"value": "s0-00002"}}]}'
        words = ("delete", "things", "--filter", condition, "--yes", "--json", "--home", home)
        for deleted in (2, 0):
            document = done(*words).document
            assert (document["deleted"], document["points_deleted"]) == (deleted, deleted)

    def test_a_filter_that_could_mean_more_deletes_nothing(self, unbroken: Path) -> None:
        group = '"key": "group", "match": {"value": "s0-00002"}'
        for condition in (
            f'{{"must": [{{{group}, "range": {{"gte": 0}}}}]}}',
            f'{{"must": [{{{group}}}], "must": []}}',
            '{"must_not": [{"key": "group"}]}',
        ):
            ended = modalign("delete", "things", "--filter", condition, "--yes", "--home", unbroken)
            assert (ended.code, "filter" in ended.error) == (2, True)
        assert EmbeddingSet.open(unbroken / "sets" / "pairs").card.counts["image"] == N

    def test_neither_key_nor_filter(self, unbroken: Path) -> None:
        assert "expected --key, --group or --filter" in modalign("delete", "things", "--yes", "--home", unbroken).error

    def test_pruning_keeps_what_a_broken_row_may_be(self, home: Path, tmp_path: Path) -> None:
        found = fake_pairs(tmp_path, 6, seed=1)
        words = ("--into", "new", "--alignment", "a", "--prune", "--yes", "--prune-at-most", 0.5, "--home", home)
        done("ingest", write_manifest(tmp_path / "m.jsonl", found), *words)
        manifest = write_manifest(tmp_path / "m.jsonl", found[:4], {"image": "no key"})
        ended = modalign("ingest", manifest, *words)
        assert (ended.code, "4 items of the embedding set" in ended.error) == (1, True)
        done("ingest", write_manifest(tmp_path / "m.jsonl", found[:4]), *words)
        assert EmbeddingSet.open(home / "sets" / "new").card.counts == {"image": 4, "text": 4}


class TestManyThatLeft:
    """A corpus that lost much at once may be cut: its items stay, unless the command says that so many may go."""

    @pytest.mark.slow
    @pytest.mark.parametrize("terminal", [False, True])
    def test_many_that_left_are_kept_unless_the_bound_says_so(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
    ) -> None:
        """A manifest that was cut in the middle."""
        if terminal:
            monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
            monkeypatch.setattr(click, "confirm", lambda *_, **__: True)
        pairs = fake_pairs(tmp_path, 20, seed=1)
        manifest = write_manifest(tmp_path / "m.jsonl", pairs)
        words = ["ingest", manifest, "--into", "new", "--alignment", "a", "--prune", "--home", home]
        words += [] if terminal else ["--yes"]
        done(*words)
        write_manifest(manifest, pairs[:10])
        ended = modalign(*words)
        assert (ended.code, ended.error_code, "20 items" in ended.err) == (1, "corpus", True)
        assert counts(home, "new") == {"image": 20, "text": 20}
        done(*words, "--prune-at-most", 0.9)
        assert counts(home, "new") == {"image": 10, "text": 10}

    def test_a_folder_of_which_a_part_is_not_mounted(self, home: Path, tmp_path: Path) -> None:
        pairs = fake_pairs(tmp_path, 20, seed=1)
        folder = tmp_path / "folder"
        for disk, of_disk in (("one", pairs[:14]), ("two", pairs[14:])):
            (folder / disk).mkdir(parents=True)
            for pair in of_disk:
                pair.image.rename(folder / disk / pair.image.name)
                (folder / disk / pair.image.name).with_suffix(".txt").write_text(pair.captions[0])
        words = ("ingest", folder, "--into", "new", "--alignment", "a", "--prune", "--yes", "--home", home)
        done(*words)
        (folder / "two").rename(tmp_path / "away")
        (folder / "two").mkdir()
        ended = modalign(*words)
        assert (ended.error_code, "--prune-at-most 0.3" in ended.err) == ("corpus", True)
        (folder / "two").rmdir()
        (tmp_path / "away").rename(folder / "two")
        done(*words)
        assert counts(home, "new") == {"image": 20, "text": 20}

    def test_few_captions_beside_many_images(self, home: Path, tmp_path: Path) -> None:
        """All captions are less than a quarter of all items."""
        pairs = fake_pairs(tmp_path, 22, seed=1)
        plain = [replace(pair, captions=[]) for pair in pairs]
        manifest = write_manifest(tmp_path / "m.jsonl", [*pairs[:2], *plain[2:]])
        words = ("ingest", manifest, "--into", "new", "--alignment", "a", "--prune", "--yes", "--home", home)
        done(*words)
        write_manifest(manifest, plain)
        assert modalign(*words).error_code == "corpus"
        assert counts(home, "new") == {"image": 22, "text": 2}

    def test_what_is_new_does_not_hide_what_left(self, home: Path, tmp_path: Path) -> None:
        """All keys change, and much is added."""
        pairs = fake_pairs(tmp_path, 22, seed=1)
        manifest = write_manifest(tmp_path / "m.jsonl", pairs[:2])
        words = ("ingest", manifest, "--into", "new", "--alignment", "a", "--prune", "--yes", "--home", home)
        done(*words)
        write_manifest(manifest, pairs[2:])
        assert modalign(*words).error_code == "corpus"
        assert counts(home, "new") == {"image": 22, "text": 22}

    def test_exactly_the_bound_is_pruned(self, home: Path, tmp_path: Path) -> None:
        pairs = fake_pairs(tmp_path, 20, seed=1)
        manifest = write_manifest(tmp_path / "m.jsonl", pairs)
        words = ("ingest", manifest, "--into", "new", "--alignment", "a", "--prune", "--yes", "--home", home)
        done(*words)
        write_manifest(manifest, pairs[:15])
        done(*words)
        assert counts(home, "new") == {"image": 15, "text": 15}

    def test_a_bound_without_a_prune_is_refused(self, unbroken: Path, corpus: Path) -> None:
        words = ("ingest", corpus, "--into", "things", "--alignment", "a", "--prune-at-most", 0.5, "--home", unbroken)
        assert "--prune-at-most is for --prune" in modalign(*words).error


def counts(home: Path, collection: str) -> Mapping[Modality, int]:
    """The items in the sets of `collection`, which an ingest writes."""
    cards = [EmbeddingSet.open(path).card for path in (home / "sets").glob(f"{collection}*") if path.is_dir()]
    return {modality: sum(card.counts[modality] for card in cards) for modality in MODALITIES}
