"""What an embedding set already holds, by key and by content."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.sets.writer import SetWriter
from connector.encoding.set_index import LOOKED_UP_AT_ONCE, Gone, SetIndex
from tests.support.fakes import TEXT_DIM, FakeTextEncoder, fake_rows


def test_rows_are_found_by_key_and_by_content(tmp_path: Path) -> None:
    vectors = np.arange(3 * TEXT_DIM, dtype=np.float32).reshape(3, TEXT_DIM) + 1
    rows = fake_rows("text", vectors)
    with SetWriter(tmp_path / "s", corpus="c", encoders={"text": FakeTextEncoder().card}) as writer:
        writer.append(rows)
        index = SetIndex(writer)
    row = index.find_keys("text", ["1", "9"])["1"]
    assert row.matches(rows.content_sha256[1], rows.groups[1], rows.payloads[1])
    assert not row.matches(rows.content_sha256[1], "another group", rows.payloads[1])
    assert not row.matches(rows.content_sha256[1], f"{rows.groups[1]}{rows.payloads[1]}", "")
    assert not index.find_keys("image", ["1"])
    found = index.find_vectors("text", [rows.content_sha256[2], "00" * 32, rows.content_sha256[0]])
    assert found.keys() == {rows.content_sha256[0], rows.content_sha256[2]}
    np.testing.assert_array_equal(found[rows.content_sha256[2]], vectors[2])
    assert index.known.among("text", [rows.content_sha256[2], "00" * 32]) == {rows.content_sha256[2]}
    index.close()


def test_newer_rows_of_a_key_supersede_older_ones(tmp_path: Path) -> None:
    rows = fake_rows("text", np.ones((3, TEXT_DIM), np.float32))
    with SetWriter(tmp_path / "s", corpus="c", encoders={"text": FakeTextEncoder().card}) as writer:
        first = writer.append(rows)
        index = SetIndex(writer)
        second = rows.take([1])
        assert not index.add(writer.append(second), second)
        third = fake_rows("text", np.ones((1, TEXT_DIM), np.float32), prefix="new")
        assert index.add(writer.append(third), third)
    assert index.superseded() == {("text", first.name): {1}}
    assert index.first_times("text", ["0", "0"]) == [True, False]
    assert index.first_times("text", ["0", "1"]) == [False, True]
    assert index.unseen() == {"text": Gone(2, 3)}
    assert sorted(key for _, _, keys in index.unseen_rows() for key in keys.values()) == ["2", "new0"]
    index.close()


def test_a_vector_of_superseded_content_is_found_and_the_first_of_equal_contents_is_taken(tmp_path: Path) -> None:
    rows = fake_rows("text", np.arange(2 * TEXT_DIM, dtype=np.float32).reshape(2, TEXT_DIM) + 1)
    old, new = rows.content_sha256
    with SetWriter(tmp_path / "s", corpus="c", encoders={"text": FakeTextEncoder().card}) as writer:
        writer.append(rows.take([0]))
        index = SetIndex(writer)
        changed = replace(rows.take([1]), keys=rows.keys[:1])
        index.add(writer.append(changed), changed)
        again = replace(rows.take([1]), keys=["another"], vectors=rows.vectors[1:] * 2)
        index.add(writer.append(again), again)
    found = index.find_vectors("text", [new, old])
    np.testing.assert_array_equal([found[old], found[new]], rows.vectors)
    index.close()


def test_more_keys_than_one_statement_takes_are_looked_up(tmp_path: Path) -> None:
    count = 2 * LOOKED_UP_AT_ONCE + 1
    rows = fake_rows("text", np.arange(count * TEXT_DIM, dtype=np.float32).reshape(count, TEXT_DIM) + 1)
    with SetWriter(tmp_path / "s", corpus="c", encoders={"text": FakeTextEncoder().card}) as writer:
        writer.append(rows)
        index = SetIndex(writer)
    assert index.find_keys("text", rows.keys).keys() == set(rows.keys)
    found = index.find_vectors("text", rows.content_sha256)
    np.testing.assert_array_equal([found[content] for content in rows.content_sha256], rows.vectors)
    assert index.first_times("text", rows.keys + rows.keys) == [True] * count + [False] * count
    index.close()


def test_a_lookup_costs_the_same_in_a_large_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite counts its instructions. A scan for every new item would make an encode quadratic."""
    rows = fake_rows("text", np.ones((5000, TEXT_DIM), np.float32))
    connections: list[sqlite3.Connection] = []
    connect = sqlite3.connect
    steps = 0

    def recorded(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments, **options))
        return connections[-1]

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    monkeypatch.setattr(sqlite3, "connect", recorded)
    with SetWriter(tmp_path / "s", corpus="c", encoders={"text": FakeTextEncoder().card}) as writer:
        writer.append(rows)
        index = SetIndex(writer)
        (connection,) = connections
        connection.set_progress_handler(step, 10)  # every ten instructions
        assert not index.find_vectors("text", ["00" * 32])
        assert index.find_vectors("text", [rows.content_sha256[7]])
        assert not index.known.among("text", ["00" * 32])
        assert not index.find_keys("text", ["00" * 32])
        assert index.first_times("text", ["00" * 32])
        index.close()
    assert 0 < steps < 40
