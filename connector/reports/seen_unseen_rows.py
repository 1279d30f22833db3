"""New and known items of an audit, as its page shows them: rows of a table, and the curve with its points in words."""

from collections.abc import Iterator
from typing import Any

from alignment.modality import DIRECTIONS
from alignment.retrieval.kinds import HARMONIC, SEEN, UNSEEN
from connector.audits.result import Audit
from connector.audits.seen_unseen_result import SeenUnseenResult
from connector.reports.charts import seen_unseen, svg
from connector.reports.glossary import ARROWS, number

NAMES = {UNSEEN: "new items", SEEN: "known items", HARMONIC: "harmonic mean"}
WHOLE = "the whole collection"


def seen_unseen_rows(found: Audit) -> Iterator[dict[str, Any]]:
    """Yield a table, a picture and its caption for each direction; nothing under a protocol."""
    for result in found.seen_unseen:
        yield {
            "arrow": ARROWS[result.direction],
            "rows": list(_rows(found, result)),
            "picture": _picture(result),
            "caption": _caption(result),
        }


def _rows(found: Audit, result: SeenUnseenResult) -> Iterator[dict[str, Any]]:
    """Yield the recall of the gallery, and beside it that of each kind of items."""
    present = {(m.part, m.name): m for m in found.measures if m.direction == result.direction}
    for part in ("", *NAMES):
        cells = [m for k in found.plan.ks if (m := present.get((part, f"recall@{k}")))]
        if cells:
            held_out = found.plan.gallery != "all"
            yield {
                "name": NAMES.get(part, f"{found.plan.queries} items"),
                "about": result.about.get(part, ""),
                "among": "held-out items alone" if held_out and not part else WHOLE,
                "queries": cells[0].queries,
                "cells": cells,
            }


def _picture(result: SeenUnseenResult) -> str | None:
    if result.curve is None:
        return None
    names = ["without offset", "in use"] if len(result.points) > 1 else ["in use: no offset"]
    marked = [(name, point.unseen, point.seen) for name, point in zip(names, result.points, strict=True)]
    asking, _ = DIRECTIONS[result.direction]
    return svg(seen_unseen(ARROWS[result.direction], asking, result.curve, marked))


def _caption(result: SeenUnseenResult) -> str:
    """Say where the point in use stands, and where it stood without the offset."""
    if result.curve is None:
        return ""
    k, used, area = result.curve.k, result.points[-1], number(result.curve.area)
    said = f"In use: Recall@{k} of new items {number(used.unseen)}, of known ones {number(used.seen)}"
    if len(result.points) > 1:
        without = result.points[0]
        said += f", instead of {number(without.unseen)} and {number(without.seen)} without the offset"
    return f"{said}. Area under the curve: {area}."
