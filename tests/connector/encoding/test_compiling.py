"""Compiled text encoders: they compute what the model does, and what cannot be compiled is loaded as before."""

import json
import logging
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from typing_extensions import override

from alignment.sets.cards import EncoderCard
from connector.encoding import compiled, compiling
from connector.encoding.compiled import CARD, GRAPH, TOKENIZER, CompiledCard, open_compiled, remove_unused
from connector.encoding.compiling import compile_text_encoder
from connector.encoding.encoders import Encoder
from connector.encoding.loading import load_encoder
from connector.encoding.text_graph import TextGraph
from connector.errors import EncoderError
from tests.support.compilable import BagOfWords
from tests.support.errors import raises
from tests.support.sentence_models import sentence_directory
from tests.support.slow import slow_unless
from tests.support.torch_operators import operators_read_once

SUPPORT = "tests.support.compilable"
TEXTS = ["a red word", "", "navy", "lime lime blue", "red " * 300, "Ünknown\twords\n", "blue"]


@pytest.fixture(autouse=True, scope="module")
def quick_exports() -> Iterator[None]:
    with operators_read_once():
        yield


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the bundle of `bag`."""
    directory = tmp_path_factory.mktemp("home") / "compiled"
    compile_text_encoder(directory, bag().card)
    return directory


def bag(name: str = "BagOfWords:0") -> Encoder:
    return load_encoder(f"{SUPPORT}:{name}", "cpu")


def check_equal(directory: Path, encoder: Encoder) -> None:
    """The bundle of an encoder embeds texts as the encoder does, each alone and all at once."""
    opened = open_compiled(directory, encoder.card)
    assert opened is not None
    assert opened.card == encoder.card
    for texts in ([text] for text in TEXTS):
        np.testing.assert_allclose(opened.encode("text", texts), encoder.encode("text", texts), atol=1e-5)
    np.testing.assert_allclose(opened.encode("text", TEXTS), encoder.encode("text", TEXTS), atol=1e-5)
    assert opened.encode("text", []).shape == (0, encoder.dim)


class TestCompiled:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["BagOfWords:1", "Prompted:0"])
    def test_texts_are_embedded_as_by_the_model(self, name: str, tmp_path: Path) -> None:
        compile_text_encoder(tmp_path, bag(name).card)
        check_equal(tmp_path, bag(name))

    @pytest.mark.slow
    def test_a_model_of_sentence_transformers(self, tmp_path: Path) -> None:
        encoder = load_encoder(f"sentence-transformers:{sentence_directory(tmp_path, 0)}", "cpu")
        compile_text_encoder(tmp_path / "compiled", encoder.card)
        check_equal(tmp_path / "compiled", encoder)

    @pytest.mark.slow
    def test_the_packaged_model(self, tmp_path: Path) -> None:
        encoder = load_encoder("minilm:L6-v2", "cpu")
        compile_text_encoder(tmp_path, encoder.card)
        check_equal(tmp_path, encoder)

    @pytest.mark.slow
    def test_an_encoder_of_other_weights_is_never_taken_for_it(self, bundles: Path) -> None:
        assert open_compiled(bundles, bag("BagOfWords:2").card) is None
        (bundles / ("0" * 64)).mkdir()
        assert open_compiled(bundles, EncoderCard("x:y", "0" * 64, 8)) is None
        other = EncoderCard(bag().spec, bag().fingerprint, bag().dim + 1)
        assert open_compiled(bundles, other) is None

    def test_a_process_holds_one_once(self, bundles: Path) -> None:
        first, opened = open_compiled(bundles, bag().card), []
        threads = [threading.Thread(target=lambda: opened.append(open_compiled(bundles, bag().card))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert first is not None
        assert all(one is first for one in opened)

    def test_images_are_refused(self, bundles: Path) -> None:
        opened = open_compiled(bundles, bag().card)
        assert opened is not None
        with raises(EncoderError, bag().spec, "text"):
            opened.encode("image", ["a"])


class TestWhatCannotBeUsed:
    @pytest.mark.parametrize("name", slow_unless(GRAPH.__eq__, [CARD, GRAPH, "encoder.weights", TOKENIZER]))
    @pytest.mark.parametrize("damage", slow_unless("empty".__eq__, ["missing", "cut", "empty", "flipped"]))
    def test_a_damaged_bundle_is_said_and_the_model_is_loaded(
        self, name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        compile_text_encoder(tmp_path, bag().card)
        file = tmp_path / bag().fingerprint / name
        if damage == "missing":
            file.unlink()
        elif damage == "flipped":  # of the card: a file's digest, which stands at its end
            content = bytearray(file.read_bytes())
            content[content.rindex(b'"sha256"') + 120 if name == CARD else len(content) // 2] ^= 1
            file.write_bytes(content)
        else:
            file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else len(file.read_bytes()) // 2])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert open_compiled(tmp_path, bag().card) is None
        assert (str(tmp_path) in caplog.text) == ((name, damage) != (CARD, "missing"))
        compile_text_encoder(tmp_path, bag().card)
        assert open_compiled(tmp_path, bag().card) is not None

    @pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
    def test_without_a_package_the_model_is_loaded(
        self, package: str, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = tmp_path / "compiled"  # which this process has not opened
        copy.symlink_to(bundles)
        for module in (compiled, compiling):
            monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else find_spec(name))
        assert open_compiled(copy, bag().card) is None
        compile_text_encoder(tmp_path / "new", bag().card)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("name", ["Doubled", "Unpadded", "Failing", "Without"])
    def test_it_is_said_once_why_an_encoder_cannot_be_compiled(
        self, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        said = []
        for _ in range(2):
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                compile_text_encoder(tmp_path, bag(name).card)
            said.append([record.getMessage() for record in caplog.records])
        ((sentence,), again) = said
        assert f"{SUPPORT}:{name}" in sentence
        assert again == []
        assert open_compiled(tmp_path, bag(name).card) is None
        assert [path.name for path in (tmp_path / bag(name).fingerprint).iterdir()] == [CARD]

    @pytest.mark.slow
    def test_it_is_tried_again_with_other_versions(self, tmp_path: Path) -> None:
        compile_text_encoder(tmp_path, bag().card)
        path = tmp_path / bag().fingerprint
        card = json.loads((path / CARD).read_text())
        (path / CARD).write_text(json.dumps(card | {"fault": "of then", "made_by": {"torch": "1"}}))
        compile_text_encoder(tmp_path, bag().card)
        read = CompiledCard.read(path)
        assert read is not None
        assert read.fault is None
        check_equal(tmp_path, bag())

    def test_an_encoder_that_offers_nothing_is_not_loaded(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO):
            compile_text_encoder(tmp_path, EncoderCard("open_clip:ViT-B-32/laion2b", "1" * 64, 512))
            compile_text_encoder(tmp_path, EncoderCard("imported:x", "2" * 64, 512))
        assert caplog.records == []
        assert list(tmp_path.iterdir()) == []

    def test_a_model_that_is_gone_or_broken_fails_no_push(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "broken").mkdir()
        for name in ("gone", "broken"):
            card = EncoderCard(f"sentence-transformers:{tmp_path / name}", "1" * 64, 8)
            compile_text_encoder(tmp_path / "compiled", card)
        assert f"{tmp_path}/broken" in caplog.text
        assert not (tmp_path / "compiled").exists()

    def test_weights_that_changed_are_not_compiled(self, tmp_path: Path) -> None:
        compile_text_encoder(tmp_path, EncoderCard(bag().spec, "1" * 64, bag().dim))
        assert list(tmp_path.iterdir()) == []


class TestWriting:
    def test_a_home_that_cannot_be_written_fails_no_push(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        compile_text_encoder(tmp_path / "file" / "compiled", bag().card)
        assert str(tmp_path) in caplog.text

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_nothing_half_written_is_left(
        self, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stopped(self: Encoder) -> TextGraph:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(BagOfWords, "text_graph", stopped)
            try:
                compile_text_encoder(tmp_path, bag().card)
            except KeyboardInterrupt:
                assert error is KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []
        compile_text_encoder(tmp_path, bag().card)
        check_equal(tmp_path, bag())

    def test_what_a_kill_left_is_removed(self, tmp_path: Path) -> None:
        (tmp_path / f".{bag().fingerprint}.{'0' * 32}.tmp").mkdir()
        compile_text_encoder(tmp_path, bag().card)
        assert [path.name for path in tmp_path.iterdir()] == [bag().fingerprint]

    def test_one_that_another_process_wrote_meanwhile_stays(
        self, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        theirs = tmp_path / bag().fingerprint

        class Slow(BagOfWords):
            @override
            def text_graph(self) -> TextGraph | None:
                theirs.mkdir()
                (theirs / CARD).write_bytes((bundles / self.fingerprint / CARD).read_bytes())
                return super().text_graph()

        monkeypatch.setattr(BagOfWords, "text_graph", Slow.text_graph)
        monkeypatch.setattr(compiling, "load_encoder", lambda *_, **__: Slow("0", bag().device))
        compile_text_encoder(tmp_path, bag().card)
        assert [path.name for path in theirs.iterdir()] == [CARD]

    def test_bundles_of_no_release_are_removed(self, bundles: Path, tmp_path: Path) -> None:
        directory = tmp_path / "compiled"
        for fingerprint in ("1" * 64, "2" * 64):
            (directory / fingerprint).mkdir(parents=True)
            (directory / fingerprint / CARD).write_text("{}")
        remove_unused(directory, {"1" * 64})
        assert [path.name for path in directory.iterdir()] == ["1" * 64]
        remove_unused(tmp_path / "none", set())
