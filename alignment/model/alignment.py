"""The alignment: the result of a fit, its directory on disk, and its fingerprint.

The directory holds `card.json`, with everything needed to rebuild and to check it, and `weights.safetensors`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from alignment.durable import write_durably
from alignment.durable_directory import new_directory
from alignment.errors import AlignmentError
from alignment.metrics import Metric, SeenOffset
from alignment.modality import MODALITIES, Modality
from alignment.model.card import AlignmentCard, no_alignment
from alignment.model.feature_maps import FEATURE_MAPS
from alignment.model.projections import MAPPED, Projection
from alignment.model.seen_items import SeenItems
from alignment.object_storage import is_remote, located
from alignment.sets.cards import CARD
from alignment.vectors import FloatArray

WEIGHTS = "weights.safetensors"
LEARNED = "metric/"
SEEN = "seen."


@dataclass(frozen=True, eq=False)  # compare fingerprints
class Alignment:
    """One projection a modality into one shared space, and the weights of metrics learned there.

    alignment = Alignment.load("alignments/emoji")
    vectors = alignment.project("text", embeddings)  # (n, 384) raw -> (n, dim) unit

    Attributes:
        weights: of learned metrics and of hubness corrections, by `str(metric)/tensor`; see `Metric.bind`.
        seen: what the fit saw, by modality; not there in alignments of the first releases.
    """

    card: AlignmentCard
    projections: Mapping[Modality, Projection]
    weights: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    seen: Mapping[Modality, SeenItems] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Dimension of the shared space."""
        return self.projections["image"].out_dim

    def project(self, modality: Modality, X: npt.NDArray[np.floating]) -> FloatArray:
        """Project raw embeddings (n, d) of `modality` to unit vectors (n, dim) float32.

        Raises:
            VectorError: another dimension than the encoder's, or rows that are NaN, infinite or zero.
        """
        return self.projections[modality](X)

    def metric(self, metric: Metric, items: Modality, *, device: str = "auto") -> Metric:
        """Return `metric` with what this alignment holds for it, ready to score items of one modality.

        Where the alignment has an offset for seen items under this metric, that is a `SeenOffset`: its items have one
        coordinate more, 1 of a seen item and 0 of any other.

        Raises:
            MetricError: it needs weights that this alignment does not hold.
            WeightsError: they are damaged.
        """
        bound = metric.bind(self.weights, items, device)
        offsets = self.card.seen_offsets.get(str(metric), {})
        return SeenOffset(bound, offsets.get(items, 0.0)) if any(offsets.values()) else bound

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the encoders' fingerprints, the hold-out, all weights, what was seen and the offsets for it.

        Computed once: nothing of an alignment changes.

        Equal where `project` is equal, the same items are seen and ranked alike, which is what releases and audits
        rely on.
        """
        sha = hashlib.sha256(f"{self.card.hold_out}\n".encode())
        for modality in MODALITIES:
            sha.update(f"{modality} {self.card.encoders[modality].fingerprint}\n".encode())
            for name, tensor in sorted(self.projections[modality].tensors().items()):
                sha.update(f"{name} {tensor.shape}\n".encode())
                sha.update(np.ascontiguousarray(tensor).data)
        for name, tensor in sorted(self.weights.items()):
            sha.update(f"{name} {tensor.shape} {tensor.dtype}\n".encode())
            sha.update(np.ascontiguousarray(tensor).tobytes())
        for modality, items in sorted(self.seen.items()):
            sha.update(f"seen {modality} {items.contents.shape}\n".encode())
            sha.update(items.contents.tobytes())
        if self.card.seen_offsets:
            sha.update(f"seen offsets {json.dumps(self.card.seen_offsets, sort_keys=True)}\n".encode())
        return sha.hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the alignment as the new directory `path`: complete or not at all.

        Raises:
            AlignmentError: `path` exists.
        """
        card = {**asdict(self.card), "dim": self.dim, "fingerprint": self.fingerprint}
        try:
            with new_directory(located(path), last=CARD) as building:
                write_durably(building / WEIGHTS, safetensors.numpy.save(self._tensors()))
                write_durably(building / CARD, (json.dumps(card, indent=2) + "\n").encode())
        except FileExistsError:
            raise AlignmentError(f"{path} exists; name another alignment") from None

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        projections = {
            f"{modality}.{name}": np.ascontiguousarray(tensor)
            for modality, projection in self.projections.items()
            for name, tensor in projection.tensors().items()
        }
        learned = {f"{LEARNED}{name}": np.ascontiguousarray(tensor) for name, tensor in self.weights.items()}
        seen = {
            f"{SEEN}{modality}.{name}": np.ascontiguousarray(tensor)
            for modality, items in self.seen.items()
            for name, tensor in items.tensors().items()
        }
        return {**projections, **learned, **seen}

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Load the alignment in the directory `path` and check that it is the one its card was written for.

        Raises:
            AlignmentError: no alignment, of another format, or card and weights do not belong together.
        """
        path = located(path)
        card, fingerprint, dim = AlignmentCard.read(path)
        try:
            tensors = _load_file(path / WEIGHTS)
        except (FileNotFoundError, NotADirectoryError):
            raise no_alignment(path) from None
        except (ValueError, SafetensorError) as error:
            raise AlignmentError(f"alignment {path} is damaged ({error}); fit it again") from error
        try:
            weights = {n.removeprefix(LEARNED): tensor for n, tensor in tensors.items() if n.startswith(LEARNED)}
            loaded = cls(card, {m: _projection(m, card, tensors) for m in MODALITIES}, weights, _seen(tensors))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise AlignmentError(f"{path / CARD} is damaged ({error!r}); fit it again") from error
        if loaded.fingerprint != fingerprint or loaded.dim != dim:
            raise AlignmentError(
                f"alignment {path}: the card was written for fingerprint {fingerprint[:12]}, the weights give "
                f"{loaded.fingerprint[:12]}; card or weights were changed: fit it again"
            )
        return loaded


def _load_file(path: Path) -> dict[str, npt.NDArray[Any]]:
    if is_remote(path):
        return safetensors.numpy.load(path.read_bytes())
    return safetensors.numpy.load_file(path)


def _projection(modality: Modality, card: AlignmentCard, tensors: dict[str, Any]) -> Projection:
    dim, prefix = card.encoders[modality].dim, f"{modality}.{MAPPED}."
    mean, weight = tensors.get(f"{modality}.mean"), tensors.get(f"{modality}.weight")
    by_kind: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            kind, _, own = name.removeprefix(prefix).partition(".")
            by_kind.setdefault(kind, {})[own] = tensor
    (feature_map,) = [*(FEATURE_MAPS[kind].from_tensors(held) for kind, held in by_kind.items())] or (None,)
    taken, given = (dim, dim) if feature_map is None else feature_map.dims
    lengths = [(mean, dim), (weight, given)]
    if taken != dim or any(tensor is not None and len(tensor) != length for tensor, length in lengths):
        raise TypeError(f"{modality} weights of another dimension than the {dim} of {card.encoders[modality].spec}")
    return Projection(dim, mean, weight, feature_map)


def _seen(tensors: Mapping[str, Any]) -> dict[Modality, SeenItems]:
    """What was seen, by modality, of the tensors of an alignment."""
    seen: dict[Modality, SeenItems] = {}
    for modality in MODALITIES:
        prefix = f"{SEEN}{modality}."
        if own := {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}:
            seen[modality] = SeenItems(**own)
    return seen
