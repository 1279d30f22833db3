"""Items found by image, by caption and by both, where they have captions: on the corpora of `bench.corpora`.

Each item with a caption of several parts is asked for by one of them, such as one synonym of an emoji or the second
half of a stamp's title. Of the captions that are searched, they stand in one collection as they are: all words of a
query are in one, which flatters captions. In another collection the part that asks is cut out of its caption, so that a
query has other words. Paraphrases are what audits and pushes ask with where an item has one caption alone.

`python -m bench captions` prints the tables that docs/search.md keeps.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alignment.retrieval.caption_weight import CAPTION_WEIGHT
from alignment.retrieval.paraphrases import paraphrased
from alignment.sets.embedding_set import EmbeddingSet
from alignment.vectors import FloatArray
from bench.corpora import NAMES, encoded
from bench.figure import Figure
from bench.seen_unseen import second_half, synonyms
from bench.tables import markdown
from connector.demo.emoji import ENCODERS
from connector.encoding.loading import load_encoder
from connector.home import Home
from connector.releases.fusion import Fusion
from connector.requests import EncodeRequest, FitRequest, PushRequest
from connector.search.candidates import CandidateSearch
from connector.search.item_search import BY_CAPTION, ItemSearch
from connector.search.retriever import Retriever
from connector.settings import Settings

# What both sides of a figure are asked.
ASKED = "All three ways are asked the same queries in one collection under the same metric."

KS = (1, 10)
METHOD = "kcca"
QUERIES = 600
WEIGHTS = (0.25, 0.5, 0.75, 0.9)
PARTS, PARAPHRASES, OTHER_WORDS = "part of the caption", "paraphrase of it", "part, cut out of it"
IMAGE, CAPTION = "image", "caption"

Recalls = Mapping[str, npt.NDArray[np.float64]]  # by kind of item, (KS)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the caption of an item, and what is left of that caption."""

    group: str
    caption: str
    words: str
    rest: str


def figures(names: Sequence[str] = NAMES) -> list[Figure]:
    """Measure every corpus that is here, and print its table."""
    found = []
    with encoded(names) as sets:
        for name, embedding_set in sets.items():
            directory = embedding_set.path.parents[1]
            settings = Settings.load(home=directory, database_url=f"sqlite:///{directory}/modalign.db")
            with Home(settings) as home:
                measured = _measured(home, name, embedding_set, directory)
            print(f"\n### {name}\n\n{table(measured)}\n", flush=True)
            new = {way: float(recalls["new"][KS.index(10)]) for way, recalls in measured[PARTS].items()}
            gain = new[_fused(CAPTION_WEIGHT)] - new[IMAGE]
            found.append(Figure(f"{name}: Recall@10 of new items, fused over by image", gain, 0.3))
    return found


def _measured(home: Home, name: str, embedding_set: EmbeddingSet, directory: Path) -> dict[str, dict[str, Recalls]]:
    """Return what every kind of query finds, by way."""
    cut = second_half if name == "stamps" else synonyms
    rows = embedding_set.load("text")
    parts = list(draw_parts(rows.groups, [json.loads(payload)["caption"] for payload in rows.payloads], cut))
    home.fit(FitRequest(sets=[name], alignment=name, method=METHOD))
    home.push(PushRequest(set=name, alignment=name, into=name))
    groups = [part.group for part in parts]
    words = load_encoder(ENCODERS["text"], "cpu").encode("text", [part.words for part in parts])
    moved = paraphrased(rows.vectors)[[rows.groups.index(group) for group in groups]]
    whole = home.retriever(name)
    measured = {PARTS: measure(whole, home, words, groups), PARAPHRASES: measure(whole, home, moved, groups)}
    (manifest,) = (directory / name).glob("*.jsonl")
    home.encode(EncodeRequest(corpus=_without(parts, manifest), set=name, encoders=ENCODERS))
    home.push(PushRequest(set=name, alignment=name, into=f"{name}-cut"))
    return {**measured, OTHER_WORDS: measure(home.retriever(f"{name}-cut"), home, words, groups)}


def draw_parts(groups: Sequence[str], captions: Sequence[str], cut: Callable[[str], list[str]]) -> Iterator[Part]:
    """Draw a part of the caption of each of `QUERIES` items, of those that have words beside it.

    >>> list(draw_parts(["1F3E7"], ["ATM sign, atm"], synonyms))[0].rest in ("atm", "ATM sign")
    True
    """
    rng = np.random.default_rng(0)
    items, drawn = list(dict(zip(groups, captions, strict=True)).items()), 0
    for number in rng.permutation(len(items)):
        group, caption = items[number]
        parts = cut(caption)
        words = parts[rng.integers(len(parts))] if parts else ""
        others = ", ".join(part for part in parts if part != words)
        rest = others or caption.replace(words, "", 1).strip(" .,!")
        if words and rest and drawn < QUERIES:
            drawn += 1
            yield Part(group, caption, words, rest)


def _without(parts: Sequence[Part], manifest: Path) -> Path:
    """Write the manifest anew beside itself, with the captions of these items cut; return its path."""
    rest = {part.caption: part.rest for part in parts}
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "caption": rest.get(row["caption"], row["caption"])} for row in rows]
    cut = manifest.with_name("cut.jsonl")
    cut.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return cut


def measure(retriever: Retriever, home: Home, vectors: FloatArray, groups: Sequence[str]) -> dict[str, Recalls]:
    """Return what raw embeddings of texts (n, d) find by each way and weight: Recall@K of new and of known items."""
    release = retriever.release
    assert release.fusion is not None
    held_out = np.array(release.alignment.card.hold_out.held_out(groups), bool)
    encoder = release.alignment.card.encoders["text"].fingerprint
    items = ItemSearch(CandidateSearch(release, home.store))
    aligned = release.alignment.project("text", vectors)
    fusions = {_fused(weight): Fusion(release.fusion.standards, weight) for weight in WEIGHTS}
    images = retriever.search_embeddings("text", vectors, KS[-1], encoder=encoder)
    found = {IMAGE: [[hit.group for hit in hits] for hits in images]}
    for way, fusion in {CAPTION: BY_CAPTION, **fusions}.items():
        found[way] = [[item.group for item in ranked.items] for ranked in items.search(aligned, KS[-1], fusion)]
    recalls: dict[str, Recalls] = {}
    for way, lists in found.items():
        ranks = np.array([_rank(of_query, group) for of_query, group in zip(lists, groups, strict=True)])
        kinds = {"new": ranks[held_out], "known": ranks[~held_out]}
        recalls[way] = {kind: np.array([(of_kind <= k).mean() for k in KS]) for kind, of_kind in kinds.items()}
    return recalls


def table(measured: Mapping[str, Mapping[str, Recalls]]) -> str:
    """Lay recalls out in Markdown, those of new items and then those of known ones: Recall@1, Recall@10."""
    lines = [["items", "queries", *next(iter(measured.values()))]]
    for kind in ("new", "known"):
        for queries, by_way in measured.items():
            cells = [", ".join(f"{recall:.3f}" for recall in recalls[kind]) for recalls in by_way.values()]
            lines.append([kind, queries, *cells])
    return markdown(lines)


def _fused(weight: float) -> str:
    return f"fused, {weight:g}"


def _rank(found: Sequence[str], group: str) -> float:
    return found.index(group) + 1 if group in found else np.inf


if __name__ == "__main__":
    figures(sys.argv[1:] or NAMES)
