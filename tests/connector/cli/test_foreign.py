"""Things that do not belong together, are damaged, or were moved."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from alignment.model.alignment import Alignment
from alignment.model.projections import Projection
from alignment.sets.cards import EncoderCard
from tests.support.cli import SPECS, done, modalign
from tests.support.world import cards


class TestForeignThings:
    """Sets and alignments that do not belong together."""

    def test_a_directory_that_is_no_embedding_set(self, home: Path) -> None:
        (home / "sets" / "folder").mkdir()
        (home / "sets" / "folder" / "notes.txt").write_text("mine")
        for arguments in (
            ("fit", "folder", "--alignment", "b"),
            ("push", "folder", "--into", "new", "--alignment", "a"),
            ("audit", "things", "--pairs", "folder"),
        ):
            assert "is not an embedding set: it has no card.json" in modalign(*arguments, "--home", home).error
        encoded = modalign("encode", home, "--set", "folder", *SPECS, "--home", home)
        assert "is not an embedding set" in encoded.error
        assert (home / "sets" / "folder" / "notes.txt").read_text() == "mine"

    def test_a_set_of_another_encoder(self, home: Path, corpus: Path) -> None:
        specs = ["--image-encoder", "fake-image:small", "--text-encoder", "fake-text:other"]
        done("encode", corpus, "--set", "other", *specs, "--home", home)
        for arguments in (
            ("push", "other", "--into", "new", "--alignment", "a"),
            ("audit", "things", "--pairs", "other"),
        ):
            error = modalign(*arguments, "--home", home).error
            assert "has text vectors of fake-text:other (fingerprint " in error
            assert "the alignment was fitted for fake-text:small (fingerprint " in error
        assert (
            "of different text encoders cannot be fitted together"
            in modalign("fit", "pairs", "other", "--alignment", "b", "--home", home).error
        )
        assert [r["collection"] for r in done("status", "--json", "--home", home).document["releases"]] == ["things"]

    def test_an_alignment_of_other_dimensions(self, home: Path, corpus: Path) -> None:
        known = Alignment.load(home / "alignments" / "a")
        wider = {**cards(), "text": EncoderCard("fake-text:small", cards()["text"].fingerprint, 11)}
        card = replace(known.card, encoders=wider)
        dim = known.dim
        weights = {m: np.eye(c.dim, dim, dtype=np.float32) for m, c in wider.items()}
        Alignment(card, {m: Projection(c.dim, None, weights[m]) for m, c in wider.items()}).save(
            home / "alignments" / "b"
        )
        for command in (("push", "pairs"), ("ingest", corpus)):
            ended = modalign(*command, "--into", "new", "--alignment", "b", "--home", home)
            assert (ended.code, ended.error_code) == (1, "mismatch")
            assert {"10-d", "11-d"} <= set(re.findall(r"\d+-d", ended.err))

    def test_damaged_artifacts(self, home: Path) -> None:
        (home / "alignments" / "a" / "weights.safetensors").write_bytes(b"broken")
        assert "is damaged" in modalign("search", "things", "red", "--home", home).error
        (home / "sets" / "pairs" / "card.json").write_text("{")
        assert "is damaged" in modalign("fit", "pairs", "--alignment", "b", "--home", home).error

    def test_a_moved_home_works(self, home: Path, tmp_path: Path, shared: Path) -> None:
        found = done("search", "things", "red", "--json", "--home", shared).document
        moved = home.rename(tmp_path / "moved")
        assert done("search", "things", "red", "--json", "--home", moved).document == found
        assert done("audit", "things", "--pairs", "pairs", "--home", moved).code == 0
