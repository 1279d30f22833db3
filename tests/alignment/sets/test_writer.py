"""Writing sets, alone and beside others; fingerprints; interruptions."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import EmbeddingSetError, SetBusyError
from alignment.modality import Modality
from alignment.sets import writer as module
from alignment.sets.cards import CARD, EncoderCard, SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import IDENTITY, Rows
from alignment.sets.shards import read_shard, shard_paths
from tests.support.errors import raises
from tests.support.fakes import fake_set
from tests.support.sets import CARDS, IMAGE, TEXT, assert_same, files, snapshot, some, writer


def test_appending_makes_a_complete_set_incomplete_first(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 2))
    with writer(tmp_path / "s", encoders={}) as out:
        out.append(some("image", 2, 1, "more"))
        assert not SetCard.read(tmp_path / "s").complete
        assert SetCard.read(tmp_path / "s").fingerprint == ""


def test_finishing_again_without_a_change_touches_no_file(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        out.append(some("image", 2))
        out.append(some("text", 2))
        out.finish()
    before = snapshot(tmp_path / "s")
    with writer(tmp_path / "s") as out:
        out.finish()
        assert out.card == SetCard.read(tmp_path / "s")
    assert snapshot(tmp_path / "s") == before


def test_opening_for_writing_alone_touches_no_file(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 2))
    before = snapshot(tmp_path / "s")
    with writer(tmp_path / "s", encoders={}):
        pass
    assert snapshot(tmp_path / "s") == before


def test_shards_are_numbered_on_even_where_one_has_gone(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        names = [out.append(some("image", 1, i, str(i))) for i in range(3)]
        assert [p.name for p in names] == [f"image-00000{i}.parquet" for i in range(3)]
        out.drop(names[1], "image", {0})
        assert out.append(some("image", 1, 9, "n")).name == "image-000003.parquet"
        assert out.append(some("text", 1)).name == "text-000000.parquet"
    assert shard_paths(tmp_path / "s", "image") == [names[0], names[2], tmp_path / "s" / "image-000003.parquet"]


def test_a_set_of_many_shards_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []

    def listing(path: Path, modality: Modality) -> list[Path]:
        listed.append(modality)
        return shard_paths(path, modality)

    fake_set(tmp_path / "s", some("image", 2))
    monkeypatch.setattr(module, "shard_paths", listing)
    with writer(tmp_path / "s", encoders={}) as out:
        names = [out.append(some("image", 1, i, str(i))).name for i in range(3)]
    assert names == [f"image-00000{i}.parquet" for i in range(1, 4)]
    assert listed == ["image"]


def test_dropped_rows_are_gone_and_the_others_stay(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        shard = out.append(some("image", 5))
        out.drop(shard, "image", {0, 3})
        out.finish()
    assert_same(EmbeddingSet.open(tmp_path / "s").load("image"), some("image", 5).take([1, 2, 4]))


def test_dropping_every_row_removes_the_shard(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        shard = out.append(some("image", 2))
        out.drop(shard, "image", {0, 1})
        out.finish()
    assert not shard.exists()
    assert EmbeddingSet.open(tmp_path / "s").card.counts["image"] == 0


def test_rewriting_half_precision_loses_nothing_more(tmp_path: Path) -> None:
    with writer(tmp_path / "s", dtype="float16") as out:
        shard = out.append(some("image", 5))
        once = read_shard(shard, "image")
        out.drop(shard, "image", {2})
    assert_same(read_shard(shard, "image"), once.take([0, 1, 3, 4]))


def test_identities_are_the_rows_without_their_vectors(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        shard = out.append(some("image", 2))
        [(path, table)] = out.identities("image")
        assert list(out.identities("text")) == []
    assert path == shard
    assert table.column_names == IDENTITY
    assert table.column("key").to_pylist() == ["0", "1"]


def fingerprint(path: Path, *parts: Rows, **changes: Any) -> str:
    with writer(path, **changes) as out:
        for part in parts:
            out.append(part)
        out.finish()
    return EmbeddingSet.open(path).card.fingerprint


def test_a_fingerprint_does_not_depend_on_history(tmp_path: Path) -> None:
    whole, texts = some("image", 6), some("text", 3)
    expected = fingerprint(tmp_path / "a", whole, texts)
    assert len(expected) == 64
    assert fingerprint(tmp_path / "b", texts, whole.take([5, 0, 3]), whole.take([1, 4, 2])) == expected
    with writer(tmp_path / "c", corpus="elsewhere") as out:
        out.append(whole.take([0, 1, 2]))
        out.finish()
    with writer(tmp_path / "c") as out:
        shard = out.append(Rows.concatenate([whole.take([3, 4, 5]), some("image", 1, prefix="superfluous")]))
        out.drop(shard, "image", {3})
        out.append(texts)
        out.finish()
    assert EmbeddingSet.open(tmp_path / "c").card.fingerprint == expected


def test_a_fingerprint_changes_with_any_content(tmp_path: Path) -> None:
    base = some("image", 3)
    other_encoder = {**CARDS, "image": replace(IMAGE, fingerprint="c" * 64)}
    found = [
        fingerprint(tmp_path / "0", base),
        fingerprint(tmp_path / "1", base.take([0, 1])),
        fingerprint(tmp_path / "2", replace(base, keys=["x", *base.keys[1:]])),
        fingerprint(tmp_path / "3", replace(base, groups=["x", *base.groups[1:]])),
        fingerprint(tmp_path / "4", replace(base, content_sha256=["x", *base.content_sha256[1:]])),
        fingerprint(tmp_path / "5", replace(base, payloads=["{}", *base.payloads[1:]])),
        fingerprint(tmp_path / "6", replace(base, modality="text", vectors=base.vectors[:, :3])),
        fingerprint(tmp_path / "7", base, encoders=other_encoder),
        fingerprint(tmp_path / "8", base, encoders={"image": IMAGE}),
    ]
    assert len(set(found)) == len(found)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 2))
    (tmp_path / "s" / "image-000001.parquet.tmp").write_bytes(b"PAR1 half a sha")
    (tmp_path / "s" / "card.json.tmp").write_bytes(b"{")
    assert len(EmbeddingSet.open(tmp_path / "s").load("image")) == 2
    with writer(tmp_path / "s", encoders={}) as out:
        out.finish()
    assert files(tmp_path / "s") == [CARD, "image-000000.parquet"]


def test_a_file_that_no_writer_made_stays(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 2))
    (tmp_path / "s" / "notes.tmp").write_text("mine")
    with writer(tmp_path / "s", encoders={}) as out:
        out.finish()
    assert (tmp_path / "s" / "notes.tmp").read_text() == "mine"


@pytest.mark.parametrize("leftovers", [[], ["card.json.tmp"]])
def test_a_writer_killed_before_its_first_card_can_start_again(leftovers: list[str], tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name in leftovers:
        (tmp_path / "s" / name).write_bytes(b"{")
    with writer(tmp_path / "s") as out:
        out.append(some("image", 1))
        out.finish()
    assert files(tmp_path / "s") == [CARD, "image-000000.parquet"]


@pytest.mark.slow
def test_a_killed_process_leaves_whole_shards_only(tmp_path: Path) -> None:
    """The process is killed while it renames its second shard; the next writer goes on."""
    script = """
        import os, signal, sys
        from pathlib import Path
        from tests.support.sets import some, writer
        with writer(Path(sys.argv[1])) as out:
            out.append(some("image", 3))
            rename = Path.replace
            def killed(self, target):
                if "parquet" in self.name:
                    os.kill(os.getpid(), signal.SIGKILL)
                return rename(self, target)
            Path.replace = killed
            out.append(some("image", 3, 1, "more"))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "s")], check=False)
    assert done.returncode == -9
    with raises(EmbeddingSetError, tmp_path / "s", "modalign encode"):
        EmbeddingSet.open(tmp_path / "s")
    with writer(tmp_path / "s") as out:
        assert [len(table) for _, table in out.identities("image")] == [3]
        out.append(some("image", 3, 1, "more"))
        out.finish()
    expected = Rows.concatenate([some("image", 3), some("image", 3, 1, "more")])
    assert_same(EmbeddingSet.open(tmp_path / "s").load("image"), expected)


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        out.append(some("image", 1))
        with raises(SetBusyError, tmp_path / "s"), writer(tmp_path / "s"):
            pass
    with writer(tmp_path / "s") as out:
        out.finish()


