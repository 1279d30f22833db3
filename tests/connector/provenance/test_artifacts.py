"""Embedding sets, alignments and their encoders."""

from contextlib import suppress
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError

import pytest
from sqlalchemy import Engine, event, select

from alignment.modality import Modality
from alignment.sets.cards import EncoderCard
from connector.errors import ProvenanceError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AlignmentRow, EmbeddingSetRow, EncoderRow
from tests.support.rows import ESCAPED, IMAGE, ODD, TEXT, alignment, count, embedding_set


def record_everything(url: str, number: int, inserting: Barrier) -> None:
    """Record a set of its own, and a set and an alignment that others record too, all of the same encoders."""

    @event.listens_for(Engine, "before_cursor_execute")
    def meet(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith(("INSERT INTO encoder", "INSERT INTO alignment", "INSERT INTO embedding_set")):
            with suppress(BrokenBarrierError):  # the others may be kept from coming here
                inserting.wait(timeout=0.5)

    with Provenance.open(url) as provenance:
        provenance.artifacts.record_set(embedding_set(Path(f"/sets/{number}")))
        provenance.artifacts.record_set(embedding_set(Path("/sets/shared")))
        provenance.artifacts.record_alignment("a", Path("/a"), alignment())


class TestArtifacts:
    @pytest.mark.slow
    def test_several_processes_record_the_same_artifacts_at_once(
        self, provenance: Provenance, processes: ForkServerContext
    ) -> None:
        inserting = processes.Barrier(4)
        arguments = [(provenance.database.url, number, inserting) for number in range(4)]
        started = [processes.Process(target=record_everything, args=given) for given in arguments]
        for process in started:
            process.start()
        for process in started:
            process.join()
        assert [process.exitcode for process in started] == [0, 0, 0, 0]
        assert (count(provenance, EncoderRow), count(provenance, AlignmentRow)) == (2, 1)
        assert count(provenance, EmbeddingSetRow) == 5

    def test_a_set_is_recorded_once_and_updated(self, provenance: Provenance, tmp_path: Path) -> None:
        first = provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        only_text: dict[Modality, EncoderCard] = {"text": TEXT}
        changed = embedding_set(
            tmp_path / "s", fingerprint="2" * 64, corpus="new", encoders=only_text, counts={"text": 11}
        )
        assert provenance.artifacts.record_set(changed) == first
        assert provenance.artifacts.record_set(embedding_set(tmp_path / "t")) != first
        with provenance.database.session() as session:
            row = session.get_one(EmbeddingSetRow, first)
            texts = session.scalars(select(EncoderRow.id).where(EncoderRow.modality == "text")).one()
        assert (row.name, row.path, row.corpus, row.fingerprint) == ("s", str(tmp_path / "s"), "new", "2" * 64)
        assert (row.image_count, row.text_count) == (0, 11)
        assert (row.image_encoder_id, row.text_encoder_id) == (None, texts)

    def test_a_set_of_a_corpus_that_no_database_can_name(self, provenance: Provenance, tmp_path: Path) -> None:
        odd = embedding_set(tmp_path / ODD, corpus=f"/data/{ODD}")
        first = provenance.artifacts.record_set(replace(odd, card=replace(odd.card, name="s")))
        assert provenance.artifacts.record_set(replace(odd, card=replace(odd.card, name="s"))) == first
        with provenance.database.session() as session:
            row = session.get_one(EmbeddingSetRow, first)
        assert (row.corpus, row.path) == (f"/data/{ESCAPED}", str(tmp_path / ESCAPED))

    def test_an_encoder_is_recorded_once(self, provenance: Provenance, tmp_path: Path) -> None:
        provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        provenance.artifacts.record_set(embedding_set(tmp_path / "t"))
        provenance.artifacts.record_alignment("a", tmp_path / "a", alignment())
        with provenance.database.session() as session:
            rows = session.scalars(select(EncoderRow).order_by(EncoderRow.modality)).all()
        assert [(row.modality, row.spec, row.fingerprint, row.dim) for row in rows] == [
            ("image", IMAGE.spec, IMAGE.fingerprint, 4),
            ("text", TEXT.spec, TEXT.fingerprint, 3),
        ]

    def test_one_model_of_two_modalities_is_two_encoders(self, provenance: Provenance, tmp_path: Path) -> None:
        both: dict[Modality, EncoderCard] = {"image": IMAGE, "text": IMAGE}
        provenance.artifacts.record_set(embedding_set(tmp_path / "s", encoders=both))
        assert count(provenance, EncoderRow) == 2

    def test_an_alignment_is_recorded_once_and_updated(self, provenance: Provenance, tmp_path: Path) -> None:
        first = provenance.artifacts.record_alignment("a", tmp_path / "a", alignment())
        created = provenance.artifacts.alignment(first).created_at
        assert provenance.artifacts.record_alignment("b", tmp_path / "b", alignment(method="cca")) == first
        assert provenance.artifacts.record_alignment("c", tmp_path / "c", alignment(seed=1)) != first
        row = provenance.artifacts.alignment(first)
        assert (row.name, row.path, row.method, row.dim) == ("b", str(tmp_path / "b"), "cca", 2)
        assert (row.fingerprint, row.created_at) == (alignment().fingerprint, created)
        assert row.image_encoder_id != row.text_encoder_id

    def test_the_card_of_an_alignment_comes_back(self, provenance: Provenance, tmp_path: Path) -> None:
        row = provenance.artifacts.alignment(provenance.artifacts.record_alignment("a", tmp_path / "a", alignment()))
        assert row.card["encoders"]["text"] == {"spec": TEXT.spec, "fingerprint": TEXT.fingerprint, "dim": 3}
        assert row.card["hold_out"] == {"fraction": 0.25, "seed": 3}
        assert row.card["held_out_recall"] == {"cosine": {"text->image": {"1": 0.5}}}
        assert row.card["candidates"] == [{"alpha": 0.1, "score": 0.4}]

    def test_an_unknown_alignment(self, provenance: Provenance) -> None:
        with pytest.raises(ProvenanceError):
            provenance.artifacts.alignment(12345)
