"""Encoder pairs: embedding sets joined by their encoders, each split into the same training and test groups."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment.comparison.captions import CaptionQueries, caption_queries
from alignment.comparison.table import EncoderPair
from alignment.errors import FitError
from alignment.fitting.fit import common_encoders
from alignment.fitting.seen_unseen import SeenUnseen
from alignment.fitting.split import check_directions, split_rows
from alignment.modality import MODALITIES, Modality
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import chance_recall_at
from alignment.sets.cards import EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows

# More held-out groups than this sharpen an interval less than they take time.
TEST_GROUPS = 2_000


@dataclass(frozen=True, slots=True)
class PairData:
    """An encoder pair with its training and its test data. Groups have the same codes in every pair.

    Attributes:
        known, test: groups to fit on, and groups that no fit sees.
        whole: both in one collection, in their true mix.
        captions: queries about test groups there that captions alone can answer.
    """

    pair: EncoderPair
    known: GroupedEmbeddings
    test: GroupedEmbeddings
    whole: SeenUnseen
    captions: CaptionQueries


def encoder_pairs(sets: Sequence[EmbeddingSet], hold_out: HoldOut, seed: int) -> Iterator[PairData]:
    """Join sets of the same encoders, and split all on the groups that they have in common."""
    by_encoders: dict[Any, list[EmbeddingSet]] = {}
    for embedding_set in sets:
        key = tuple(embedding_set.card.encoders.get(modality) for modality in MODALITIES)
        by_encoders.setdefault(key, []).append(embedding_set)
    cards = [common_encoders(joined) for joined in by_encoders.values()] or [common_encoders([])]
    loaded = [
        {m: Rows.concatenate([embedding_set.load(m) for embedding_set in joined]) for m in MODALITIES}
        for joined in by_encoders.values()
    ]
    complete = [set(rows["image"].groups) & set(rows["text"].groups) for rows in loaded]
    common = set.intersection(*complete)
    if len(loaded) > 1 and not common:
        raise FitError(
            f"{len(loaded)} encoder pairs are compared on the groups that all of them have, and there are none; encode "
            "the same corpus with each, and give items that describe the same thing the same group"
        )
    for encoders, joined, rows, groups in zip(cards, by_encoders.values(), loaded, complete, strict=True):
        shared = {
            m: side.take(row for row, group in enumerate(side.groups) if group in common) for m, side in rows.items()
        }
        known, test, _unpaired = split_rows(shared, hold_out)
        check_directions(known)
        whole = SeenUnseen.sampled(known, test, seed, most=TEST_GROUPS)
        test = test.only(whole.unseen)
        name = _name(encoders, cards)
        fingerprints = [embedding_set.card.fingerprint for embedding_set in joined]
        captions = caption_queries(whole.data.text, test.groups, seed)
        training_pairs, left_out = len(known.pairs()[0]), len(groups - common)
        pair = EncoderPair(
            name,
            encoders,
            fingerprints,
            training_pairs,
            left_out,
            _chance(test, test),
            _chance(test, whole.data),
            captions.alone(seed),
        )
        yield PairData(pair, known, test, whole, captions)


def _name(encoders: Mapping[Modality, EncoderCard], all_of_them: Sequence[Mapping[Modality, EncoderCard]]) -> str:
    """Specs of both encoders, and fingerprints where two pairs have the same specs."""
    specs = [tuple(cards[m].spec for m in MODALITIES) for cards in all_of_them]
    own = tuple(encoders[m].spec for m in MODALITIES)
    if specs.count(own) == 1:
        return " + ".join(own)
    return " + ".join(f"{encoders[m].spec} ({encoders[m].fingerprint[:8]})" for m in MODALITIES)


def _chance(test: GroupedEmbeddings, gallery: GroupedEmbeddings) -> dict[str, float]:
    """Recall@K of a random order of `gallery` by K, mean of both directions."""
    chances, groups = {}, gallery.groups
    for k in KS:
        both = []
        for queries, items in ((test.text, gallery.image), (test.image, gallery.text)):
            relevant = np.bincount(np.searchsorted(groups, items.groups), minlength=len(groups))
            both.append(chance_recall_at(k, relevant[np.searchsorted(groups, queries.groups)], len(items.vectors)))
        chances[f"recall@{k}"] = float(np.mean(both))
    return chances
