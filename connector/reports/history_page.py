"""The page of a history: charts of every measure over the audits of a collection."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignment.modality import DIRECTIONS
from alignment.retrieval.cutoffs import K
from connector.audits.history import AuditSummary
from connector.audits.kinds import KINDS
from connector.audits.measure import BOTH
from connector.audits.measures import find_measure
from connector.reports.glossary import ARROWS, FILTERS
from connector.reports.page_files import templates, write_page
from connector.reports.trends import trend


def write_history_page(path: Path, collection: str, moments: Sequence[AuditSummary]) -> None:
    """Write the page of a history, oldest audit first.

    Raises:
        OutputError: the page cannot be written.
    """
    environment = templates()
    environment.filters |= FILTERS
    alike = dict.fromkeys((moment.metric, moment.asked) for moment in moments)
    page = environment.get_template("history.html").render(
        collection=collection,
        moments=moments,
        arrows=ARROWS,
        histories=[
            _history(metric, asked, [m for m in moments if (m.metric, m.asked) == (metric, asked)])
            for metric, asked in alike
        ],
    )
    write_page(path, page)


def _history(metric: str, asked: str, moments: Sequence[AuditSummary]) -> dict[str, Any]:
    """Return comparable audits as rows of a table, with charts of their measures."""
    lengths = {moment.k for moment in moments if moment.measures}
    k = K if K in lengths else max(lengths, default=K)
    recall, fidelity = f"recall@{k}", f"fidelity@{k}"
    history: dict[str, Any] = {
        "metric": metric,
        "asked": asked,
        "k": k,
        "rows": list(_rows(moments, recall, fidelity)),
        "first": [],
        "stages": [],
        "others": [],
    }
    if sum(bool(moment.measures) for moment in moments) < 2:
        return history  # no trend
    parts = dict.fromkeys(m.part for moment in moments for m in moment.measures if m.stage)
    whole = dict.fromkeys(m.name for moment in moments for m in moment.measures if not m.part)
    pictures = {
        "first": [(recall, ""), ("gap", ""), *((recall, kind) for kind in KINDS)],
        "stages": [(name, part) for part in parts for name in (recall, fidelity, "latency.p95")],
        "others": [(name, "") for name in whole if name not in (recall, "gap") and _is_drawn(name)],
    }
    for group, names in pictures.items():
        charts = (trend(moments, name, part, beside=recall if group == "first" else None) for name, part in names)
        history[group] = list(filter(None, charts))
    return history


def _is_drawn(name: str) -> bool:
    measure, _ = find_measure(name)
    return measure is None or measure.history != "nowhere"


def _rows(moments: Sequence[AuditSummary], recall: str, fidelity: str) -> Iterator[dict[str, Any]]:
    for moment in moments:
        measures = {(m.direction, m.name): m for m in moment.measures if not m.part}
        yield {
            "moment": moment,
            "cells": [measures.get((d, name)) for name in (recall, fidelity) for d in DIRECTIONS]
            + [measures.get((BOTH, "gap"))],
        }
