"""A comparison as files: a JSON document, a page that starts with the advice, and its charts."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from alignment.comparison.compare import METRICS, compare
from alignment.comparison.guidelines import Advice, advise
from alignment.comparison.table import Comparison, Fitted, MetricRow
from alignment.comparison.whole_collection import WholeCollection
from alignment.durable import write_durably
from alignment.durable_directory import new_directory, remove_leftovers
from alignment.metrics import parse
from alignment.object_storage import is_remote
from alignment.retrieval.cutoffs import ENDS, KS, RECALL, K
from alignment.retrieval.kinds import HARMONIC, SEEN, UNSEEN
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from connector.errors import OutputError
from connector.reports.compare_charts import heat_map, learning_curves, seen_unseen_curves
from connector.reports.page_files import templates
from connector.requests import CompareRequest

_log = logging.getLogger(__name__)

FORMAT = 2
DOCUMENT, PAGE, HEAT_MAP, CURVES = "compare.json", "compare.html", "heatmap.svg", "learning-curves.svg"
SEEN_UNSEEN = "seen-unseen-{}.svg"


def claim_directory(directory: Path) -> None:
    """Check that the output directory is new or empty and can be made, before the work starts. Nothing is left of it.

    Raises:
        OutputError: the directory is not empty, is a file, or cannot be created.
    """
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory} is a file; name another directory with --to")
    if is_remote(directory):
        if (directory / PAGE).exists():
            raise OutputError(f"{directory} holds a report; name another directory with --to")
        return
    try:
        if directory.is_dir() and any(directory.iterdir()):
            remove_leftovers(directory.absolute())
            raise OutputError(f"{directory} is not empty; name another directory with --to")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory.parent):
            pass
    except OSError as error:
        raise OutputError(f"directory {directory} cannot be made: {error}") from error


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison with its advice, and the directory of its files."""

    comparison: Comparison
    advice: Advice
    directory: Path


def compare_and_report(
    request: CompareRequest, sets: Sequence[EmbeddingSet], directory: Path, *, device: str
) -> Compared:
    """Run the comparison of `request` on `sets`, and write the report into `directory`.

    Raises:
        OutputError: the directory is not empty, or a file cannot be written.
    """
    metrics = [parse(metric) for metric in request.metrics] or METRICS
    claim_directory(directory)
    comparison = compare(
        sets,
        methods=request.methods,
        metrics=metrics,
        hold_out=HoldOut(request.holdout, request.seed),
        folds=request.folds,
        seed=request.seed,
        device=device,
        budget=request.budget,
        seen_offset=request.seen_offset,
        progress=_log.info,
    )
    advice = advise(comparison)
    write_comparison(directory, comparison, advice)
    return Compared(comparison, advice, directory)


