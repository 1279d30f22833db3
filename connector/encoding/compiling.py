"""Text encoders are compiled: written as an ONNX graph behind a tokenizer, and compared with the model itself.

See `connector.encoding.compiled` for what is written, and what for.
"""

import json
import logging
import math
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten

import numpy as np

from alignment.durable import write_durably
from alignment.durable_directory import new_directory
from alignment.errors import MissingPackageError, ModalignError
from alignment.object_storage import is_remote
from alignment.packages import EXTRAS
from alignment.sets.cards import EncoderCard
from connector.encoding.compiled import (
    CARD,
    GRAPH,
    RUNNING,
    TOKENIZER,
    CompiledCard,
    CompiledTextEncoder,
    digests,
    remove,
)
from connector.encoding.encoders import IMPORTED, Encoder
from connector.encoding.failures import naming_encoder
from connector.encoding.loading import encoder_class, load_encoder
from connector.errors import EncoderError

_log = logging.getLogger(__name__)

PACKAGES = (*EXTRAS["export"], *RUNNING)
# How far the embedding of a text may be from that of the encoder, relative to its length.
TOLERANCE = 1e-5
# Texts that both encode, one by one and all at once: short and too long, blanks and line ends, capitals, marks,
# scripts, a word that no vocabulary has, and no text at all.
PROBES = (
    "a",
    "a photo of a red car",
    " Two  Dogs\n\tIN the snow, 1999 ",
    "naïve café, 猫が二匹, кот, 🐈",
    "x" * 300,
    "word " * 700,
    "!?",
    "",
)
SHORTEST = 1e-30  # of an embedding: one of zeros is compared as it is
# Numbers of texts and of tokens that a graph is made with: not equal, and of no probe.
TRACED = (3, 5)
FAULT_CHARACTERS = 400  # of an error, which torch explains on a page
VECTORS = "text_vectors"  # no name of a layer


def compile_text_encoder(directory: Path, card: EncoderCard) -> None:
    """Compile the text encoder of `card` into `directory`, unless that was done, or cannot be done here.

    It is loaded on the CPU for that. Whatever fails is said in a warning: searches load the model instead. That an
    encoder cannot be compiled is recorded, so that it is tried again with other versions of the packages alone. Nothing
    is compiled into object storage.
    """
    if is_remote(directory):
        return
    path = directory / card.fingerprint
    if card.spec.partition(":")[0] == IMPORTED or any(find_spec(name) is None for name in PACKAGES):
        return
    written = CompiledCard.read(path)
    if written is not None and _is_usable(path, written):
        return
    try:
        if encoder_class(card.spec).text_graph is Encoder.text_graph:
            return
    except ModalignError:  # it is not installed here: a push needs no encoder, and a search says so
        return
    try:
        encoder = load_encoder(card.spec, "cpu", fingerprint=card.fingerprint)
        if encoder.fingerprint == card.fingerprint:  # else a search says what is wrong
            remove(path)
            _compile(path, encoder)
    except (FileExistsError, MissingPackageError):  # another process was quicker; there is no torch to compile with
        return
    except OSError as error:  # a home that is read-only, a full disk
        _log.warning("encoder %s was not compiled: %s; searches load the model", card.spec, error)
    except ModalignError as error:
        _log.warning("%s; it was not compiled, and searches load the model", error)


def _is_usable(path: Path, card: CompiledCard) -> bool:
    """Whether a bundle is as it was written, or says that these versions of the packages cannot make one."""
    if card.fault is not None:
        return card.made_by == _versions()
    try:
        card.check_files(path)
    except EncoderError as error:
        _log.warning("%s; it is compiled anew", error)
        return False
    return True


def _compile(path: Path, encoder: Encoder) -> None:
    started = time.monotonic()
    _log.info("compiling text encoder %s, so that searches need not load the model", encoder.spec)
    with new_directory(path) as building:
        try:
            card = _write(building, encoder)
        except EncoderError as error:
            for file in building.iterdir():
                file.unlink()
            card = replace(_card(encoder), fault=shorten(str(error), FAULT_CHARACTERS, placeholder=" ..."))
        write_durably(building / CARD, (json.dumps(asdict(card), indent=2) + "\n").encode())
    if card.fault is None:
        _log.info("text encoder %s compiled in %.1f s", encoder.spec, time.monotonic() - started)
    else:
        _log.warning("%s; searches load the model", card.fault)


def _card(encoder: Encoder) -> CompiledCard:
    return CompiledCard(
        spec=encoder.spec, fingerprint=encoder.fingerprint, dim=encoder.dim, made_by=_versions(), difference=0.0
    )


def _write(path: Path, encoder: Encoder) -> CompiledCard:
    """Write graph and tokenizer of an encoder into `path`, and compare what they compute with the encoder.

    Raises:
        EncoderError: it cannot be compiled.
    """
    import torch  # here, because a push that has nothing to compile needs none

    from alignment.model.onnx_graph import save_graph, write_graph

    with naming_encoder(encoder.spec, "cannot be compiled"):
        text_graph = encoder.text_graph()
        if text_graph is None:
            raise EncoderError(f"encoder {encoder.spec} cannot be compiled: it offers no graph of this model")
        card = replace(_card(encoder), inputs=tuple(text_graph.inputs), prompt=text_graph.prompt)
        examples = {name: torch.full(TRACED, int(name != "token_type_ids")) for name in card.inputs}
        axes = {0: "batch", 1: "tokens"}
        save_graph(write_graph(text_graph.module.eval(), examples, [VECTORS], axes), path / GRAPH)
        write_durably(path / TOKENIZER, text_graph.tokenizer.encode())
        difference = _difference(CompiledTextEncoder(path, card), encoder)
    if not difference <= TOLERANCE:
        raise EncoderError(
            f"encoder {encoder.spec} cannot be compiled: the graph is {difference:.1e} away from the model, expected "
            f"at most {TOLERANCE:.0e}"
        )
    return replace(card, difference=difference, sha256=digests(path))


def _difference(compiled: Encoder, encoder: Encoder) -> float:
    """The largest difference of a probe, alone and among the others, relative to the length of its embedding."""
    alone = [[text] for text in PROBES]
    largest = 0.0
    for texts in (*alone, PROBES):
        expected, got = (one.encode("text", texts) for one in (encoder, compiled))
        if got.shape != expected.shape:
            return math.inf
        lengths = np.maximum(np.linalg.norm(expected, axis=1), SHORTEST)  # (n,)
        off = np.linalg.norm(got - expected, axis=1) / lengths
        largest = max(largest, float(off.max()) if np.isfinite(off).all() else math.inf)
    return largest


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("modalign", "torch", *PACKAGES)}
