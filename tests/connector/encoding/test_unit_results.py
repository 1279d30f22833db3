"""Units encoded by workers, in any order: the set, the rejects and the counts are those of one process."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typing_extensions import override

from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetWriter
from connector.corpora import folder as folder_corpus
from connector.corpora.formats import open_corpus
from connector.corpora.items import Entry, Item, PassedOver, Remark
from connector.encoding.encode import Encoding
from connector.encoding.known_contents import KnownContents
from connector.encoding.pipeline import Pipeline
from connector.encoding.staged_units import FOLDER
from connector.encoding.unit_encoder import UnitEncoder
from connector.encoding.unit_rows import from_batches, to_batches
from connector.errors import CorpusError, MismatchError
from connector.executors.contract import Executor, Factory, Outcome, P, T
from tests.support.cut_corpora import Cut, cut_corpus
from tests.support.encoding import BATCH, SHARD, RecordingRun, encode_with, files, stored
from tests.support.errors import raises
from tests.support.fakes import FakeImageEncoder, FakeTextEncoder, fake_pairs, write_manifest
from tests.support.shuffling import Shuffling

pytestmark = pytest.mark.usefixtures("fake_encoders")

ENCODERS: Any = {"image": FakeImageEncoder(), "text": FakeTextEncoder()}


@pytest.fixture
def corpus(tmp_path: Path) -> Cut:
    """With duplicate keys in other units, and one row of each kind that is no item."""
    corpus = cut_corpus(tmp_path)
    items = [entry for entry in corpus.entries[:3] if isinstance(entry, Item)]
    twins = [replace(item, position=40, payload={"of": "the twin"}) for item in items]
    others: list[Entry] = [PassedOver("notes.md", 41, may_hide=True), Remark("captions with quotes", 2, "row 7")]
    entries = [*corpus.entries, *twins, *others]
    return Cut(corpus.path, entries, [*corpus.sizes, len(twins), len(others)])


def done(corpus: Cut, path: Path, executor: Executor | None = None) -> tuple[Any, ...]:
    run = encode_with(corpus, path, ENCODERS, executor=executor)
    return files(path), run.refused, {name: count for name, count in run.counts.items() if count}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_order_gives_the_set_of_one_process(corpus: Cut, tmp_path: Path, seed: int) -> None:
    expected = done(corpus, tmp_path / "s")
    assert {reject.reason for reject in expected[1]} == {"key-duplicate", "image-unidentified", "key-missing"}
    executor = Shuffling(seed)
    assert done(corpus, tmp_path / "other" / "s", executor) == expected
    assert sorted(executor.worked) == [unit.name for unit in corpus.units()]
    again = Shuffling(seed)
    _, refused, counts = done(corpus, tmp_path / "other" / "s", again)
    assert (refused, counts["already_in_set"], "encoded" in counts) == (expected[1], 39, False)


@pytest.mark.slow
@pytest.mark.parametrize("after", range(1, 7))
def test_a_driver_that_was_stopped_takes_what_was_done(corpus: Cut, tmp_path: Path, after: int) -> None:
    expected = done(corpus, tmp_path / "s")
    path = tmp_path / "other" / "s"
    stopped = Shuffling(seed=3, dies_after=after)
    with pytest.raises(KeyboardInterrupt):
        done(corpus, path, stopped)
    waiting = len([*(path / FOLDER).glob("*")]) if (path / FOLDER).exists() else 0
    again = Shuffling(seed=5)
    written, refused, counts = done(corpus, path, again)
    assert written == expected[0]
    assert refused == expected[1]
    assert counts.get("already_in_set", 0) + counts.get("encoded", 0) + counts.get("reused", 0) == 39
    assert len(again.worked) == len(corpus.sizes) - waiting


def test_what_was_done_for_another_corpus_or_reading_is_not_taken(corpus: Cut, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        done(corpus, tmp_path / "s", Shuffling(seed=3, dies_after=5))
    other = replace(corpus, entries=[*corpus.entries[:-1], PassedOver("else.md")])
    executor = Shuffling()
    assert done(other, tmp_path / "s", executor)[:2] == done(other, tmp_path / "plain" / "s")[:2]
    assert len(executor.worked) == len(corpus.sizes)


def test_a_result_that_rests_on_a_row_that_went_is_made_again(corpus: Cut, tmp_path: Path) -> None:
    done(corpus, tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        done(corpus, tmp_path / "s", Shuffling(seed=3, dies_after=5))
    for shard in (tmp_path / "s").glob("image-*.parquet"):
        shard.unlink()
    executor = Shuffling()
    done(corpus, tmp_path / "s", executor)
    assert EmbeddingSet.open(tmp_path / "s").card.counts["image"] == 29
    assert len(executor.worked) > 1


def test_a_result_of_images_that_were_replaced_is_made_again(corpus: Cut, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        done(corpus, tmp_path / "s", Shuffling(seed=3, dies_after=len(corpus.sizes) - 1))
    for number, entry in enumerate(corpus.entries):
        if isinstance(entry, Item) and isinstance(entry.content, Path) and entry.content.exists():
            Image.new("RGB", (8, 8), (number, 255 - number, 9)).save(entry.content)
    executor = Shuffling()
    done(corpus, tmp_path / "s", executor)
    done(corpus, tmp_path / "plain" / "s")
    made = [EmbeddingSet.open(tmp_path / name / "s").load("image") for name in (".", "plain")]
    found, expected = ({key: v.tobytes() for key, v in zip(rows.keys, rows.vectors, strict=True)} for rows in made)
    assert found == expected
    assert len(executor.worked) > 1


def test_a_result_that_is_damaged_is_made_again(corpus: Cut, tmp_path: Path) -> None:
    expected = done(corpus, tmp_path / "plain" / "s")
    with pytest.raises(KeyboardInterrupt):
        done(corpus, tmp_path / "s", Shuffling(seed=3, dies_after=5))
    waiting = [*(tmp_path / "s" / FOLDER).iterdir()]
    waiting[0].write_bytes(waiting[0].read_bytes()[:100])
    assert done(corpus, tmp_path / "s", Shuffling())[0] == expected[0]


def test_a_unit_that_fails_is_named_and_the_others_go_on(corpus: Cut, tmp_path: Path) -> None:
    with raises(CorpusError, corpus.path, "unit 2", "disk", code="units-failed"):
        done(corpus, tmp_path / "s", Shuffling(fails=("2",)))
    held = EmbeddingSet.open(tmp_path / "s").card.counts
    executor = Shuffling()
    done(corpus, tmp_path / "s", executor)
    assert sum(EmbeddingSet.open(tmp_path / "s").card.counts.values()) == sum(held.values()) + 6
    assert not (tmp_path / "s" / FOLDER).exists()


def test_rows_of_a_unit_that_failed_count_as_unread(corpus: Cut, tmp_path: Path) -> None:
    run = RecordingRun()
    cards = {modality: encoder.card for modality, encoder in ENCODERS.items()}
    with (
        SetWriter(tmp_path / "s", corpus="c", encoders=cards) as writer,
        Encoding(corpus, writer, ENCODERS, run, BATCH, SHARD, executor=Shuffling(fails=("0", "3"))) as encoding,
        Pipeline() as pipeline,
    ):
        list(encoding.shards(pipeline))
        assert [failed.unit.name for failed in encoding.failed_units] == ["0", "3"]
        assert encoding.unread_examples[0].startswith("unit 0")


def test_batches_hold_every_kind_of_row(corpus: Cut, tmp_path: Path) -> None:
    """What is read is what was written; nothing that the driver looks at is lost on the way."""
    with Pipeline() as pipeline:
        groups = list(UnitEncoder(ENCODERS, KnownContents(), BATCH, 1 << 20).encode([corpus], pipeline))
    assert repr(list(from_batches(to_batches(groups)))) == repr([group for group in groups if group])


@dataclass
class Elsewhere(Shuffling):
    """Workers on a machine that does not see some files of this one."""

    unseen: tuple[Path, ...] = ()

    @override
    def map(self, factory: Factory[T, P], tasks: Iterable[T]) -> Iterator[Outcome[T, P]]:
        outcomes = super().map(factory, tasks)
        while True:
            hidden = {path: path.rename(path.with_name(f"{path.name} of another machine")) for path in self.unseen}
            try:
                outcome = next(outcomes, None)
            finally:
                for path, there in hidden.items():
                    there.rename(path)
            if outcome is None:
                return
            yield outcome


@pytest.mark.parametrize("unseen", ["corpus.jsonl", "images", "more"])
def test_a_worker_that_lacks_files_is_refused_instead_of_their_rows(unseen: str, tmp_path: Path) -> None:
    pairs = fake_pairs(tmp_path / "images", 6) + fake_pairs(tmp_path / "more", 6, seed=1)
    rows = [replace(pair, key=f"{number}") for number, pair in enumerate(pairs)]
    manifest = write_manifest(tmp_path / "corpus.jsonl", rows)
    elsewhere = Elsewhere(unseen=(tmp_path / unseen,))
    with raises(MismatchError, tmp_path / unseen, code="worker-files"):
        encode_with(manifest, tmp_path / "s", ENCODERS, executor=elsewhere)
    assert elsewhere.worked == []
    run = encode_with(manifest, tmp_path / "s", ENCODERS, executor=Shuffling())
    assert (run.refused, run.counts["encoded"]) == ([], 24)


def test_an_image_that_a_worker_missed_and_that_is_here_is_no_reject(tmp_path: Path) -> None:
    """Behind the entries that are looked at before, and in the folder of others."""
    pairs = fake_pairs(tmp_path / "images", 120)
    manifest = write_manifest(tmp_path / "corpus.jsonl", pairs)
    unseen = pairs[-1].image
    with raises(MismatchError, unseen, code="worker-files"):
        encode_with(manifest, tmp_path / "s", ENCODERS, executor=Elsewhere(unseen=(unseen,)))
    unseen.unlink()
    run = encode_with(manifest, tmp_path / "s", ENCODERS, executor=Shuffling())
    assert [(reject.reason, reject.key) for reject in run.refused] == [("image-missing", pairs[-1].key)]


def add_a_caption(folder: Path) -> None:
    with (folder / "5.txt").open("a", encoding="utf-8") as file:
        file.write("one more\n")


def mend(folder: Path) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "6.png")
    (folder / "7.txt").write_text("mended\n", encoding="utf-8")


def name_it_otherwise(folder: Path) -> None:
    (folder / "5.txt").write_text("another first caption\ncaption 5\n", encoding="utf-8")


@pytest.mark.parametrize("change", [add_a_caption, mend, name_it_otherwise, lambda folder: None])
def test_a_result_that_waits_is_taken_if_its_unit_is_as_it_was(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_corpus, "UNIT_FILES", 5)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"caption {number}\n", encoding="utf-8")
    (folder / "6.png").write_bytes(b"no picture")
    (folder / "7.txt").write_bytes(b"\xff\xfe broken")
    times = {path: path.stat() for path in [folder, *folder.iterdir()]}
    corpus = open_corpus(folder)
    with pytest.raises(KeyboardInterrupt):
        encode_with(corpus, tmp_path / "s", ENCODERS, executor=Shuffling(seed=1, dies_after=len([*corpus.units()]) - 1))
    assert [*(tmp_path / "s" / FOLDER).iterdir()]
    change(folder)
    for path, stat in times.items():  # as where a copy keeps them
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = encode_with(open_corpus(folder), tmp_path / "s", ENCODERS, executor=Shuffling())
    expected = encode_with(open_corpus(folder), tmp_path / "plain" / "s", ENCODERS)
    assert again.refused == expected.refused
    for modality in MODALITIES:
        assert stored(tmp_path / "s", modality) == stored(tmp_path / "plain" / "s", modality)
