"""What captions alone would find, beside what images find: the baseline of an alignment where items have captions.

Text queries of the audit look for their own items over the whole collection, by image, by caption, and by both. A
caption never finds itself: it is left out of what is searched. So items are told apart by whether they have a further
caption. Where all words of a query stand in one of those, captions have it easy, and such queries are counted apart.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.modality import MODALITIES, Modality
from alignment.retrieval.bootstrap import Estimate, bootstrap_mean
from alignment.retrieval.ranks import group_codes
from alignment.sets.rows import Rows
from connector.audits.galleries import hash_draws
from connector.audits.subject import AuditSubject
from connector.releases.fusion import CAPTION, FUSED, IMAGE, Fusion
from connector.releases.points import PAYLOAD
from connector.requests import Way
from connector.search.other_captions import Answer, ask
from connector.stores.points import Payload

# Queries that are asked in all three ways, chosen by hash.
QUERIES = 128
# Fewer queries about items with a further caption say nothing.
FEWEST_QUERIES = 20
# Images by which the share of items with captions is estimated.
IMAGES = 256
# The largest K that ranks are exact for.
LARGEST_K = 10
COMPARED: Mapping[Way, Sequence[Modality]] = {IMAGE: ["image"], CAPTION: ["text"], FUSED: MODALITIES}
CAPTIONED, WORDS_SHARED, WORDS_OWN, UNCAPTIONED = (
    "with a further caption",
    "of these, all words in a caption",
    "of these, other words",
    "without one",
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
        gain: Recall@k of both ways together less that of captions alone, among items with a further caption.
        advised: the way to search; None: it could not be measured.
        says: what it means, in words.
    """

    k: int
    kinds: Sequence[KindOfQuery]
    share: float
    gain: Estimate | None
    advised: Way | None
    says: Sequence[str]


def measure_captions(subject: AuditSubject) -> CaptionBaseline | None:
    """Ask with captions of the audit in all three ways; None: the release has no captions beside images."""
    fusion = subject.release.fusion
    if fusion is None:
        return None
    rows = subject.queries["text"].rows
    rows = rows.take(np.argsort(hash_draws(rows.keys, subject.plan.seed), kind="stable")[:QUERIES].tolist())
    answers = []
    for number in range(len(rows)):
        subject.limiter(1)
        answers.append(ask(subject.candidates, fusion, rows.take([number]), consistent=subject.consistent))
    k = min(subject.plan.k, LARGEST_K)
    return summarise(rows, answers, fusion, k, _share_with_captions(subject), seed=subject.plan.seed)


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
    rows: Rows, answers: Sequence[Answer], fusion: Fusion, k: int, share: float, *, seed: int
) -> CaptionBaseline:
    """Return what the answers to captions (n,) mean, in a collection where this share of images has captions."""
    ranks = {
        way: np.array([answer.rank(fusion, *modalities) for answer in answers]) for way, modalities in COMPARED.items()
    }
    (codes,) = group_codes(rows.groups)
    captioned = np.array(["text" in answer.own for answer in answers], bool)
    texts = [_caption(PAYLOAD.decode(payload)) for payload in rows.payloads]
    shared = np.array([_stands_in(text, answer.captions) for text, answer in zip(texts, answers, strict=True)], bool)

    def estimate(values: npt.NDArray[Any], chosen: npt.NDArray[np.bool_]) -> Estimate:
        return bootstrap_mean(values[chosen].astype(np.float64), codes[chosen], seed=seed)

    def kind(name: str, chosen: npt.NDArray[np.bool_]) -> KindOfQuery:
        first, among = ({way: estimate(of_way <= most, chosen) for way, of_way in ranks.items()} for most in (1, k))
        return KindOfQuery(name, int(chosen.sum()), first, among)

    kinds = {
        CAPTIONED: captioned,
        WORDS_SHARED: captioned & shared,
        WORDS_OWN: captioned & ~shared,
        UNCAPTIONED: ~captioned,
    }
    measured = [kind(name, chosen) for name, chosen in kinds.items() if chosen.any()]
    gain = None
    if captioned.sum() >= FEWEST_QUERIES:
        gain = estimate((ranks[FUSED] <= k).astype(float) - (ranks[CAPTION] <= k), captioned)
    baseline = CaptionBaseline(k, measured, share, gain, None, [])
    advised = None if gain is None else _advised(baseline)
    return replace(baseline, advised=advised, says=list(_in_words(baseline, advised)))


def _caption(payload: Payload) -> str:
    text = payload.get("caption")
    return text if isinstance(text, str) else ""


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _stands_in(text: str, captions: Sequence[Payload]) -> bool:
    """Whether all words of a text stand in one of the captions; not where texts are not recorded."""
    words = _words(text)
    return bool(words) and any(words <= _words(_caption(caption)) for caption in captions)


def _advised(baseline: CaptionBaseline) -> Way:
    """Return the way that finds most of all items, with captions and without; of equal ones the first in `COMPARED`."""
    kinds = {kind.kind: kind.among for kind in baseline.kinds}
    captioned = {way: estimate.value for way, estimate in kinds[CAPTIONED].items()}
    # Where every query is about an item with a further caption, others are found by image as well as those are.
    uncaptioned = {IMAGE: captioned[IMAGE], CAPTION: 0.0, FUSED: captioned[IMAGE]}
    if UNCAPTIONED in kinds:
        uncaptioned = {way: estimate.value for way, estimate in kinds[UNCAPTIONED].items()}
    return max(COMPARED, key=lambda way: baseline.share * captioned[way] + (1 - baseline.share) * uncaptioned[way])


def _in_words(baseline: CaptionBaseline, advised: Way | None) -> Iterator[str]:
    kinds = {kind.kind: kind for kind in baseline.kinds}
    k, gain = baseline.k, baseline.gain
    captioned, uncaptioned = kinds.get(CAPTIONED), kinds.get(UNCAPTIONED)
    if captioned is None or gain is None or advised is None:
        count = captioned.queries if captioned else 0
        yield (
            f"What captions alone would find is not measured: {count} of the queries are about an item with a further "
            f"caption, {FEWEST_QUERIES} are needed, as a caption finds itself."
        )
        return
    among = captioned.among
    yield (
        f"Of {captioned.queries} queries about items with a further caption, captions alone find "
        f"{_share(among[CAPTION])} among the first {k}, images {_share(among[IMAGE])}, both together "
        f"{_share(among[FUSED])}."
    )
    if shared := kinds.get(WORDS_SHARED):
        other = kinds.get(WORDS_OWN)
        rest = f"; of the other {other.queries}, captions find {_share(other.among[CAPTION])}" if other else ""
        yield (
            f"In {shared.queries} of these, all words stand in a caption of the item, which flatters captions{rest}."
        )
    verdict = (
        "adds to captions" if gain.low > 0 else "takes from captions" if gain.high < 0 else "adds nothing to captions"
    )
    yield (
        f"Where items have captions, the alignment {verdict}: {gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}] of "
        "such queries."
    )
    if uncaptioned:
        yield (
            f"Items without a caption are found by the alignment alone: {_share(uncaptioned.among[IMAGE])} by image "
            f"and {_share(uncaptioned.among[FUSED])} by both, of {uncaptioned.queries} queries."
        )
    yield (
        f"{baseline.share:.0%} of the images in the collection have a caption. Search by {advised}: of the three ways "
        "it finds most there."
    )


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.1%}"
