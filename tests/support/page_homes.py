"""Homes whose names, captions and fields try to break a page, and the items that pages show."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignment.modality import Modality
from alignment.retrieval.ways import Way
from connector.search.retriever import SearchHit
from connector.stores.edge import EdgeStore
from tests.support.cli import SPECS, done
from tests.support.fakes import fake_pairs

N = 120
HTML = "<b onclick=alert(1)>&amp;\"'</b>"
LONG = "donaudampfschifffahrt" * 6
KINDS = (f"<i>{HTML}</i>", LONG, "plain")
ASK = ["audit", "things", "--pairs", "pairs"]
EVERY_OPTION = [
    "--require",
    "recall@10>=0.1",
    "--require",
    "recall@10 drop<=0.5",
    "--baseline",
    "last",
    "--slice",
    "kind",
    "--filter",
    'some<s>={"must": [{"key": "split", "match": {"value": "held-out"}}]}',
    "--filter",
    'none={"must": [{"key": "split", "match": {"value": "nowhere"}}]}',
]
SECTIONS = [
    "New and known items",
    "Where recall is lost",
    "Both directions",
    "Recall by K",
    "What captions alone would find",
    "History",
    "The modality gap",
    "By kind of query",
    "The shared space",
    "The worst queries",
    "Provenance",
    "Settings",
]


def make_home(directory: Path) -> Path:
    """Make a home with a live release whose captions and fields hold HTML and very long words."""
    pairs = fake_pairs(directory, N, captions=2)
    rows = []
    for number, pair in enumerate(pairs):
        described = pairs[number - 1] if number % 5 == 0 else pair  # a wrong label is a bad answer to show
        captions = [f"{text} {HTML}" for text in described.captions]
        rows.append({**pair.row(directory), "kind": KINDS[number % 3], "caption": captions})
    corpus = directory / "things.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    home = directory / "home"
    done("db", "upgrade", "--home", home)
    done("encode", corpus, "--set", "pairs", *SPECS, "--home", home)
    done("fit", "pairs", "--alignment", "a", "--method", "ridge", "--home", home)
    done("push", "pairs", "--into", "things", "--alignment", "a", "--home", home)
    return home


def damage(home: Path) -> None:
    """Delete points from the store without the ledger."""
    with EdgeStore(home / "qdrant") as store:
        for name in store.collections():
            page = next(iter(store.scroll(name)))
            store.delete(name, [record.id for record in page[:5]])


def search_hit(key: str, modality: Modality = "image", score: float = 0.5, **payload: Any) -> SearchHit:
    """Return a hit as a search finds it; one with an image has the hash of its file, unless another is given."""
    file = Path(str(payload.get("image")))
    if file.is_file():
        payload.setdefault("content_sha256", hashlib.sha256(file.read_bytes()).hexdigest())
    way: Way = "image" if modality == "image" else "caption"
    caption = dict(payload) if way == "caption" else None
    return SearchHit(key, f"group of {key}", modality, score, 0.0, score, dict(payload), way, {way: score}, caption)


def write_picture(path: Path, size: tuple[int, int] = (400, 200), mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path
