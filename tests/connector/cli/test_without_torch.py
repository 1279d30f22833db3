"""What a small container needs: commands that neither encode nor train run without torch; the others name it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.home import Home
from connector.settings import Settings
from tests.support.cli import done, modalign
from tests.support.fakes import fake_pairs, write_manifest

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        absent = ("torch", "torchvision", "open_clip", "timm", "sentence_transformers", "transformers")
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
COMMANDS = f"""{WITHOUT}
import json
from connector.cli.main import main

for command in json.loads(sys.argv[1]):
    sys.argv = ["modalign", *command]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            print(f"{{command}}: {{ended.code}}", file=sys.stderr)
            raise
"""
EACH = f"""{WITHOUT}
import json
from contextlib import redirect_stderr
from io import StringIO
from connector.cli.main import main

for line in sys.argv[1:]:
    sys.argv = ["modalign", *line.split()]
    with redirect_stderr(StringIO()) as stderr:
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([line, code, stderr.getvalue()]))
"""
VECTORS = f"""{WITHOUT}
import json
from connector.home import Home
from connector.settings import Settings

with Home(Settings.load()) as home:
    rows = home.embedding_set("pairs").load("text")
    for collection in sys.argv[1:]:
        for metric in ("cosine", "chi2"):
            retriever = home.retriever(collection, metric)
            encoder = retriever.release.alignment.card.encoders["text"].fingerprint
            found = retriever.search_embeddings("text", rows.vectors[:3], 3, encoder=encoder)
            print(json.dumps([[hit.key, round(hit.score, 4)] for hits in found for hit in hits]))
"""
ENCODERS = """
import numpy as np
from connector.encoding.encoders import Encoder

class Colours(Encoder):
    scheme, modalities = "colours", ("image",)

    def __init__(self, name, device):
        super().__init__(name, device)
        self.fingerprint, self.dim = "mean colours", 3

    def prepare(self, modality, content):
        return np.asarray(content, np.float32).mean((0, 1)) + 1

    def forward(self, modality, prepared):
        import torch

        return torch.from_numpy(np.stack(prepared))

class Letters(Colours):
    modalities = ("text",)

    def prepare(self, modality, content):
        return np.array([content.count(letter) + 1 for letter in "aei"], np.float32)

    def truncates(self, text):
        return False
"""
HINTS = ("torch", "pip install torch torchvision", "CPU", "[missing-package]")


def run(program: str, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MODALIGN_HOME": str(home)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def commands(home: Path, *lines: str) -> None:
    ended = run(COMMANDS, home, json.dumps([line.split() for line in lines]))
    assert ended.returncode == 0, ended.stderr


def each(home: Path, *lines: str) -> list[Any]:
    """Run each command, whatever becomes of those before it; return of each itself, its exit code and its stderr."""
    ended = run(EACH, home, *lines)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def searched(home: Path, collection: str) -> list[Any]:
    with Home(Settings.load(home=home)) as opened:
        texts = opened.embedding_set("pairs").load("text").vectors[:3]
        answers = []
        for metric in ("cosine", "chi2"):
            retriever = opened.retriever(collection, metric)
            encoder = retriever.release.alignment.card.encoders["text"].fingerprint
            found = retriever.search_embeddings("text", texts, 3, encoder=encoder)
            answers.append([[hit.key, round(hit.score, 4)] for hits in found for hit in hits])
        return answers


@pytest.mark.slow
def test_closed_forms_are_pushed_promoted_and_searched_by_vectors(home: Path) -> None:
    collections = {"ridge": "more", "kcca": "things", "asif": "others"}  # a matrix alone, and after each feature map
    for method in collections:
        done("fit", "pairs", "--alignment", method, "--method", method, "--home", home)
    metrics = "--metric cosine --metric chi2"
    commands(
        home,
        f"push pairs --into others --alignment a {metrics}",
        *(f"push pairs --into {into} --alignment {method} {metrics}" for method, into in collections.items()),
        "promote things --force --reason tried",
        "promote others --force --reason tried",
        "status",
    )
    ended = run(VECTORS, home, *collections.values())
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert found == [answers for into in collections.values() for answers in searched(home, into)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A home with a release whose text encoder is compiled."""
    home = tmp_path_factory.mktemp("compiled")
    specs = ("--image-encoder", "fake-image:small", "--text-encoder", "tests.support.compilable:BagOfWords")
    done("encode", corpus, "--set", "pairs", *specs, "--home", home)
    done("fit", "pairs", "--alignment", "a", "--method", "ridge", "--home", home)
    ended = done("push", "pairs", "--into", "things", "--alignment", "a", "--home", home)
    assert "text encoder tests.support.compilable:BagOfWords compiled in" in ended.err
    return home


