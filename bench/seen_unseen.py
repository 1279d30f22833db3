"""Seen and unseen items: what a whole collection finds of either, by method, without and with the offset of a fit.

A quarter of the groups is held out and joins the collection after the fit. Queries about these unseen items are their
captions, or parts of them; queries about seen items are parts of captions, because the fit put whole ones on their
items. A part is a synonym of an emoji's name, or the second half of a stamp's title of three words or more. No seen
image has a second rendering that the fit did not see, so images that ask for seen texts are paraphrases.

`python -m bench.seen_unseen` prints the tables, `python -m bench.seen_unseen stamps` those of one corpus;
docs/alignment-figures.md keeps them.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from alignment.fitting.closed_forms import Hyperparameters
from alignment.fitting.cross_validation import Candidate, best_of, cross_validate
from alignment.fitting.methods import METHODS, FitSpec, Fitter, fewest_groups
from alignment.fitting.seen_offsets import FittedMetrics, seen_offsets
from alignment.fitting.seen_unseen import SeenUnseen
from alignment.metrics import Cosine
from alignment.modality import DIRECTIONS, MODALITIES
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.paraphrases import paraphrased
from alignment.retrieval.ranks import TieFloors
from alignment.retrieval.seen_unseen import SeenUnseenScores, area_under, harmonic_mean
from alignment.sets.embedding_set import EmbeddingSet
from bench import corpora
from bench.figure import Figure
from bench.tables import markdown
from connector.demo.emoji import ENCODERS
from connector.encoding.loading import load_encoder

SPLITS, FOLDS, HELD_OUT = 3, 4, 0.25
CPU = torch.device("cpu")
COSINE = Cosine()
SHOWN = ("before", "auto", "ridge", "rcca", "kcca", "asif", "linear", "residual")
# What `auto` chose, in the first split of `bench.quality`, while it judged by held-out items alone and had no offset.
BEFORE: Mapping[str, tuple[str, Hyperparameters]] = {
    "emoji": ("residual", {"start": "kcca", "rank": 64, "learning_rate": 0.0003}),
    "stamps": ("kcca", {"gamma": 4.0, "shrinkage": 0.3, "components": 256}),
    "emoji-google": ("kcca", {"gamma": 4.0, "shrinkage": 0.3, "components": 512}),
}
PARAPHRASED, SHARES = ("ridge", "kcca", "asif"), (0.0, 0.1, 0.2, 0.3)
KS = (1, 10)
# Offsets of a curve: cosines differ by 2 at most.
CURVE = np.linspace(-2, 2, 401)
# Kinds of queries by direction: the first is about seen items, the others are about unseen ones.
KINDS = {
    "text-to-image": ("seen: parts", "unseen: captions", "unseen: parts"),
    "image-to-text": ("seen: paraphrased images", "unseen: images"),
}
PARAPHRASES = "seen: paraphrases"

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Images and captions, and parts of the captions; raw vectors with their groups."""

    name: str
    data: GroupedEmbeddings
    parts: ModalityEmbeddings


@dataclass(frozen=True, slots=True)
class Searched:
    """What the queries of one direction find in the whole collection under one projection.

    Attributes:
        method: that projects.
        scores: by kind of query.
        offset: that the fit chose.
        gap: between pairs of the fit and held-out ones.
        fair: share of seen items in the collection.
    """

    method: str
    scores: Mapping[str, SeenUnseenScores]
    offset: float
    gap: float
    fair: float

    def recalls(self, offset: float, *kinds: str) -> Values:
        """Recall@1 and Recall@10 of kinds of queries (kinds, 2)."""
        ranks = [self.scores[kind].ranks(offset) for kind in kinds]
        return np.array([[np.mean(own <= k) for k in KS] for own in ranks])

    def seen_first(self, offset: float, seen: str, unseen: str) -> float:
        """Share of first places that go to seen items where every item is asked about alike; `fair` would be right."""
        first = [float(self.scores[kind].finds_seen_first(offset).mean()) for kind in (seen, unseen)]
        return self.fair * first[0] + (1 - self.fair) * first[1]

    def areas(self, seen: str, unseen: str) -> Values:
        """Areas under the seen-unseen curves of Recall@1 and Recall@10 (2,)."""
        curve = np.array([self.recalls(offset, seen, unseen) for offset in (-np.inf, *CURVE, np.inf)])
        return np.array([area_under(curve[:, 1, column], curve[:, 0, column]) for column in range(len(KS))])


Measured = dict[str, list[dict[str, Searched]]]


