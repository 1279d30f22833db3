"""A fit that SQL records: one at a time, repeatable after a kill, by one process or several under torch's launcher."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alignment.distributed import broadcast
from alignment.errors import AlignmentError
from alignment.fitting.fit import fit
from alignment.fitting.sole_fit import sole_fit
from alignment.metrics import parse
from alignment.model.alignment import Alignment
from alignment.object_storage import is_remote
from alignment.sets.cards import CARD
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from connector.provenance.leases import fit_lock
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.requests import FitRequest

_log = logging.getLogger(__name__)

OpenSet = Callable[[str], EmbeddingSet]


def fit_and_save(
    request: FitRequest, path: Path, open_set: OpenSet, provenance: Provenance, run: Run, *, device: str
) -> Alignment:
    """Fit an alignment, save it at `path` and record it. One that a killed run of the same request left is taken.

    Other processes of the same launcher call `fit_along`.

    Raises:
        AlignmentError: the alignment exists, or another process is fitting it.
    """
    with fit_lock(provenance.database, path, run.id) if is_remote(path) else sole_fit(path):
        sets = [open_set(name) for name in request.sets]
        left = _left_by_killed_fit(path, sets, provenance, run)
        broadcast(float(left is not None))
        alignment = left or fit(sets, **_settings(request, device), progress=_log.info)
        if left is None:
            alignment.save(path)
        provenance.artifacts.record_alignment(request.alignment, path, alignment)
        run.counts["pairs"] = alignment.card.pairs
        run.counts["candidates"] = len(alignment.card.candidates)
    return alignment


def fit_along(request: FitRequest, path: Path, open_set: OpenSet, *, device: str) -> Alignment:
    """Take part in the fit of the first process, which alone records and writes."""
    sets = [open_set(name) for name in request.sets]
    is_finished = bool(broadcast(0.0))
    return Alignment.load(path) if is_finished else fit(sets, **_settings(request, device))


def _settings(request: FitRequest, device: str) -> dict[str, Any]:
    return {
        "method": request.method,
        "metrics": list(dict.fromkeys(map(parse, request.metrics))),
        "hold_out": HoldOut(request.holdout, request.seed),
        "folds": request.folds,
        "seed": request.seed,
        "device": device,
        "budget": request.budget,
        "seen_offset": request.seen_offset,
        "joint": request.joint,
        "training": dict(request.training),
    }


def _left_by_killed_fit(path: Path, sets: Sequence[EmbeddingSet], provenance: Provenance, run: Run) -> Alignment | None:
    """Return the alignment at `path`, if there is one; refuse one that no killed run of the same fit left."""
    if not (path / CARD if is_remote(path) else path).exists():  # what a kill leaves in object storage has no card
        return None
    if provenance.runs.repeats_a_killed_one(run.id):
        left = Alignment.load(path)
        if left.card.sets == [embedding_set.card.fingerprint for embedding_set in sets]:
            _log.info(f"alignment {path.name} was finished by a fit that was killed before it was recorded")
            return left
    raise AlignmentError(f"alignment {path.name} exists at {path}; name another one with --alignment")
