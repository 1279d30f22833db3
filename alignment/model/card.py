"""The card of an alignment: what it is and where it comes from. It is read without numpy, and without the weights."""

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from alignment.errors import AlignmentError
from alignment.modality import Modality
from alignment.names import names_there
from alignment.sets.cards import CARD, EncoderCard
from alignment.sets.hold_out import HoldOut

# Fields of the card that alignments of the first releases lack.
LATER = {"seen_offsets", "whole_recall", "recall_estimates"}
FORMAT = 1


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose numbers end up in an alignment."""
    return {name: version(name) for name in ("modalign", "torch", "numpy")}


@dataclass(frozen=True, slots=True)
class AlignmentCard:
    """What an alignment is and where it comes from.

    Attributes:
        encoders: the two encoders whose embeddings it takes, and no others.
        method, hyperparameters: how it was fitted.
        metrics: those it was fitted for; candidates were chosen under the first that has nothing to learn.
        sets: fingerprints of the embedding sets it was fitted on.
        pairs: number of training pairs.
        training: settings of the training, and the weights of its losses under each metric; empty for closed forms.
        hold_out: which groups the fit never saw.
        held_out_recall: Recall@1/5/10 on those, by metric and direction, in [0, 1].
        held_out_groups: how many of them it was measured on.
        candidates: everything that was tried, with its validation score.
        seen_offsets: what is taken off the scores of items that the fit saw, by metric and by the modality of the
            items, at least 0; see `alignment.metrics.seen_offset`. A metric that has none is not named.
        whole_recall: what a collection of seen and unseen items finds with these offsets, by metric and direction;
            see `alignment.fitting.seen_unseen`.
        recall_estimates: the recalls of both with intervals, counts and chance, as rows; see
            `alignment.fitting.recall_estimates`.
    """

    encoders: dict[Modality, EncoderCard]
    method: str
    hyperparameters: dict[str, Any]
    metrics: list[str]
    sets: list[str]
    pairs: int
    hold_out: HoldOut
    held_out_recall: dict[str, dict[str, dict[str, float]]]
    candidates: list[dict[str, Any]]
    held_out_groups: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    seen_offsets: dict[str, dict[Modality, float]] = field(default_factory=dict)
    whole_recall: dict[str, Any] = field(default_factory=dict)
    recall_estimates: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=library_versions)
    format: int = FORMAT

    @classmethod
    def read(cls, path: Path) -> "CardOnDisk":
        """Read the card of the alignment in the directory `path`. The weights are not read.

        Raises:
            AlignmentError: no alignment, one of another format, or a damaged card.
        """
        try:
            raw = json.loads((path / CARD).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise no_alignment(path) from None
        except (ValueError, RecursionError) as error:
            raise AlignmentError(f"alignment {path} is damaged ({error}); fit it again") from error
        try:
            if raw["format"] != FORMAT:
                raise AlignmentError(
                    f"{path}: expected an alignment of format {FORMAT}, got format {raw['format']}; fit it again"
                )
            fingerprint, dim = raw.pop("fingerprint"), raw.pop("dim")
            if missing := cls.__dataclass_fields__.keys() - raw.keys() - LATER:
                raise KeyError(*sorted(missing))
            raw["encoders"] = {m: EncoderCard(**card) for m, card in raw["encoders"].items()}
            raw["hold_out"] = HoldOut(**raw["hold_out"])
            return CardOnDisk(cls(**raw), fingerprint, dim)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise AlignmentError(f"{path / CARD} is damaged ({error!r}); fit it again") from error


class CardOnDisk(NamedTuple):
    """A card as it was saved: with the fingerprint and the dimension of the alignment that it was written for."""

    card: AlignmentCard
    fingerprint: str
    dim: int


def no_alignment(path: Path) -> AlignmentError:
    """Return the error that says that there is no alignment in the directory `path`, and which are beside it."""
    known = sorted(card_path.parent.name for card_path in path.parent.glob(f"[!.]*/{CARD}"))
    return AlignmentError(
        f"{path} is not an alignment; {path.parent} holds {names_there(path.name, known)}; make one with `modalign fit`"
    )