def figures(names: Sequence[str] = corpora.NAMES) -> list[Figure]:
    """Measure every corpus that is here, print its tables, and judge what `auto` chooses."""
    found, gains = [], []
    with corpora.encoded(names) as sets:
        for name, embedding_set in sets.items():
            measured = measure(read(name, embedding_set))
            print(tables(name, measured), flush=True)
            gains.append(gain(measured))
            found += judged(name, *gains[-1])
    if gains:
        mean = float(np.mean([times for times, *_ in gains]))
        found.append(Figure("harmonic mean of seen and unseen Recall@1 over that before, mean", mean, 4))
    return found


def read(name: str, embedding_set: EmbeddingSet) -> Corpus:
    """Encode parts of the captions of an embedding set."""
    (data,) = corpora.labelled([embedding_set])
    rows = embedding_set.load("text")
    cut = second_half if name == "stamps" else synonyms
    captions = [json.loads(payload)["caption"] for payload in rows.payloads]
    parts = [(part, code) for caption, code in zip(captions, data.text.groups, strict=True) for part in cut(caption)]
    vectors = load_encoder(ENCODERS["text"], "cpu").encode("text", [part for part, _ in parts])
    return Corpus(name, data, ModalityEmbeddings(vectors, np.array([code for _, code in parts])))


def synonyms(caption: str) -> list[str]:
    """Return the names in a caption of several.

    >>> synonyms("ATM sign, atm"), synonyms("wallet")
    (['ATM sign', 'atm'], [])
    """
    return [name for name in dict.fromkeys(part.strip() for part in caption.split(",")) if name != caption]