@pytest.mark.slow
def test_a_text_is_searched_as_by_its_encoder_once_that_is_compiled(compiled: Path) -> None:
    lines = [["search", "things", text, "-k", "5", "--json"] for text in ("lime", "navy", "unknown")]
    ended = run(COMMANDS, compiled, json.dumps(lines))
    assert (ended.returncode, ended.stderr) == (0, "")
    documents = re.split(r"(?<=^}\n)", ended.stdout, flags=re.MULTILINE)[:-1]
    for line, document in zip(lines, documents, strict=True):
        (compiled / "compiled").rename(compiled / "away")
        try:
            by_model = done(*line, "--home", compiled)
        finally:
            (compiled / "away").rename(compiled / "compiled")
        assert "loading encoder" in by_model.err
        found, expected = json.loads(document), by_model.document
        compiled_hits, model_hits = found.pop("found"), expected.pop("found")
        assert found == expected
        assert [hit["score"] for hit in compiled_hits] == pytest.approx([hit["score"] for hit in model_hits], abs=1e-5)
        for hit in (*compiled_hits, *model_hits):
            for name in ("score", "raw_score", "scores"):
                del hit[name]
        assert compiled_hits == model_hits


@pytest.mark.slow
def test_a_device_that_is_named_encodes(compiled: Path) -> None:
    ended = modalign("search", "things", "lime", "--device", "cuda:99", "--home", compiled)
    assert "cuda:99" in ended.error


def test_a_push_and_a_drop_keep_one_bundle_an_encoder_that_a_release_has(compiled: Path) -> None:
    (bundle,) = (compiled / "compiled").iterdir()
    written = {path: path.stat().st_mtime_ns for path in bundle.iterdir()}
    done("fit", "pairs", "--alignment", "b", "--method", "procrustes", "--home", compiled)
    done("push", "pairs", "--into", "things", "--alignment", "b", "--home", compiled)
    releases = done("status", "things", "--json", "--home", compiled).document["releases"]
    (ready,) = (release["physical_name"] for release in releases if release["state"] == "ready")
    (compiled / "compiled" / ("1" * 64)).mkdir()
    done("drop", "things", "--release", ready, "--yes", "--home", compiled)
    assert list((compiled / "compiled").iterdir()) == [bundle]
    assert {path: path.stat().st_mtime_ns for path in bundle.iterdir()} == written


@pytest.mark.slow
def test_what_neither_encodes_nor_trains_needs_no_torch(home: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.parquet"
    pq.write_table(pa.table({"key": ["a", "b"], "image": [[1.0, 2.0], [2.0, 1.0]]}), vectors)
    commands(
        home,
        "--help",
        "status --json",
        "audit things --pairs pairs",
        "audit things --history",
        "rejects",
        "verify things",
        "repair things",
        f"import {vectors} --set imported --image-encoder elsewhere",
        "delete things --key s0-00001 --yes",
        "push pairs --into others --alignment a",
        "db upgrade",
    )


@pytest.mark.slow
def test_a_corpus_in_which_nothing_is_new_needs_no_torch(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoders of an embedding set are not loaded before an item is to be encoded."""
    (tmp_path / "own_encoders.py").write_text(ENCODERS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    pairs = fake_pairs(tmp_path, 12)
    corpus = write_manifest(tmp_path / "corpus.jsonl", pairs)
    made_by = "--image-encoder own_encoders:Colours --text-encoder own_encoders:Letters"
    encode, ingest = (
        f"encode {corpus} --set own {made_by}",
        f"ingest {corpus} --into own --alignment own --metric cosine",
    )
    for line in (encode, "fit own --alignment own --method procrustes", ingest):
        done(*line.split(), "--home", home)
    commands(home, encode, ingest)
    ingested, encoded = (run["counts"] for run in done("status", "-n", 2, "--json", "--home", home).document["runs"])
    assert (encoded["already_in_set"], ingested["already_in_set"], ingested["unchanged"]) == (24, 24, 24)
    write_manifest(corpus, [*pairs, *fake_pairs(tmp_path, 1, seed=1)])
    for _, code, stderr in each(home, encode, ingest):
        assert code == 1
        assert [hint for hint in HINTS if hint not in stderr] == []


@pytest.mark.slow
def test_what_needs_torch_names_it_in_one_line(home: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing.jsonl").write_text('{"key": "a", "caption": "red"}\n', encoding="utf-8")
    lines = [
        "fit pairs --alignment b --method ridge",
        "fit pairs --alignment b --method star-glu",
        "fit pairs --alignment b --method auto --json",
        "compare pairs",
        "demo",
        f"export a --metric cosine --to {tmp_path}/graphs",
        f"encode {tmp_path}/nothing.jsonl --set other --text-encoder minilm:L6-v2",
    ]
    for line, code, stderr in each(home, *lines):
        assert code == 1, (line, stderr)
        (said,) = [text for text in stderr.splitlines() if text.startswith("modalign: ")]
        assert [hint for hint in HINTS if hint not in said] == []
        assert "Traceback" not in stderr
        if not line.startswith(("encode", "export")):  # what takes long says nothing and makes nothing before
            assert stderr.splitlines()[0] == said
            assert not (home / "corpora").exists()
