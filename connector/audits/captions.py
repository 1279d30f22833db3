"""What captions alone would find, beside what images find: the baseline of an alignment where items have captions.

Text queries of the audit look for their own items over the whole collection, by image, by caption, and by both. A
caption never finds itself: it is left out of what is searched. So items are told apart by whether they have a further
caption. Where all words of a query stand in one of those, captions have it easy, and such queries are counted apart.

Where items have one caption each, paraphrases of it ask instead, and the caption stays. These flatter captions more
than what people ask: they are counted apart, said to be what they are, and never advise to search by caption alone.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from alignment.modality import MODALITIES, Modality
from alignment.plurals import counted
from alignment.retrieval.bootstrap import Estimate, bootstrap_mean, bootstrap_of_two
from alignment.retrieval.paraphrases import paraphrases
from alignment.retrieval.ranks import IntArray, group_codes
from alignment.retrieval.ways import CAPTION, FUSED, IMAGE, LARGEST_K, Way, added, advised
from alignment.sets.rows import Rows
from connector.audits.galleries import alignable, hash_draws
from connector.audits.measure import Measurement
from connector.audits.plan import AuditPlan
from connector.audits.subject import AuditSubject
from connector.releases.fusion import Fusion
from connector.releases.points import FITTED, PAYLOAD, splits
from connector.search.other_captions import CaptionScores, ask
from connector.stores.points import Payload

# Queries that are asked in all three ways, chosen by hash; so many of them first of items with several captions.
QUERIES, WITH_SEVERAL = 128, 64
# Fewer queries about items with a further caption say nothing.
FEWEST_QUERIES = 20
# Images by which the share of items with captions is estimated.
IMAGES = 256
DIRECTION = "text-to-image"
COMPARED: Mapping[Way, Sequence[Modality]] = {IMAGE: ["image"], CAPTION: ["text"], FUSED: MODALITIES}
CAPTIONED, WORDS_SHARED, WORDS_OWN, PARAPHRASED, UNCAPTIONED = (
    "with a further caption",
    "of these, all words in a caption",
    "of these, other words",
    "with one, asked by paraphrase",
    "with no caption but the query",
)


@dataclass(frozen=True, slots=True)
class KindOfQuery:
    """Queries about one kind of items: the share of them that finds its item first, and among the first k, by way."""

    kind: str
    queries: int
    first: Mapping[Way, Estimate]
    among: Mapping[Way, Estimate]


@dataclass(frozen=True, slots=True)
class CaptionBaseline:
    """What captions find.

    Attributes:
        k: of `KindOfQuery.among`.
        kinds: of queries, those that there are any of.
        share: of images that have a caption in the collection, in [0, 1].
        fusion: how both ways make one, and what its weight was chosen by.
        recall: of all items of the collection, with captions and without in their true mix, by way and K; empty where
            there are too few queries about items with captions.
        gain: Recall@k of both ways together less that of captions alone, where items have captions.
        paraphrased: whether paraphrases asked about items with captions, which flatter captions.
        advised: the way to search; None: it could not be measured.
        says: what it means, in words.
    """

    k: int
    kinds: Sequence[KindOfQuery]
    share: float
    fusion: Fusion
    recall: Mapping[Way, Mapping[int, Estimate]]
    gain: Estimate | None
    paraphrased: bool
    advised: Way | None
    says: Sequence[str]

    @property
    def measures(self) -> list[Measurement]:
        """Its numbers of all items, as requirements bound them."""
        queries = sum(kind.queries for kind in self.kinds if kind.kind in (self._captioned, UNCAPTIONED))
        return [
            Measurement(DIRECTION, f"recall@{k}", each.value, each.low, each.high, queries, f"by {way}")
            for way, of_way in self.recall.items()
            for k, each in of_way.items()
        ]

    @property
    def _captioned(self) -> str:
        return PARAPHRASED if self.paraphrased else CAPTIONED


@dataclass(frozen=True, slots=True)
class AnsweredCaptions:
    """Captions or paraphrases of them, n rows, and what each finds."""

    rows: Rows
    answers: Sequence[CaptionScores]

    def where(self, chosen: npt.NDArray[np.bool_]) -> "AnsweredCaptions":
        """Keep the queries where `chosen` (n,) is true."""
        numbers = np.flatnonzero(chosen).tolist()
        return AnsweredCaptions(self.rows.take(numbers), [self.answers[number] for number in numbers])

    @property
    def captioned(self) -> npt.NDArray[np.bool_]:
        """Whether a caption of their item was compared (n,)."""
        return np.array(["text" in answer.own for answer in self.answers], bool)


def lengths(plan: AuditPlan) -> list[int]:
    """Return the lengths of lists that are measured: 1, those of the plan that ranks are exact for, and `shown_at`."""
    return sorted({1, *(k for k in plan.ks if k <= LARGEST_K), shown_at(plan)})


def shown_at(plan: AuditPlan) -> int:
    """Return the length of list that stands for all."""
    return min(plan.k, LARGEST_K)


def measure_captions(subject: AuditSubject) -> CaptionBaseline | None:
    """Ask with captions of the audit in all three ways; None: the release has no captions beside images."""
    fusion = subject.release.fusion
    if fusion is None:
        return None
    rows, seed = subject.queries["text"].rows, subject.plan.seed
    # A caption of the fit lies on its images: what it finds says nothing of what people ask.
    unfitted = [number for number, split in enumerate(splits(subject.release.alignment, rows)) if split != FITTED]
    candidates = rows.take(unfitted)
    own = _ask(subject, fusion, candidates.take(_chosen(candidates, seed)))
    moved = own.where(np.zeros(len(own.answers), bool))
    if own.captioned.sum() < FEWEST_QUERIES:
        answered = {key for key, captioned in zip(own.rows.keys, own.captioned, strict=True) if captioned}
        chosen = [number for number in _chosen(rows, seed) if rows.keys[number] not in answered]
        asked = paraphrases(rows, seed=seed).take(chosen)
        moved = _ask(subject, fusion, asked.take(alignable(subject.release, asked).tolist()))
    return summarise(own, moved, fusion, subject.plan, _share_with_captions(subject))


def _chosen(rows: Rows, seed: int) -> list[int]:
    """Return the numbers of the rows that ask: where few items have several captions, their queries still suffice."""
    times = Counter(rows.groups)
    by_draw = np.argsort(hash_draws(rows.keys, seed), kind="stable").tolist()
    several = [number for number in by_draw if times[rows.groups[number]] > 1][:WITH_SEVERAL]
    return list(dict.fromkeys([*several, *by_draw]))[:QUERIES]


def _ask(subject: AuditSubject, fusion: Fusion, rows: Rows) -> AnsweredCaptions:
    answers = []
    for number in range(len(rows)):
        subject.limiter(1)
        answers.append(ask(subject.candidates, [fusion], rows.take([number]), consistent=subject.consistent))
        subject.advance(1)
    return AnsweredCaptions(rows, answers)


def _share_with_captions(subject: AuditSubject) -> float:
    """Return the share of images of the collection whose group has a caption, of a sample of them by id."""
    from qdrant_client.models import FieldCondition, Filter, HasVectorCondition, MatchAny

    store, name = subject.store, subject.release.name
    subject.limiter(2)
    there = Filter(must=[HasVectorCondition(has_vector="image")])
    images = next(store.scroll(name, filter=there, page=IMAGES, consistent=subject.consistent), [])
    if not images:
        return 0.0
    groups = [str(record.payload.get("group")) for record in images]
    of_groups = FieldCondition(key="group", match=MatchAny(any=sorted(set(groups))))
    captions = Filter(must=[HasVectorCondition(has_vector="text"), of_groups])
    texts = store.scroll(name, filter=captions, consistent=subject.consistent)
    captioned = {record.payload.get("group") for page in texts for record in page}
    return float(np.mean([group in captioned for group in groups]))


def summarise(
    own: AnsweredCaptions, moved: AnsweredCaptions, fusion: Fusion, plan: AuditPlan, share: float
) -> CaptionBaseline:
    """Return what the answers mean in a collection where this share of images has captions.

    Args:
        own: captions, which are left out of what they search.
        moved: paraphrases of captions, where too few of `own` are about an item with a further caption.
        fusion: of the release.
        plan: of the audit.
        share: of images that have captions.
    """
    k = shown_at(plan)
    has_further, moved = own.captioned, moved.where(moved.captioned)
    texts = [_caption(PAYLOAD.decode(payload)) for payload in own.rows.payloads]
    shared = [_stands_in(text, answer.captions) for text, answer in zip(texts, own.answers, strict=True)]
    words_shared = np.array(shared, bool)
    kinds = {
        CAPTIONED: own.where(has_further),
        WORDS_SHARED: own.where(has_further & words_shared),
        WORDS_OWN: own.where(has_further & ~words_shared),
        PARAPHRASED: moved,
        UNCAPTIONED: own.where(~has_further),
    }
    outcomes = {kind: _Outcomes.of(answered, fusion, plan.seed) for kind, answered in kinds.items() if answered.answers}
    measured = [
        KindOfQuery(
            kind,
            len(of_kind.codes),
            {way: of_kind.recall(way, 1) for way in COMPARED},
            {way: of_kind.recall(way, k) for way in COMPARED},
        )
        for kind, of_kind in outcomes.items()
    ]
    paraphrased = has_further.sum() < FEWEST_QUERIES <= len(moved.answers)
    baseline = CaptionBaseline(k, measured, share, fusion, {}, None, bool(paraphrased), None, [])
    if has_further.sum() >= FEWEST_QUERIES or paraphrased:
        captioned = outcomes[PARAPHRASED if paraphrased else CAPTIONED]
        # Without such queries, items without a caption are found by image as well as those with one.
        uncaptioned = outcomes.get(UNCAPTIONED, captioned.by_image())
        recall = {way: {k: captioned.mixed(uncaptioned, share, way, k) for k in lengths(plan)} for way in COMPARED}
        baseline = replace(baseline, recall=recall, gain=captioned.gain(k))
        found = {way: (of_way[k].value, of_way[1].value) for way, of_way in recall.items()}
        baseline = replace(baseline, advised=advised(found, paraphrased=baseline.paraphrased))
    return replace(baseline, says=list(_in_words(baseline)))


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """Ranks of the items of n queries by way (n,), with the codes of their groups (n,)."""

    codes: IntArray
    ranks: Mapping[Way, npt.NDArray[np.float64]]
    seed: int

    @classmethod
    def of(cls, answered: AnsweredCaptions, fusion: Fusion, seed: int) -> Self:
        """Rank the items of queries."""
        (codes,) = group_codes(answered.rows.groups)
        ranks = {
            way: [answer.rank(fusion, *compared) for answer in answered.answers] for way, compared in COMPARED.items()
        }
        return cls(codes, {way: np.array(of_way, np.float64) for way, of_way in ranks.items()}, seed)

    def by_image(self) -> Self:
        """Return what these queries would find of items without a caption."""
        by_image = self.ranks[IMAGE]
        return replace(self, ranks={IMAGE: by_image, CAPTION: np.full(len(by_image), np.inf), FUSED: by_image})

    def _found(self, way: Way, k: int) -> tuple[npt.NDArray[np.float64], IntArray]:
        return (self.ranks[way] <= k).astype(np.float64), self.codes

    def recall(self, way: Way, k: int) -> Estimate:
        """Return the share of queries whose item is among the first k."""
        return bootstrap_mean(*self._found(way, k), seed=self.seed)

    def gain(self, k: int) -> Estimate:
        """Return Recall@k of both ways together less that of captions alone."""
        (fused, codes), (caption, _) = self._found(FUSED, k), self._found(CAPTION, k)
        return bootstrap_mean(fused - caption, codes, seed=self.seed)

    def mixed(self, others: "_Outcomes", share: float, way: Way, k: int) -> Estimate:
        """Return Recall@k of a collection where this share of items is as these, and the rest as others."""
        return bootstrap_of_two(
            lambda own, rest: share * own + (1 - share) * rest,
            self._found(way, k),
            others._found(way, k),
            seed=self.seed,
        )


def _caption(payload: Payload) -> str:
    text = payload.get("caption")
    return text if isinstance(text, str) else ""


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _stands_in(text: str, captions: Sequence[Payload]) -> bool:
    """Whether all words of a text stand in one of the captions; not where texts are not recorded."""
    words = _words(text)
    return bool(words) and any(words <= _words(_caption(caption)) for caption in captions)


def _in_words(baseline: CaptionBaseline) -> Iterator[str]:
    kinds = {kind.kind: kind for kind in baseline.kinds}
    k, gain = baseline.k, baseline.gain
    captioned, moved, uncaptioned = (kinds.get(kind) for kind in (CAPTIONED, PARAPHRASED, UNCAPTIONED))
    if gain is None:
        counts = [kind.queries if kind else 0 for kind in (captioned, moved)]
        yield (
            f"What captions alone would find is not measured: {counts[0]} of the queries are about an item with a "
            f"further caption and {counts[1]} about one with a single caption that a paraphrase can ask for; "
            f"{FEWEST_QUERIES} of either are needed."
        )
        return
    if baseline.paraphrased and moved:
        yield (
            f"{captioned.queries if captioned else 0} of the queries are about an item with a further caption, "
            f"{FEWEST_QUERIES} are needed, as a caption finds itself. So paraphrases of captions asked, embeddings "
            "that are moved at random. They flatter captions: people ask in other words, which find less by caption."
        )
        yield _found(moved, "about items by a paraphrase of their caption", k)
    elif captioned:
        yield _found(captioned, "about items with a further caption", k)
    if (shared := kinds.get(WORDS_SHARED)) and not baseline.paraphrased:
        other = kinds.get(WORDS_OWN)
        rest = f"; of the other {other.queries}, captions find {_share(other.among[CAPTION])}" if other else ""
        yield (
            f"In {shared.queries} of these, all words stand in a caption of the item, which flatters captions{rest}."
        )
    yield _verdict(gain, paraphrased=baseline.paraphrased)
    if uncaptioned:
        yield (
            f"Items without a caption are found by the alignment alone: {_share(uncaptioned.among[IMAGE])} by image "
            f"and {_share(uncaptioned.among[FUSED])} by both, of {counted(uncaptioned.queries, 'query')}."
        )
    yield _weighed(baseline.fusion)
    most = "of image and fused it" if baseline.paraphrased else "of the three ways it"
    yield (
        f"{baseline.share:.0%} of the images in the collection have a caption. Search by {baseline.advised}: {most} "
        "finds most there."
    )


def _weighed(fusion: Fusion) -> str:
    """Say how much captions count, and what chose that."""
    weights = f"Both together weigh captions {fusion.weight:g} and images {1 - fusion.weight:g}"
    if fusion.queries:
        return f"{weights}: {counted(fusion.queries, 'caption')} that the fit never saw chose it."
    return (
        f"{weights}, the default: too few items have a further caption to choose by, and paraphrases flatter captions."
    )


def _found(kind: KindOfQuery, about: str, k: int) -> str:
    among = kind.among
    return (
        f"Of {counted(kind.queries, 'query')} {about}, captions alone find {_share(among[CAPTION])} among the first "
        f"{k}, images {_share(among[IMAGE])}, both together {_share(among[FUSED])}."
    )


def _verdict(gain: Estimate, *, paraphrased: bool) -> str:
    """Say whether the alignment adds to captions where items have them."""
    verdict = added(gain)
    if not paraphrased:
        return f"Where items have captions, {verdict} of such queries."
    if gain.low > 0:
        return f"Even so, where items have captions, {verdict} of such queries."
    return (
        f"By paraphrases, where items have captions, {verdict} of such queries. That says nothing of queries in other "
        "words: a second caption of some items would measure it."
    )


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.1%}"