def second_half(title: str) -> list[str]:
    """Return the second half of a title of three words or more.

    >>> second_half("A green frog."), second_half("A frog.")
    (['green frog'], [])
    """
    words = title.strip(".!").split()
    return [" ".join(words[len(words) // 2 :])] if len(words) >= 3 else []


def measure(corpus: Corpus) -> Measured:
    """Choose every method's hyperparameters and offset within each split, and search the whole collection.

    Returns:
        what is found by method, then split, then direction.
    """
    measured: Measured = {name: [] for name in SHOWN}
    for seed in range(SPLITS):
        shuffled = np.random.default_rng(seed).permutation(corpus.data.groups)
        held = round(HELD_OUT * len(shuffled))
        known, unseen = corpus.data.only(shuffled[held:]), corpus.data.only(shuffled[:held])
        task = FitSpec(seed=seed)
        racing = [name for name in METHODS if len(known.groups) >= fewest_groups(name)]
        scores = cross_validate(known, racing, task, folds=FOLDS, device=CPU)
        searched: dict[str, dict[str, Searched]] = {}
        for name in SHOWN[2:]:
            searched[name] = _searched(corpus, known, unseen, best_of(s for s in scores if s.method == name), task)
        winner = best_of(scores)
        method, hyperparameters = BEFORE[corpus.name]
        before = Candidate(method, dict(hyperparameters), whole=(), held_out=math.nan, folds=0)
        searched["before"] = _searched(corpus, known, unseen, before, task)
        searched["auto"] = searched.get(winner.method) or _searched(corpus, known, unseen, winner, task)
        for name in SHOWN:
            measured[name].append(searched[name])
        print(f"{corpus.name}: split {seed + 1} of {SPLITS}, auto is {winner.method}", file=sys.stderr, flush=True)
    return measured


def _searched(
    corpus: Corpus, known: GroupedEmbeddings, unseen: GroupedEmbeddings, chosen: Candidate, task: FitSpec
) -> dict[str, Searched]:
    """Fit a candidate and ask the whole collection, in both directions."""
    projections = Fitter(chosen.method, known, CPU, task).fit(chosen.hyperparameters)
    offsets = seen_offsets(chosen, known, projections, FittedMetrics([COSINE], {}), FOLDS, CPU, task)
    both = SeenUnseen.sampled(known, unseen, task.seed)
    gaps = both.gaps(both.data.project(projections), [COSINE] * len(DIRECTIONS))
    aligned = corpus.data.project(projections)
    searched = {}
    for (direction, (modality, target)), gap in zip(DIRECTIONS.items(), gaps, strict=True):
        items = aligned.image if target == "image" else aligned.text
        seen = np.isin(items.groups, known.groups)
        scores = {}
        for kind, queries in _queries(corpus, known, unseen, direction, task.seed):
            found = projections[MODALITIES.index(modality)].unchecked(queries.vectors)
            scores[kind] = SeenUnseenScores.empty(len(found), KS[-1])
            floors = partial(TieFloors(COSINE, found, items.vectors).of, rows=slice(None))
            relevant = queries.groups[:, None] == items.groups
            scores[kind].add(COSINE.score(found, items.vectors), relevant, seen, floors=floors)
        offset = offsets.get(str(COSINE), {}).get(target, 0.0)
        searched[direction] = Searched(chosen.method, scores, offset, gap, float(seen.mean()))
    return searched


def _queries(
    corpus: Corpus, known: GroupedEmbeddings, unseen: GroupedEmbeddings, direction: str, seed: int
) -> Iterator[tuple[str, ModalityEmbeddings]]:
    """Yield the kinds of queries of a direction, raw."""
    if direction == "image-to-text":
        moved = ModalityEmbeddings(paraphrased(known.image.vectors, seed=seed), known.image.groups)
        yield from zip(KINDS[direction], (moved, unseen.image), strict=True)
        return
    is_new = np.isin(corpus.parts.groups, unseen.groups)
    yield from zip(
        KINDS[direction], (corpus.parts.where(~is_new), unseen.text, corpus.parts.where(is_new)), strict=True
    )
    with_parts = known.text.where(np.isin(known.text.groups, corpus.parts.groups))  # so that both ask about the same
    yield PARAPHRASES, ModalityEmbeddings(paraphrased(with_parts.vectors, seed=seed), with_parts.groups)


def gain(measured: Measured) -> tuple[float, float, float]:
    """Return what texts that search images gain over what `auto` chose before, by means over the splits.

    Returns:
        the harmonic mean of Recall@1, as a multiple; the mean Recall@10 and that of seen items, as differences.
    """
    kinds = KINDS["text-to-image"][:2]
    before, now = (
        np.mean([side.recalls(side.offset, *kinds) for side in (split["text-to-image"] for split in splits)], axis=0)
        for splits in (measured["before"], measured["auto"])
    )
    times = harmonic_mean(*now[:, 0]) / harmonic_mean(*before[:, 0])
    return times, now[:, 1].mean() - before[:, 1].mean(), now[0, 1] - before[0, 1]


def judged(name: str, times: float, mean_at_10: float, seen_at_10: float) -> list[Figure]:
    """Hold the gains of a corpus against what was asked."""
    return [
        Figure(f"{name}: harmonic mean of seen and unseen Recall@1 over that before", times, 3),
        Figure(f"{name}: mean Recall@10 of seen and unseen less that before", mean_at_10, 0.03),
        Figure(f"{name}: Recall@10 of seen items less that before", seen_at_10, -0.01),
    ]


# Tables


def tables(name: str, measured: Measured) -> str:
    """Lay out what a corpus gave: both directions, and paraphrases beside parts of captions."""
    fair = measured["auto"][0]["text-to-image"].fair
    winners = ", ".join(split["text-to-image"].method for split in measured["auto"])
    parts = [f"\n### {name}: {fair:.0%} of the images are seen; auto is {winners}"]
    parts += [f"{direction}:\n\n{_by_method(measured, direction)}" for direction in DIRECTIONS]
    parts.append(f"Parts of seen captions beside paraphrases, by offset as a share of the gap:\n\n{_moved(measured)}")
    return "\n\n".join(parts)


def _by_method(measured: Measured, direction: str) -> str:
    """Recall@1 and Recall@10 by method, without and with the chosen offset, means over the splits."""
    kinds = KINDS[direction]
    seen, unseen = kinds[:2]
    lines = [["method", "offset", *kinds, "harmonic mean", "seen first", "area under the curve"]]
    for name, splits in measured.items():
        sides = [split[direction] for split in splits]
        areas = _cell(np.mean([side.areas(seen, unseen) for side in sides], axis=0))
        chosen = [side.offset for side in sides]
        for label, offsets in ((name, [0.0] * len(sides)), *([("", chosen)] if any(chosen) else [])):
            both = list(zip(sides, offsets, strict=True))
            recalls = np.mean([side.recalls(offset, *kinds) for side, offset in both], axis=0)
            first = float(np.mean([side.seen_first(offset, seen, unseen) for side, offset in both]))
            means = _cell(harmonic_mean(recalls[0], recalls[1]))
            cells = [*map(_cell, recalls), means, f"{first:.3f}", areas if label else ""]
            lines.append([label, f"{np.mean(offsets):.3f}", *cells])
    return markdown(lines)


def _moved(measured: Measured) -> str:
    """Recall@1 and Recall@10 of seen items by parts of their captions and by paraphrases, means over the splits."""
    lines = [["method", "queries", *(f"{share:g}" for share in SHARES)]]
    for name in PARAPHRASED:
        sides = [split["text-to-image"] for split in measured[name]]
        for kind in (KINDS["text-to-image"][0], PARAPHRASES):
            cells = [_cell(np.mean([s.recalls(share * s.gap, kind)[0] for s in sides], axis=0)) for share in SHARES]
            lines.append([name, kind, *cells])
    return markdown(lines)


def _cell(recalls: Values) -> str:
    return ", ".join(f"{value:.3f}" for value in recalls)


if __name__ == "__main__":
    for figure in figures(sys.argv[1:] or corpora.NAMES):
        print(figure)
