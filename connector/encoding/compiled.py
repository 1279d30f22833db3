"""Compiled text encoders: with them a search encodes its texts without torch and the libraries of models.

    HOME/compiled/FINGERPRINT/card.json         which encoder it is, and how far from it
                              encoder.onnx      tokens (n, tokens) -> embeddings (n, dim)
                              encoder.weights   of the graph
                              tokenizer.json    text -> tokens

The fingerprint is that of the encoder, which alignments and releases name: a bundle of other weights is never used, and
all releases of one encoder share one. `connector.encoding.compiling` writes them. Of an encoder that cannot be compiled
there is a card alone, which says why.
"""

import json
import logging
import shutil
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

import numpy as np
from typing_extensions import override

from alignment.modality import Modality
from alignment.object_storage import is_remote
from alignment.plurals import counted
from alignment.sets.cards import EncoderCard
from alignment.vectors import FloatArray
from connector.encoding.encoders import Encoder
from connector.encoding.failures import naming_encoder
from connector.encoding.text_graph import TOKEN_FIELDS
from connector.errors import EMBED, EncoderError

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

DIRECTORY = "compiled"
CARD, GRAPH, TOKENIZER = "card.json", "encoder.onnx", "tokenizer.json"
FORMAT = 1
RUNNING = ("onnxruntime", "tokenizers")  # packages that run a bundle
DEVICES = ("auto", "cpu")  # on which a search takes a bundle: whoever names a GPU wants it to encode

_lock = threading.Lock()  # held while a bundle loads, so that a process holds it once
_loaded: WeakValueDictionary[Path, "CompiledTextEncoder"] = WeakValueDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledCard:
    """What a bundle says of itself.

    Attributes:
        spec, fingerprint, dim: of the encoder.
        inputs, prompt: see `connector.encoding.text_graph.TextGraph`.
        difference: the largest, of a text's embedding to that of the encoder, relative to its length.
        made_by: versions of the packages that wrote it.
        sha256: of each other file of the bundle, by its name.
        fault: why the encoder cannot be compiled; None: it is.
    """

    spec: str
    fingerprint: str
    dim: int
    inputs: Sequence[str] = ()
    prompt: str = ""
    difference: float = 0.0
    made_by: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None
    format: int = FORMAT

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the card of the bundle in the directory `path`; None: there is none that this version can read."""
        try:
            raw = json.loads((path / CARD).read_text(encoding="utf-8"))
            card = cls(**raw)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            _log.warning("compiled encoder %s cannot be read (%s); it is not used", path, error)
            return None
        return card if card.format == FORMAT and set(card.inputs) <= TOKEN_FIELDS.keys() else None

    def check_files(self, path: Path) -> None:
        """Raise an `EncoderError` unless the files in the directory `path` are those that were written."""
        try:
            found = digests(path)
        except OSError as error:
            raise EncoderError(f"encoder {self.spec}: what was compiled into {path} cannot be read: {error}") from error
        if damaged := sorted(name for name, _ in self.sha256.items() ^ found.items()):
            raise EncoderError(f"encoder {self.spec}: {damaged[0]} of {path} is not what was compiled")


class CompiledTextEncoder(Encoder):
    """The text encoder of a bundle: the embeddings of the encoder that was compiled, but for their last digits."""

    scheme = DIRECTORY
    modalities = ("text",)

    def __init__(self, path: Path, card: CompiledCard):
        # Here, because they are needed by searches alone.
        from tokenizers import Tokenizer

        from alignment.model.onnx_graph import open_graph

        self._spec, self._prompt, self._inputs = card.spec, card.prompt, card.inputs
        self.fingerprint, self.dim = card.fingerprint, card.dim
        with naming_encoder(card.spec, "cannot be loaded as it was compiled"):
            self._tokenizer = Tokenizer.from_file(str(path / TOKENIZER))
            self._session = open_graph(path / GRAPH)

    @property
    @override
    def spec(self) -> str:
        return self._spec

    @override
    def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        with naming_encoder(self.spec, f"failed to embed {counted(len(prepared), modality)}", code=EMBED):
            texts = self._tokenizer.encode_batch([f"{self._prompt}{text}" for text in prepared])
            tokens = {
                name: np.array([getattr(text, TOKEN_FIELDS[name]) for text in texts], np.int64) for name in self._inputs
            }
            (embedded,) = self._session.run(None, tokens)
        return np.ascontiguousarray(embedded, np.float32)

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> "torch.Tensor":
        import torch

        return torch.from_numpy(self.embed(modality, prepared))


def open_compiled(directory: Path, card: EncoderCard) -> CompiledTextEncoder | None:
    """Return the compiled encoder of a card; None: there is none here that can be run, and the caller loads the model.

    A process holds one once. Several threads may ask.
    """
    path = directory / card.fingerprint
    if not path.is_dir():  # asked first: it is the usual case, and needs no lock
        return None
    with _lock:
        held = _loaded.get(path)
        if held is None:
            held = _open(path, card)
            if held is not None:
                _loaded[path] = held
        return held


def _open(path: Path, encoder: EncoderCard) -> CompiledTextEncoder | None:
    card = CompiledCard.read(path)
    if card is None or card.fault is not None or (card.fingerprint, card.dim) != (encoder.fingerprint, encoder.dim):
        return None
    if any(find_spec(name) is None for name in RUNNING):
        return None
    try:
        card.check_files(path)
        return CompiledTextEncoder(path, card)
    except EncoderError as error:
        _log.warning("%s; the model itself is loaded instead. Remove %s and push again to compile it anew", error, path)
        return None


def digests(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a bundle but its card, by name; about .1 s for 90 MB."""
    found = {}
    for file in path.iterdir():
        if file.name != CARD:
            with file.open("rb") as content:
                found[file.name] = file_digest(content, "sha256").hexdigest()
    return found


def remove_unused(directory: Path, used: Collection[str]) -> None:
    """Remove the bundles of encoders whose fingerprints are not `used`. One that a search has open stays usable.

    In object storage there are none.
    """
    if is_remote(directory):
        return
    with suppress(FileNotFoundError):
        for path in directory.iterdir():
            if not path.name.startswith(".") and path.name not in used:
                remove(path)


def remove(path: Path) -> None:
    """Remove a bundle; its card first: without it there is none, whatever a kill leaves."""
    (path / CARD).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
