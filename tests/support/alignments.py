"""A small alignment of two imaginary encoders, with a card that holds every field."""

from dataclasses import replace
from typing import Any

import numpy as np

from alignment.model.alignment import Alignment
from alignment.model.card import AlignmentCard
from alignment.model.projections import Projection
from alignment.sets.cards import EncoderCard
from alignment.sets.hold_out import HoldOut


def projection(d_in: int, d_out: int, seed: int) -> Projection:
    rng = np.random.default_rng(seed)
    mean = (rng.standard_normal(d_in) / 10).astype(np.float32)
    return Projection(d_in, mean, rng.standard_normal((d_in, d_out)).astype(np.float32))


def alignment(**changes: Any) -> Alignment:
    card = AlignmentCard(
        encoders={"image": EncoderCard("fake-image:1", "a" * 64, 5), "text": EncoderCard("fake-text:1", "b" * 64, 4)},
        method="rcca",
        hyperparameters={"shrinkage_image": 0.1, "components": 3},
        metrics=["cosine", "euclid"],
        sets=["c" * 64],
        pairs=100,
        hold_out=HoldOut(0.3, 7),
        held_out_recall={"cosine": {"text-to-image": {"recall@1": 1 / 3}}},
        candidates=[{"method": "rcca", "shrinkage_image": 0.1, "components": 3, "score": 0.7}],
    )
    return Alignment(replace(card, **changes), {"image": projection(5, 3, 1), "text": projection(4, 3, 2)})
