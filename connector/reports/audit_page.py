"""The page of an audit: all results, verdict first, in one file that needs no network."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignment.modality import DIRECTIONS
from alignment.plurals import counted
from alignment.retrieval.kinds import HARMONIC, HELD_OUT, SEEN, UNSEEN
from connector.audits.history import asked_as
from connector.audits.kinds import NEW_OR_KNOWN
from connector.audits.measures import MEASURES, trended
from connector.audits.requirements import Requirement
from connector.audits.result import Audit
from connector.audits.stages import STAGES
from connector.encoding.encoders import IMPORTED
from connector.provenance.tables import ReleaseRow
from connector.releases.aliases import alias_name
from connector.reports.audit_context import AuditContext, asked_how, provenance_chain
from connector.reports.charts import Bar, Line, bars, lines, scatter, svg, waterfall
from connector.reports.geometry_rows import geometry_tables
from connector.reports.glossary import ARROWS, FILTERS, called, number, sentence, within
from connector.reports.page_files import templates, write_page
from connector.reports.seen_unseen_rows import seen_unseen_rows
from connector.reports.trends import trend
from connector.reports.worst_queries import Shown, shown_worst
from connector.settings import MAX_PIXELS
from connector.states import AuditVerdict

HEADLINES = {
    AuditVerdict.PASSED: "Passed: every requirement is met.",
    AuditVerdict.MEASURED: "Measured: the audit has no requirements.",
    AuditVerdict.BROKEN: "Broken: this release is damaged.",
}


def audit_pages(path: Path | None, rows: Sequence[ReleaseRow]) -> list[Path]:
    """Return the page of the audit of each release: `path`, or beside it one that names the metric, if several are.

    `audit.html` of releases under cosine and chi2 gives `audit.cosine.html` and `audit.chi2.html`. None gives no page.
    """
    if path is None or len(rows) == 1:
        return [] if path is None else [path]
    return [path.with_name(alias_name(path.stem, row.metric) + path.suffix) for row in rows]


def write_audit_page(path: Path, found: Audit, origin: AuditContext, *, max_pixels: int = MAX_PIXELS) -> None:
    """Write the page of an audit, with any verdict.

    Raises:
        OutputError: the page cannot be written.
    """
    environment = templates()
    environment.filters |= FILTERS
    hashed = not origin.encoders["image"].spec.startswith(f"{IMPORTED}:")
    shown = Shown(hashed, max_pixels)
    sections = {} if found.verdict == AuditVerdict.BROKEN else _sections(found, shown)
    page = environment.get_template("audit.html").render(
        found=found,
        origin=origin,
        k=found.plan.k,
        arrows=ARROWS,
        pictures=shown,
        headline=_headline(found),
        asked=_asked(found),
        requirements=list(_requirements(found, origin.requirements)),
        drifts=_drifts(found),
        changed=_changed(found),
        shared=_shared(found),
        history=_history(found, origin),
        chain=list(provenance_chain(found, origin)),
        settings=list(asked_how(found, origin)),
        **sections,
    )
    write_page(path, page)


def _headline(found: Audit) -> str:
    if found.verdict != AuditVerdict.FAILED:
        return HEADLINES[found.verdict]
    unmet = len({failure.requirement.text for failure in found.failures})
    return f"Failed: {unmet} {'requirement is' if unmet == 1 else 'requirements are'} not met."


def _asked(found: Audit) -> str:
    plan = found.plan
    if found.verdict == AuditVerdict.BROKEN:
        return f"Nothing was measured. The queries were to come from embedding set {found.pairs}."
    counts = " and ".join(counted(found.queries_of(d), asking) for d, (asking, _) in DIRECTIONS.items())
    sizes = " and ".join(counted(size, modality) for modality, size in found.gallery.items())
    queries = f"Queries: {counts} of embedding set {found.pairs}"
    if plan.protocol:
        return f"{queries}, including training pairs. Gallery: {sizes}, by protocol {plan.protocol}."
    held_out = "held out from the fit" if plan.queries == HELD_OUT else "including training pairs"
    gallery = "held out from the fit" if plan.gallery == HELD_OUT else "the whole collection"
    return f"{queries}, {held_out}. Gallery: {sizes}, {gallery}."


def _requirements(found: Audit, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield each requirement with the measures that fail it, or with all its measures if it is met."""
    for requirement in map(Requirement.parse, dict.fromkeys(texts)):
        failed = [failure.why for failure in found.failures if failure.requirement == requirement]
        measured = found.drifts if requirement.is_drop else found.measures
        met = [value.in_words for value in measured if requirement.bounds(value.direction, value.part, value.name)]
        among = found.among(requirement)
        yield {"text": requirement.text, "is_met": not failed, "says": failed or met, "among": among}


