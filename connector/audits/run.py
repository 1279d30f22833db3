"""Audits as a run: find the releases, check that each holds what it should, measure it, record what was found."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from alignment.errors import AlignmentError, EmbeddingSetError
from alignment.modality import DIRECTIONS
from alignment.plurals import counted
from alignment.sets.embedding_set import EmbeddingSet
from connector.audits.auditor import audit
from connector.audits.baseline import Baseline, Drift, drifts, find_baseline, worse_recalls
from connector.audits.plan import AuditPlan
from connector.audits.point_scan import SliceScanner
from connector.audits.recording import record
from connector.audits.requirements import Requirement
from connector.audits.result import Audit
from connector.errors import CollectionNotFoundError, MismatchError, RequirementError, StrangePointError
from connector.progress import progress
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import ReleaseRow
from connector.releases.aliases import alias_fault, alias_unseen
from connector.releases.choice import choose_ready
from connector.releases.layouts import broken_filters, layout_differences, live_beside
from connector.releases.release import find_release_row, load_release
from connector.releases.rights import present
from connector.releases.store_identity import here
from connector.releases.verify import verify
from connector.requests import AuditRequest
from connector.states import ReleaseState
from connector.stores.contract import Store


def rows_to_audit(request: AuditRequest, store: Store, provenance: Provenance) -> list[ReleaseRow]:
    """Return the release that `request` names; of `ready` without a metric all that one promotion would switch.

    Raises:
        CollectionNotFoundError: there is no such release.
    """
    if request.is_of_promotion:
        where = {"store_id": here(provenance, store), "collection": request.collection}
        present = [row for row in provenance.releases.find(**where) if row.dropped_at is None]
        if rows := choose_ready(present):
            return rows
    return [find_release_row(provenance, store, request.collection, request.metric, which=request.release)]


def run_audits(
    request: AuditRequest,
    rows: Sequence[ReleaseRow],
    embedding_set: EmbeddingSet,
    store: Store,
    provenance: Provenance,
    run: Run,
    *,
    device: str = "auto",
    workers: SliceScanner | None = None,
) -> list[Audit]:
    """Audit releases with the pairs of `embedding_set`, each under its metric, and record an audit of each.

    A release whose parts do not belong together, or that does not hold what it should, is `broken`: nothing of it is
    measured. Every release is audited, whatever the verdict on another is. Counts `queries` and `failed_requirements`
    in `run`.

    Args:
        request: how to audit.
        rows: of the releases, as `rows_to_audit` finds them.
        embedding_set: the pairs.
        store, provenance: where the releases are, and their records.
        run: of the audits.
        device: where learned metrics compute.
        workers: as of `connector.audits.auditor.audit`.

    Raises:
        AccessDeniedError: the key does not show the release, or the live one that it is compared with.
    """
    plan = AuditPlan.of(request)
    requirements = [Requirement.parse(text) for text in request.require]
    # Before anything is measured.
    present(store, [shown for row in rows for shown in (row, *_live(row, provenance))])
    baselines = [
        None if request.baseline is None else find_baseline(provenance, row, request.baseline, plan, request.pairs)
        for row in rows
    ]
    audits = []
    for row, baseline in zip(rows, baselines, strict=True):
        result = _measure(
            row,
            embedding_set,
            plan,
            store,
            provenance,
            pairs=request.pairs,
            requirements=requirements,
            baseline=baseline,
            seed=run.id,
            device=device,
            workers=workers,
        )
        number = record(result, provenance, run, provenance.artifacts.record_set(embedding_set))
        audits.append(replace(result, number=number))
        run.counts["queries"] += sum(result.queries_of(direction) for direction in DIRECTIONS)
        run.counts["failed_requirements"] += len(result.failures)
    return audits


def _measure(
    row: ReleaseRow,
    embedding_set: EmbeddingSet,
    plan: AuditPlan,
    store: Store,
    provenance: Provenance,
    *,
    pairs: str,
    requirements: Sequence[Requirement],
    baseline: Baseline | None,
    seed: int,
    device: str,
    workers: SliceScanner | None,
) -> Audit:
    """Check that a release belongs together and holds what it should, and measure it; or say why it is broken.

    The points to verify are drawn with `seed`, which moves with each run; the seed of the plan draws the same queries.
    """
    broken = Audit(row, plan, pairs, requirements=requirements)
    writers = provenance.runs.writers(row.collection)
    try:
        release = load_release(provenance, store, row, device=device)
        if fault := alias_fault(provenance, store, row):
            raise MismatchError(fault)
        verified = verify(release, store, provenance, seed=seed, counts=not writers)
    except (MismatchError, CollectionNotFoundError, AlignmentError, EmbeddingSetError) as error:
        return replace(broken, broken=str(error))
    try:
        with progress(f"audit {row.physical_name}", None, "search") as advance:
            result = audit(
                release,
                store,
                embedding_set,
                plan,
                pairs=pairs,
                requirements=requirements,
                baseline=baseline,
                advance=advance,
                workers=workers,
            )
    except StrangePointError as error:  # any other mismatch is of the request, not of the release
        return replace(broken, broken=str(error))
    uncounted = [
        f"Its points were not counted against SQL, because run {writer.id}, `modalign {writer.command}` on host "
        f"{writer.host}, writes since {writer.started_at:%F %T} UTC and has not ended."
        for writer in writers[:1]
    ]
    if unseen := alias_unseen(store, row):
        uncounted.append(f"{unseen[0].upper()}{unseen[1:]}.")
    worse, compared = _compared_with_live(row, result, provenance)
    findings = [*uncounted, *verified.in_words, *compared, *_beside_live(row, store, provenance), *result.findings]
    return replace(result, verified=verified.points, findings=findings, worse_than_live=worse)


def _compared_with_live(row: ReleaseRow, result: Audit, provenance: Provenance) -> tuple[list[Drift], list[str]]:
    """Return the recalls of a ready release that are significantly below those of the live one: see `worse_recalls`.

    Where there are none, a sentence says over how many queries, or why the two cannot be compared.
    """
    if not _live(row, provenance):
        return [], []
    try:
        live = find_baseline(provenance, row, ReleaseState.LIVE, result.plan, result.pairs)
        changes = drifts(live, result.per_query, kinds=result.per_kind, seed=result.plan.seed)
    except RequirementError as error:
        return [], [f"Not compared with the live release: {error}."]
    if worse := worse_recalls(changes, result.plan.k):
        return worse, []
    fewest = counted(min((drift.change.queries for drift in changes), default=0), "query")
    return [], [f"No recall is significantly below that of the live release, over {fewest} or more of both audits."]


def _beside_live(row: ReleaseRow, store: Store, provenance: Provenance) -> Iterator[str]:
    """Yield how a release that is to replace the live one differs from it in layout and in types of payload."""
    for live in _live(row, provenance):
        broken = broken_filters(store, live, row)
        yield from (f"Filters would not find the same: {sentence}." for sentence in broken)
        said = {sentence.replace("the live release ", "") for sentence in broken}
        differences = layout_differences(live, row) if live.metric == row.metric else []
        yield from (f"The layout differs: {other}." for other in differences if other not in said)


def _live(row: ReleaseRow, provenance: Provenance) -> list[ReleaseRow]:
    """Return the live release that a ready one is to replace, if there is one."""
    where = {"store_id": row.store_id, "collection": row.collection}
    live = live_beside(provenance.releases.find(**where, state=ReleaseState.LIVE), row.metric)
    return [live] if live is not None and row.state == ReleaseState.READY else []
