"""The command `delete`, and `ingest --prune`."""

import sys
from pathlib import Path
from typing import Any

import click
import pytest

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

    def test_parts_ask_nobody(self, unbroken: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        words = ("ingest", corpus, "--into", "things", "--alignment", "a", "--prune", "--parts", 2)
        assert "add --yes" in modalign(*words, "--home", unbroken).error

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
        assert asked == ["delete 1 items, from the embedding sets: pairs; from the collection things?"]
        assert ("nothing was deleted" in ended.err) is not answer
        assert EmbeddingSet.open(home / "sets" / "pairs").card.counts["image"] == left

    def test_by_filter_with_yes(self, home: Path) -> None:
        condition = '{"must": [{"key": "group", "match": {"value": "s0-00002"}}]}'
        words = ("delete", "things", "--filter", condition, "--yes", "--json", "--home", home)
        assert done(*words).document["deleted"] == 2
        assert done(*words).document["deleted"] == 0

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
        assert "expected --key or --filter" in modalign("delete", "things", "--yes", "--home", unbroken).error

    def test_pruning_keeps_what_a_broken_row_may_be(self, home: Path, tmp_path: Path) -> None:
        found = fake_pairs(tmp_path, 6, seed=1)
        words = ("--into", "new", "--alignment", "a", "--prune", "--yes", "--home", home)
        done("ingest", write_manifest(tmp_path / "m.jsonl", found), *words)
        manifest = write_manifest(tmp_path / "m.jsonl", found[:4], {"image": "no key"})
        ended = modalign("ingest", manifest, *words)
        assert (ended.code, "4 items of the embedding set were not met" in ended.error) == (1, True)
        done("ingest", write_manifest(tmp_path / "m.jsonl", found[:4]), *words)
        assert EmbeddingSet.open(home / "sets" / "new").card.counts == {"image": 4, "text": 4}