def _sections(found: Audit, shown: Shown) -> dict[str, Any]:
    plan = found.plan
    tables = [_stage_table(found, direction, kind) for kind in ("", SEEN) for direction in DIRECTIONS]
    return {
        "tiles": list(_tiles(found)),
        "kinds": list(seen_unseen_rows(found)),
        "stages": [table for table in tables if table["rows"]],
        "served_stages": {stage.name for stage in found.stages},
        "measures": list(_measures(found)),
        "curves": [_curve(found, direction) for direction in found.directions],
        "geometry_tables": geometry_tables(found.space.geometry) if found.space.geometry else [],
        "strata": {field: list(_stratified(found, field)) for field in plan.slices},
        "plane": svg(scatter(found.space.projection)) if found.space.projection else None,
        "worst": shown_worst(found.worst, shown),
    }


def _stage_table(found: Audit, direction: str, kind: str) -> dict[str, Any]:
    """Return the stages of a direction with the queries about one kind of items, and pictures of what they lose."""
    stages = [stage for stage in found.stages if (stage.direction, stage.kind) == (direction, kind)]
    search = sorted((s for s in stages if s.name in STAGES), key=lambda stage: STAGES.index(stage.name))
    filters = [stage for stage in stages if stage.name not in STAGES]
    title = f"{ARROWS[direction]}, {NEW_OR_KNOWN[kind]} items" if kind else ARROWS[direction]
    drawn = {title: search, f"{title}, within filters": filters}
    return {
        "title": title,
        "rows": search + filters,
        "filters": filters,
        "served": search[-1].name if search else "",
        "pictures": [svg(waterfall(name, of, found.plan.k)) for name, of in drawn.items() if of],
    }


def recall_tiles(found: Audit) -> Iterator[dict[str, str]]:
    """Yield the recall in both directions, among held-out items and in the whole collection, each with its name."""
    k = found.plan.k
    for direction, arrow in ARROWS.items():
        recall, chance = (found.measure(direction, f"{prefix}recall@{k}") for prefix in ("", "chance."))
        small = f"{within(recall)}, chance {number(chance.value)}"
        if found.plan.compared_by.get("gallery") == HELD_OUT:
            small += "; among held-out items alone"
        yield {"value": number(recall.value), "name": f"Recall@{k} {arrow}", "small": small}
    for direction, arrow in ARROWS.items():
        of = {m.part: m for m in found.measures if (m.direction, m.name) == (direction, f"recall@{k}")}
        if HARMONIC in of:
            small = f"new items {number(of[UNSEEN].value)}, known items {number(of[SEEN].value)}: harmonic mean"
            name = f"Recall@{k} {arrow}, whole collection"
            yield {"value": number(of[HARMONIC].value), "name": name, "small": small}


def _tiles(found: Audit) -> Iterator[dict[str, str]]:
    k = found.plan.k
    yield from recall_tiles(found)
    served = [m for m in found.measures if m.name == f"fidelity@{k}" and m.part in ("", SEEN)]
    lowest = min(served, key=lambda m: m.value)
    about = f" of queries about {NEW_OR_KNOWN[lowest.part]} items" if lowest.part else ""
    yield {
        "value": f"{lowest.value:.1%}",
        "name": f"fidelity@{k}",
        "small": f"{sentence(lowest.name)}; {ARROWS[lowest.direction]}{about}, the lowest",
    }
    if geometry := found.space.geometry:
        gap = geometry.gap.debiased
        small = f"p = {geometry.p:.3f}; not a verdict by itself"
        yield {"value": number(gap), "name": "modality gap", "small": small}


def _measures(found: Audit) -> Iterator[dict[str, Any]]:
    """Yield a row per measure; each direction has a cell per K, or a single one."""
    present = {(m.direction, m.name): m for m in found.measures if not m.part}
    for measure in MEASURES.values():
        if not measure.shown:
            continue
        names = [name for name, _ in measure.named(found.plan.ks)]
        cells = {direction: [present.get((direction, name)) for name in names] for direction in DIRECTIONS}
        if any(m for row in cells.values() for m in row):
            name = measure.name.format(k="K")
            yield {"name": called(name), "words": sentence(name), "cells": cells}


def _curve(found: Audit, direction: str) -> str:
    estimates = found.directions[direction].curve
    by_chance = found.directions[direction].chance
    asking, _ = DIRECTIONS[direction]
    values = list(estimates.values())
    ks = [k for k in estimates if k in (1, 2, 5, 10, 20, 50, 100)] if len(estimates) > 6 else list(estimates)
    figure = lines(
        ARROWS[direction],
        [
            Line("chance", "chance", list(by_chance), list(by_chance.values())),
            Line(
                asking,
                "",
                list(estimates),
                [e.value for e in values],
                [e.low for e in values],
                [e.high for e in values],
            ),
        ],
        x_title="K, the number of results",
        x_ticks=[(k, str(k)) for k in ks],
        ceiling=1.0,
        band=True,
        log=len(estimates) > 1,
    )
    return svg(figure)


def _drifts(found: Audit) -> list[dict[str, Any]]:
    """Return the changes since the baseline, a row per measure and a column per direction."""
    names = dict.fromkeys((drift.part, drift.name) for drift in found.drifts)
    return [
        {
            "name": f"{part} {called(name)}".strip(),
            "measure": name,
            "drifts": [
                next((d for d in found.drifts if (d.direction, d.part, d.name) == (direction, part, name)), None)
                for direction in DIRECTIONS
            ],
        }
        for part, name in names
    ]


def _changed(found: Audit) -> str:
    """Return a sentence on the number of significant changes."""
    worse = sum(drift.value > 0 for drift in found.drifts)
    better = sum(drift.change.significant for drift in found.drifts) - worse
    if not worse + better:
        return f"None of {len(found.drifts)} comparisons shows a significant change."
    return f"Of {len(found.drifts)} comparisons, {worse} are significantly worse and {better} significantly better."


def _shared(found: Audit) -> str:
    """Return the number of queries that both audits share, by direction, in words."""
    queries = {drift.direction: drift.change.queries for drift in found.drifts}
    return " and ".join(f"{counted(count, 'query')} {ARROWS[direction]}" for direction, count in queries.items())


def _history(found: Audit, origin: AuditContext) -> dict[str, Any]:
    """Return the comparable audits, and charts of their measures if there are several."""
    alike, asked = origin.moments, asked_as(found.plan, found.pairs)
    measured = [moment for moment in alike if moment.verdict != AuditVerdict.BROKEN]
    if len(measured) < 2:
        return {"alike": alike, "asked": asked, "pictures": []}
    recall = f"recall@{found.plan.k}"
    pictures = [picture for name in trended(found.plan.k) if (picture := trend(alike, name, beside=recall))]
    return {"alike": alike, "asked": asked, "pictures": pictures}


def _stratified(found: Audit, field: str) -> Iterator[str]:
    """Yield a chart per direction: recall by the value of a payload field, most queries first."""
    k, stages = found.plan.k, {stage.part for stage in found.stages}
    for direction, (asking, _) in DIRECTIONS.items():
        strata = [
            Bar(m.part.removeprefix(f"{field}=").removeprefix(f"{field} "), m.value, m.low, m.high, m.queries)
            for m in found.measures
            if (m.direction, m.name) == (direction, f"recall@{k}")
            and m.part not in stages
            and (m.part.startswith(f"{field}=") or m.part == f"{field} missing")
        ]
        if strata:
            yield svg(bars(f"Recall@{k} {ARROWS[direction]}", asking, sorted(strata, key=lambda bar: -bar.queries)))