@pytest.mark.slow
def test_another_process_is_refused_too(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from tests.support.sets import writer
        with writer(Path(sys.argv[1])):
            pass
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "s")]
    with writer(tmp_path / "s"):
        refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "alignment.errors.SetBusyError" in refused.stderr


def test_a_writer_that_fails_to_open_releases_its_lock(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 1))
    for _ in range(2):
        with raises(EmbeddingSetError, "float32", "float16"):
            writer(tmp_path / "s", encoders={}, dtype="float16").__enter__()
    with writer(tmp_path / "s", encoders={}):
        pass


def test_vectors_of_two_encoders_are_not_mixed(tmp_path: Path) -> None:
    with writer(tmp_path / "s"):
        pass
    other = EncoderCard("other:1", "c" * 64, 4)
    before = snapshot(tmp_path / "s")
    with raises(EmbeddingSetError, IMAGE, other, "image"):
        writer(tmp_path / "s", encoders={"image": other}).__enter__()
    assert snapshot(tmp_path / "s") == before


def test_the_same_spec_with_other_weights_is_another_encoder(tmp_path: Path) -> None:
    with writer(tmp_path / "s"):
        pass
    with raises(EmbeddingSetError, "a" * 12, "d" * 12):
        writer(tmp_path / "s", encoders={"image": replace(IMAGE, fingerprint="d" * 64)}).__enter__()


def test_a_modality_can_be_added_later(tmp_path: Path) -> None:
    with writer(tmp_path / "s", encoders={"image": IMAGE}) as out:
        out.append(some("image", 1))
        out.finish()
    with writer(tmp_path / "s", encoders={"text": TEXT}) as out:
        out.append(some("text", 2))
        out.finish()
    opened = EmbeddingSet.open(tmp_path / "s")
    assert opened.card.encoders == CARDS
    assert opened.card.counts == {"image": 1, "text": 2}
