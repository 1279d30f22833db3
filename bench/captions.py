"""Items found by image, by caption and by both, where they have captions: on the corpora of `bench.corpora`.

Queries are parts of captions, such as one synonym of an emoji: they never equal a caption, but their words stand in
one, which flatters captions. `python -m bench.captions` prints the table that docs/search.md keeps.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt

from alignment.sets.embedding_set import EmbeddingSet
from bench.corpora import NAMES, encoded
from bench.figure import Figure
from bench.seen_unseen import second_half, synonyms
from connector.home import Home
from connector.requests import FitRequest, PushRequest, Way
from connector.search.retriever import Retriever
from connector.settings import Settings

KS = (1, 10)
METHOD = "kcca"
QUERIES = 600


def figures(names: Sequence[str] = NAMES) -> list[Figure]:
    """Measure every corpus that is here, and print its table."""
    found = []
    with encoded(names) as sets:
        for name, embedding_set in sets.items():
            directory = embedding_set.path.parents[1]
            settings = Settings.load(home=directory, database_url=f"sqlite:///{directory}/modalign.db")
            with Home(settings) as home:
                home.fit(FitRequest(sets=[name], alignment=name, method=METHOD))
                home.push(PushRequest(set=name, alignment=name, into=name))
                measured = measure(home.retriever(name), name, embedding_set)
            print(f"\n### {name}\n\n{table(measured)}\n", flush=True)
            new = {way: of_way["new"][KS.index(10)] for way, of_way in measured.items()}
            gain = new["fused"] - new["image"]
            found.append(Figure(f"{name}: Recall@10 of new items, fused over by image", gain, 0.3))
    return found


def measure(retriever: Retriever, name: str, embedding_set: EmbeddingSet) -> dict[Way, Mapping[str, list[float]]]:
    """Return Recall@K of new and of known items, by K, for each way."""
    texts, groups = parts_of_captions(name, embedding_set)
    held_out = retriever.release.alignment.card.hold_out.held_out(groups)
    found: dict[Way, Mapping[str, list[float]]] = {}
    for way in get_args(Way):
        answers = retriever.search_texts(texts, max(KS), by=way)
        ranks = np.array(
            [_rank([hit.group for hit in hits], group) for hits, group in zip(answers, groups, strict=True)]
        )
        kinds: Mapping[str, npt.NDArray[np.bool_]] = {"new": held_out, "known": ~held_out}
        found[way] = {kind: [float((ranks[of_kind] <= k).mean()) for k in KS] for kind, of_kind in kinds.items()}
    return found


def parts_of_captions(name: str, embedding_set: EmbeddingSet) -> tuple[list[str], list[str]]:
    """Return parts of captions, and the groups of these."""
    rows, cut = embedding_set.load("text"), second_half if name == "stamps" else synonyms
    captions = [json.loads(payload)["caption"] for payload in rows.payloads]
    parts = [(part, group) for caption, group in zip(captions, rows.groups, strict=True) for part in cut(caption)]
    chosen = np.random.default_rng(0).permutation(len(parts))[:QUERIES]
    return [parts[number][0] for number in chosen], [parts[number][1] for number in chosen]


def table(measured: Mapping[Way, Mapping[str, Sequence[float]]]) -> str:
    """Lay recalls out in Markdown."""
    lines = ["| by | new R@1 | new R@10 | known R@1 | known R@10 |", "| --- | --- | --- | --- | --- |"]
    for way, kinds in measured.items():
        cells = [f"{recall:.3f}".removeprefix("0") for kind in ("new", "known") for recall in kinds[kind]]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rank(found: Sequence[str], group: str) -> float:
    return found.index(group) + 1 if group in found else np.inf


if __name__ == "__main__":
    figures(sys.argv[1:] or NAMES)
