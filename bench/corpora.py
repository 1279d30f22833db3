"""The real corpora of `bench.quality` and `bench.seen_unseen`, encoded by the encoders of the demo.

The emoji of the demo are always there. Two more corpora are used where they are installed:

    apt-get install tuxpaint-stamps-default     photographs and drawings with English names
    npm install emoji-datasource-google         the emoji of another designer, under ./node_modules
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import resvg_py

from alignment.modality import MODALITIES
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import group_codes
from alignment.sets.embedding_set import EmbeddingSet
from connector.demo.emoji import ENCODERS, write_emoji
from connector.home import Home
from connector.provenance.database import upgrade
from connector.requests import EncodeRequest
from connector.settings import Settings

STAMPS = Path("/usr/share/tuxpaint/stamps")
GOOGLE = Path("node_modules/emoji-datasource-google")
NAMES = ("emoji", "stamps", "emoji-google")


@contextmanager
def encoded(names: Collection[str] = NAMES) -> Iterator[dict[str, EmbeddingSet]]:
    """Encode those of the named corpora that are installed, until the context ends."""
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings.load(home=directory, database_url=f"sqlite:///{directory}/modalign.db")
        upgrade(settings.database_url)
        with Home(settings) as home:
            sets: dict[str, EmbeddingSet] = {}
            if "emoji" in names:
                manifest = write_emoji(settings.home / "emoji")
                sets["emoji"] = home.encode(EncodeRequest(corpus=manifest, set="emoji", encoders=ENCODERS)).value
            for name, place, items in (("stamps", STAMPS, _stamps), ("emoji-google", GOOGLE, _google)):
                if name not in names:
                    continue
                if not place.exists():
                    print(f"{name}: not installed, {place} is not there")
                    continue
                manifest = _manifest(settings.home / name, items())
                sets[name] = home.encode(EncodeRequest(corpus=manifest, set=name, encoders=ENCODERS)).value
            yield sets


def labelled(sets: Sequence[EmbeddingSet]) -> list[GroupedEmbeddings]:
    """Number the groups of some sets alike."""
    rows = [made.load(modality) for made in sets for modality in MODALITIES]
    sides = [
        ModalityEmbeddings(part.vectors, codes)
        for part, codes in zip(rows, group_codes(*(part.groups for part in rows)), strict=True)
    ]
    return [GroupedEmbeddings(*sides[start : start + 2]) for start in range(0, len(sides), 2)]


def _stamps() -> Iterator[tuple[Path, str, str]]:
    """Pictures with the first line of their text, which is English; a drawing beside a photograph of its name too."""
    for text in sorted(STAMPS.rglob("*.txt")):
        caption = text.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip()
        for picture in (text.with_suffix(suffix) for suffix in (".png", ".svg")):
            if caption and picture.exists():
                yield picture, caption, caption


def _google() -> Iterator[tuple[Path, str, str]]:
    for emoji in json.loads((GOOGLE / "emoji.json").read_text(encoding="utf-8")):
        picture = GOOGLE / "img" / "google" / "64" / emoji["image"]
        if emoji["name"] and picture.exists():
            names = ", ".join([emoji["name"].lower(), *emoji["short_names"]]).replace("_", " ")
            yield picture, names, emoji["unified"].upper()


def _manifest(directory: Path, items: Iterator[tuple[Path, str, str]]) -> Path:
    """Copy the pictures beside a manifest: one that points elsewhere is refused."""
    directory.mkdir()
    rows = []
    for number, (picture, caption, group) in enumerate(items):
        image = directory / f"{number}.png"
        if picture.suffix == ".svg":
            try:
                image.write_bytes(bytes(resvg_py.svg_to_bytes(svg_path=str(picture), width=224, background="white")))
            except ValueError as error:  # 38 stamps state no size
                print(f"left out {picture.name}: {error}", file=sys.stderr)
                continue
        else:
            shutil.copyfile(picture, image)
        rows.append({"key": f"{number}", "image": image.name, "caption": caption, "group": group})
    manifest = directory / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest
