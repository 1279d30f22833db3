"""Cards: what an embedding set holds, and which encoders made it."""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self, get_args

from alignment.durable import write_durably
from alignment.errors import EmbeddingSetError
from alignment.modality import Modality
from alignment.names import names_there

Dtype = Literal["float32", "float16"]
CARD = "card.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """Which encoder made the vectors of one modality: its spec, its SHA-256 fingerprint, its dimension."""

    spec: str
    fingerprint: str
    dim: int

    def __str__(self) -> str:
        return f"{self.spec} (fingerprint {self.fingerprint[:12]}, {self.dim}-d)"


@dataclass(frozen=True, slots=True)
class SetCard:
    """What an embedding set holds.

    Attributes:
        corpus: where the items came from.
        encoders: one card a modality.
        counts: rows a modality; meaningful once `complete`.
        complete: whether the last encode reached the end of its corpus.
        fingerprint: SHA-256 over encoders and rows without their vectors, which follow from encoder and content;
            independent of the order of the rows; empty until complete.
        modalign: version that wrote the card.
        truncated: captions of which the text encoder reads the beginning alone; None: unknown.
    """

    name: str
    corpus: str
    encoders: dict[Modality, EncoderCard]
    dtype: Dtype = "float32"
    counts: dict[Modality, int] = field(default_factory=dict)
    complete: bool = False
    fingerprint: str = ""
    modalign: str = field(default_factory=lambda: version("modalign"))
    format: int = FORMAT
    truncated: int | None = None

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the card of the embedding set in `directory`.

        Raises:
            EmbeddingSetError: there is no such card, or it is damaged or of another format.
        """
        path = directory / CARD
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format"] != FORMAT:
                raise EmbeddingSetError(
                    f"{directory}: expected an embedding set of format {FORMAT}, got format {raw['format']}; "
                    "read it with the modalign version that wrote it, or encode the corpus again"
                )
            raw["encoders"] = {m: EncoderCard(**card) for m, card in raw["encoders"].items()}
            whole_numbers = all(isinstance(count, int) for count in raw["counts"].values())
            if not whole_numbers or not isinstance(raw["complete"], bool) or raw["dtype"] not in get_args(Dtype):
                raise ValueError("counts, complete or dtype has an invalid value")
            return cls(**raw)
        except (FileNotFoundError, NotADirectoryError):
            known = sorted(card.parent.name for card in directory.parent.glob(f"[!.]*/{CARD}"))
            raise EmbeddingSetError(
                f"{directory} is not an embedding set: it has no {CARD}; {directory.parent} holds "
                f"{names_there(directory.name, known)}; make one with `modalign encode`"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EmbeddingSetError(
                f"{path} is damaged ({error}); restore it or encode the corpus into a new set"
            ) from error

    def write(self, directory: Path) -> None:
        """Replace the card in `directory` atomically."""
        write_durably(directory / CARD, (json.dumps(asdict(self), indent=2) + "\n").encode())