def write_comparison(directory: Path, comparison: Comparison, advice: Advice) -> None:
    """Write a directory with all files of a comparison, or nothing.

    Raises:
        OutputError: the directory is not empty, or a file cannot be written.
    """
    written = document(comparison, advice)
    heat, curves = heat_map(comparison, advice), learning_curves(comparison)
    traded = seen_unseen_curves(comparison, advice)
    page = (
        templates()
        .get_template("compare.html")
        .render(written=written, comparison=comparison, advice=advice, heat=heat, curves=curves, traded=traded)
    )
    files = {
        DOCUMENT: json.dumps(written, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        HEAT_MAP: heat,
        PAGE: page,
        **{SEEN_UNSEEN.format(direction): picture.svg for direction, picture in traded.items()},
    }
    if curves is not None:
        files[CURVES] = curves
    try:
        with new_directory(directory, last=PAGE) as building:
            for name, text in files.items():
                write_durably(building / name, text.encode())
    except FileExistsError:
        raise OutputError(f"{directory} is not empty; name another directory with --to") from None
    except OSError as error:
        raise OutputError(f"{directory} cannot be written: {error}") from error


def document(comparison: Comparison, advice: Advice) -> dict[str, Any]:
    """Return a comparison as JSON; docs/compare.md explains the names."""
    return {
        "format": FORMAT,
        "modalign": version("modalign"),
        "advised": {"encoders": advice.pair, "method": advice.method, "metric": advice.metric},
        "guidelines": [asdict(guideline) for guideline in advice.guidelines],
        "reference": comparison.reference,
        "groups": {"training": comparison.training_groups, "held_out": comparison.test_groups},
        "encoders": [asdict(pair) for pair in comparison.pairs],
        "fits": [_fit(fitted) for fitted in comparison.fitted],
        "rows": [_row(fitted, row) for fitted in comparison.fitted for row in fitted.rows],
        "curves": [
            {
                "encoders": curve.pair,
                "method": curve.method,
                "points": [{"groups": point.groups, RECALL: asdict(point.recall)} for point in curve.points],
                "last_doubling": asdict(curve.last_doubling) if curve.last_doubling else None,
                "forecast": asdict(curve.forecast) if curve.forecast else None,
                "why_not": curve.why_not,
            }
            for curve in comparison.curves
        ],
        "not_run": [asdict(missing) for missing in comparison.not_run],
        "settings": comparison.settings,
        "seconds": round(comparison.seconds, 1),
    }


def _fit(fitted: Fitted) -> dict[str, Any]:
    chosen = fitted.chosen
    counts = {"folds": chosen.folds, "candidates": fitted.candidates}
    return {
        "encoders": fitted.pair,
        "method": fitted.method,
        "hyperparameters": chosen.hyperparameters,
        "validation": {HARMONIC: chosen.score, "held_out": chosen.held_out, **counts},
        "choice_seconds": fitted.choice_seconds,
        "fit_seconds": fitted.fit_seconds,
        "multiply_adds": fitted.multiply_adds,
        "dim": fitted.dim,
        "gap": asdict(fitted.gap) if fitted.gap else None,
        "by_way": asdict(fitted.by_way) if fitted.by_way else None,
        "seen_offset": chosen.shares,
        "ausuc": {direction: curve.area for direction, curve in fitted.whole.curves.items()},
    }


def _row(fitted: Fitted, row: MetricRow) -> dict[str, Any]:
    return {
        "encoders": fitted.pair,
        "method": fitted.method,
        "metric": row.metric,
        "recall": {
            direction: {name: asdict(estimate) for name, estimate in named.items()}
            for direction, named in row.recalls.items()
        },
        "whole": _whole(row.whole) if row.whole else None,
        "learn_seconds": row.learn_seconds,
        "query_microseconds": row.query_microseconds,
        "stored_floats": row.stored_floats,
        "guarantee": row.guarantee,
    }


def _whole(whole: WholeCollection) -> dict[str, Any]:
    """Lay out the whole collection: by direction and in the mean, without the offset and with it, and intervals."""
    return {
        **{direction: [recall.at(place) for place in range(2)] for direction, recall in whole.recalls.items()},
        "mean": [whole.mean(place) for place in range(2)],
        "intervals": {
            kind: {name: asdict(estimate) for name, estimate in named.items()}
            for kind, named in whole.estimates.items()
        },
    }


def table(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield the rows of the printed table: means of both directions, and costs."""
    for fitted in comparison.fitted:
        for row in fitted.rows:
            recall = row.recall
            means = {f"R@{k}": round(row.recalls["mean"][f"recall@{k}"].value, 3) for k in KS}
            yield {
                **({"encoders": fitted.pair} if len(comparison.pairs) > 1 else {}),
                "method": fitted.method,
                "metric": row.metric.partition("(")[0],
                **means,
                f"R@{K}": f"{recall.value:.3f} [{recall.low:.3f}, {recall.high:.3f}]",
                "gap": round(fitted.gap.debiased, 3) if fitted.gap else None,
                "choice s": round(fitted.choice_seconds, 1),
                "fit s": round(fitted.fit_seconds + row.learn_seconds, 2),
                "query µs": round(row.query_cost),
                "floats": row.stored_floats,
            }


def whole_table(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield the rows of the printed table of the whole collection: means, and those without an offset in brackets."""
    for fitted in comparison.fitted:
        for row in fitted.rows:
            if row.whole is None:
                continue
            before, after, judged = row.whole.mean(0), row.whole.mean(1), row.whole.judged
            recalls = {
                f"{kind} R@{k}": f"{after[kind][f'recall@{k}']:.3f} ({before[kind][f'recall@{k}']:.3f})"
                for kind in (UNSEEN, SEEN)
                for k in ENDS
            }
            yield {
                **({"encoders": fitted.pair} if len(comparison.pairs) > 1 else {}),
                "method": fitted.method,
                "metric": row.metric.partition("(")[0],
                **recalls,
                f"harmonic R@{K}": f"{judged} ({before[HARMONIC][RECALL]:.3f})",
                "first places of seen": f"{after['first_places']:.3f} ({before['first_places']:.3f})",
                "fair": round(after["fair"], 3),
            }
