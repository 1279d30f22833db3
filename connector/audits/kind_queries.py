"""The queries about seen and about unseen items of a collection, as an audit draws them from its labelled pairs.

A query about a seen item is never its own caption of the fit, which sits on it and is found first whatever happens.
"""

from dataclasses import dataclass

import numpy as np

from alignment.modality import Modality
from alignment.retrieval.kinds import SEEN, UNSEEN
from alignment.retrieval.paraphrases import paraphrases
from alignment.sets.rows import Rows
from alignment.vectors import FloatArray
from connector.audits.census import Census
from connector.audits.galleries import alignable, hash_draws
from connector.audits.subject import AuditSubject
from connector.releases.points import FITTED, splits

# Queries of each kind and direction at most: enough for an interval of some hundredths.
MOST = 2_000
PARAPHRASES = "paraphrases"
# From so many groups on, other captions stand for what people ask about seen items; else paraphrases do.
ENOUGH_GROUPS = 30


@dataclass(frozen=True, slots=True)
class KindQueries:
    """The n queries about items of one kind.

    Attributes:
        about: what they are, in words.
        rows: the queries.
        aligned: their vectors (n, d).
    """

    about: str
    rows: Rows
    aligned: FloatArray


class _Sample:
    """The rows with the lowest draws of those that were added, at most so many.

    Attributes:
        rows: they; None of none.
        groups: of all that were added, up to `ENOUGH_GROUPS`.
    """

    def __init__(self, most: int, seed: int):
        self._most, self._seed = most, seed
        self.rows: Rows | None = None
        self.groups: set[str] = set()

    def add(self, rows: Rows) -> None:
        """Add rows, and keep those with the lowest draws."""
        for group in rows.groups:
            if len(self.groups) < ENOUGH_GROUPS:
                self.groups.add(group)
        joined = rows if self.rows is None else Rows.concatenate([self.rows, rows])
        if len(joined) > self._most:
            joined = joined.take(np.sort(np.argsort(hash_draws(joined.keys, self._seed))[: self._most]).tolist())
        self.rows = joined


def draw_queries(subject: AuditSubject, modality: Modality, census: Census) -> dict[str, KindQueries]:
    """Draw queries of a modality by the kind of item they are about; a kind without any is left out.

    Memory holds a shard and the samples: never the whole set.

    Args:
        subject: of the audit.
        modality: of the queries.
        census: of the items that they search for.
    """
    plan = subject.plan
    most = MOST if plan.sample is None else min(plan.sample, MOST)
    unseen, others, own = (_Sample(most, plan.seed) for _ in range(3))
    for rows in subject.pairs.read(modality):
        kept = rows.take(alignable(subject.release, rows).tolist())
        in_fit = np.array([split == FITTED for split in splits(subject.release.alignment, kept)], bool)
        has_seen, has_unseen = (census.has(kept.groups, seen=seen) for seen in (True, False))
        for sample, mask in (
            (unseen, ~in_fit & has_unseen & ~has_seen),
            (others, ~in_fit & has_seen),
            (own, in_fit & has_seen),
        ):
            if mask.any():
                sample.add(kept.take(np.flatnonzero(mask).tolist()))
    drawn = {}
    if unseen.rows is not None:
        drawn[UNSEEN] = KindQueries("items that the fit never saw", unseen.rows, subject.align(unseen.rows))
    if others.rows is not None and (len(others.groups) >= ENOUGH_GROUPS or own.rows is None):
        drawn[SEEN] = KindQueries(f"other {modality}s of seen items", others.rows, subject.align(others.rows))
    elif own.rows is not None:
        rows = paraphrases(own.rows, seed=plan.seed)
        drawn[SEEN] = KindQueries(f"{PARAPHRASES} of the {modality}s of seen items", rows, subject.align(rows))
    return drawn
