"""Audits of a release, through its store, against the labels of held-out pairs. Nothing in the store is changed.

Every query runs through the stages of a search over the whole collection, so each loss shows at the stage that causes
it. It also searches the gallery that the alignment's card speaks of, for a Recall@K that compares with the card. A
query without any relevant item counts as a miss. Among equal scores irrelevant items rank first: ties never flatter.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from alignment.modality import DIRECTIONS, Modality
from alignment.retrieval.kinds import HARMONIC, HELD_OUT, SEEN, UNSEEN
from alignment.sets.embedding_set import EmbeddingSet
from connector.audits.baseline import Baseline, PerQuery, drifts
from connector.audits.captions import DIRECTION, lengths, measure_captions
from connector.audits.collection_checks import collection_warnings, few_groups, limit_warnings, seen_warnings
from connector.audits.direction import measure_direction
from connector.audits.galleries import QuerySet, lay_out
from connector.audits.geometry import Drawn, draw, measure_space
from connector.audits.kinds import WAYS
from connector.audits.measure import BOTH
from connector.audits.measures import MEASURES, names_of
from connector.audits.plan import AuditPlan
from connector.audits.point_scan import SliceScanner
from connector.audits.reference import Truth
from connector.audits.requirements import Requirement, check_known, failures
from connector.audits.result import Audit, SpaceResult
from connector.audits.stages import (
    FILTER,
    INDEX,
    REFERENCE,
    RateLimiter,
    Stage,
    StageRunner,
    stage_part,
    stages,
)
from connector.audits.strata import Strata, strata, stratum
from connector.audits.subject import AuditSubject
from connector.errors import ExactRefusedError, FilterError, MismatchError, SettingsError
from connector.progress import Advance
from connector.releases.chain import check_encoder
from connector.releases.payload_fields import missing_in_words, unlike_in_words
from connector.releases.recorded_settings import setting_differences
from connector.releases.release import Release
from connector.search.candidates import CandidateSearch
from connector.stores.contract import Store
from connector.stores.filters import parse_filter
from connector.stores.payload_kinds import check_kinds, fields_of

if TYPE_CHECKING:
    from qdrant_client.models import Filter


_log = logging.getLogger(__name__)


def audit(
    release: Release,
    store: Store,
    embedding_set: EmbeddingSet,
    plan: AuditPlan,
    *,
    pairs: str,
    requirements: Sequence[Requirement] = (),
    baseline: Baseline | None = None,
    advance: Advance = lambda count: None,
    workers: SliceScanner | None = None,
) -> Audit:
    """Audit `release` with the labelled pairs of `embedding_set`.

    Args:
        release: an open release.
        store: where it is.
        embedding_set: pairs, encoded with the encoders of the release.
        plan: how the audit is made.
        pairs: name of the set.
        requirements: what the measures have to meet.
        baseline: the audit that drops are measured from.
        advance: called with the number of queries done since; each query counts once a stage.
        workers: read all points, wherever they are compared with every query; None: this process does.

    Raises:
        MismatchError: the set was encoded with other encoders, has no queries, or none of its pairs is in the gallery.
        StrangePointError: the collection holds what modalign did not write.
        RequirementError: a requirement names no measure.
        FilterError: a filter is invalid, or reads a payload field that no item has.
        SettingsError: no query has a payload field of the plan.
        MeasureError: the set does not have the protocol's shape.
    """
    for modality, card in embedding_set.card.encoders.items():
        check_encoder(release.alignment, modality, card, f"embedding set {embedding_set.path}")
    queries = lay_out(release, embedding_set, plan)
    subject = _subject(release, store, embedding_set, plan, queries.sets, advance, workers)
    fields = strata(queries.sets, plan)
    check_known(requirements, announced(subject, fields), baseline, release=release.name)
    findings = list(queries.warnings)
    if baseline is not None:
        findings += baseline.check_shared({d: PerQuery.of(queries.sets[m].rows) for d, (m, _) in DIRECTIONS.items()})

    sample = draw(embedding_set, queries.draws, seed=plan.seed)
    truths = _truths(subject, sample, pairs)
    subject = _without_refused_stages(subject)
    findings += _warnings(subject, truths)
    directions = {
        direction: measure_direction(subject, direction, truth, fields[DIRECTIONS[direction][0]])
        for direction, truth in truths.items()
    }
    space = _space(subject, sample, truths)
    if space.finding:
        findings.append(space.finding)

    measured = Audit(
        release.row,
        plan,
        pairs,
        release=release,
        info=subject.info,
        directions=directions,
        space=space,
        findings=findings,
        captions=measure_captions(subject),
        requirements=requirements,
    )
    if baseline is not None:
        measured = _compared(measured, baseline, requirements)
    return replace(measured, failures=failures(requirements, measured.measures, measured.drifts))


def _subject(
    release: Release,
    store: Store,
    embedding_set: EmbeddingSet,
    plan: AuditPlan,
    queries: Mapping[Modality, QuerySet],
    advance: Advance,
    workers: SliceScanner | None,
) -> AuditSubject:
    """Return the release with what its store says of it, and how a plan queries it."""
    info = store.describe(release.name)
    if info.has_replicas:
        info = replace(info, points=store.count(release.name, consistent=True))
    return AuditSubject(
        release=release,
        store=store,
        info=info,
        plan=plan,
        pairs=embedding_set,
        queries=queries,
        filters=_filters(plan, release, store),
        stages=stages(release.guarantee, quantized=info.quantization is not None),
        candidates=CandidateSearch(release, store),
        limiter=RateLimiter(plan.max_qps),
        advance=advance,
        workers=workers,
    )


def _warnings(subject: AuditSubject, truths: Mapping[str, Truth]) -> Iterator[str]:
    """Yield what people should know of the collection, of the queries and of what the store answers."""
    release, store = subject.release, subject.store
    yield from collection_warnings(subject.info, release, setting_differences(release, store), subject.filters)
    yield from few_groups({modality: len(set(own.rows.groups)) for modality, own in subject.queries.items()})
    if subject.why_refused is not None:
        yield f"The store refuses exact search, so no stage of it was measured: {subject.why_refused}"
    yield from limit_warnings(release, store.search_limits(release.name))
    yield from seen_warnings(release, subject.plan, {DIRECTIONS[d][1]: truth.census for d, truth in truths.items()})


def _space(subject: AuditSubject, sample: Drawn, truths: Mapping[str, Truth]) -> SpaceResult:
    """Measure the shared space on the points of the sample that were read along with what is right."""
    read_back = {id_: vector for truth in truths.values() for id_, vector in truth.kept.items()}
    probe = subject.align(subject.queries["image"].rows)[:4]
    _log.info("audit %s: measuring the modality gap", subject.release.name)
    return measure_space(subject.release, sample, read_back, probe, seed=subject.plan.seed)


def announced(subject: AuditSubject, fields: Strata) -> list[tuple[str, str, str]]:
    """Return direction, part and name of every measure that an audit can have, before it begins.

    Raises:
        SettingsError: two parts have the same name.
    """
    known = list(_announced(subject, fields))
    if len(set(known)) < len(known):
        part = next(part for (_, part, _), times in Counter(known).items() if times > 1)
        raise SettingsError(f"two parts of this audit would be called {part!r}; audit one field or filter at a time")
    return known


def _announced(subject: AuditSubject, fields: Strata) -> Iterator[tuple[str, str, str]]:
    ks = subject.plan.ks
    for direction, (modality, _) in DIRECTIONS.items():
        yield from ((direction, "", name) for name in names_of("whole", ks, subject.release.guarantee))
        for kind in ("", SEEN) if subject.plan.protocol is None else ("",):
            # The reference is compared with nothing and not timed.
            yield from ((direction, stage_part(REFERENCE, kind), f"recall@{k}") for k in ks)
            for stage in (*(stage.name for stage in subject.stages), *subject.filters):
                yield from ((direction, stage_part(stage, kind), name) for name in names_of("stage", ks))
        for field, values in fields[modality].items():
            parts = [stratum(field, value) for value in set(values)]
            yield from ((direction, part, name) for part in parts for name in names_of("stratum", ks))
        if subject.plan.protocol is None:
            yield from ((direction, kind, name) for kind in (UNSEEN, SEEN) for name in names_of("kind", ks))
            yield from ((direction, HARMONIC, name) for name in names_of(HARMONIC, ks))
            yield from ((direction, "", measure.name) for measure in MEASURES.values() if measure.of_kinds is not None)
    if subject.release.fusion is not None:
        yield from ((DIRECTION, way, f"recall@{k}") for way in WAYS for k in lengths(subject.plan))
    yield from ((BOTH, "", measure.name) for measure in MEASURES.values() if measure.of_geometry is not None)


def _without_refused_stages(subject: AuditSubject) -> AuditSubject:
    """Probe what searches the store answers; if it refuses exact ones, leave out the stages that need them.

    The index is then compared with the reference. A search as production makes it shows what the store limits it to.
    """
    modality, target = next(iter(DIRECTIONS.values()))
    probe = subject.align(subject.queries[modality].rows.take([0]))
    runner = StageRunner(subject.candidates, target, (1,), 1, 0, 0.0, subject.limiter, consistent=subject.consistent)
    runner.run(subject.stages[-1], probe, [""], np.zeros(1, np.int64))
    try:
        runner.run(subject.stages[0], probe, [""], np.zeros(1, np.int64))
    except ExactRefusedError as error:
        answered: list[Stage] = [
            replace(stage, against=REFERENCE) if stage.name == INDEX else stage
            for stage in subject.stages
            if not stage.exact
        ]
        refused = [stage for stage in subject.stages if stage.exact]
        return replace(subject, stages=answered, refused=refused, why_refused=str(error))
    return subject


def _compared(measured: Audit, baseline: Baseline, requirements: Sequence[Requirement]) -> Audit:
    """Return the audit with its changes against the baseline."""
    _log.info("audit %s: comparing with audit %d", measured.row.physical_name, baseline.number)
    also = [(part, required.name) for required in requirements if required.is_drop for part in required.parts]
    warning = baseline.gallery_warning(measured.gallery)
    return replace(
        measured,
        drifts=drifts(baseline, measured.per_query, also, kinds=measured.per_kind, seed=measured.plan.seed),
        findings=[*measured.findings, *([warning] if warning else [])],
    )


def _filters(plan: AuditPlan, release: Release, store: Store) -> "dict[str, Filter]":
    """Return the filters of a plan by stage, each on fields that the release has, as the kinds that they have."""
    filters = {FILTER + name: parse_filter(text, what=f"filter {name}") for name, text in plan.filters.items()}
    for name, condition in filters.items():
        check_kinds(condition, release.indexes, what=name)
        fields = fields_of(condition)
        unfit = missing_in_words(store, release.name, fields)
        unfit += unlike_in_words(store, release.name, condition, fields, whole=True)
        if unfit:
            raise FilterError(f"{name}: {'; '.join(unfit)}")
    return filters


def _truths(subject: AuditSubject, sample: Drawn, pairs: str) -> dict[str, Truth]:
    """Return by direction what is right, by the pairs of the set `pairs`."""
    truths = {}
    for direction, (modality, target) in DIRECTIONS.items():
        query_set = subject.queries[modality]
        truths[direction] = subject.truth(direction, query_set, subject.align(query_set.rows), sample[target])
    if not any(truth.gallery.counts.any() for truth in truths.values()):
        plan = subject.plan
        where = f"protocol {plan.protocol}" if plan.protocol else f"{plan.gallery} gallery"
        other = "" if plan.protocol or plan.gallery != HELD_OUT else ", or search all items with --gallery all"
        raise MismatchError(
            f"no pair of embedding set {pairs} is in the {where} of release {subject.release.name}; "
            f"name the set that was pushed into it, or one that shares its groups{other}"
        )
    return truths
