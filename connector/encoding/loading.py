"""From a spec to its encoder: found by scheme or by class, and loaded once in a process.

A spec is `SCHEME:NAME`. The scheme is an entry point in the group `modalign.encoders`, built-in schemes included. A
class of your own can be tried without one: `MODULE:CLASS`, or `MODULE:CLASS:NAME`, of a module that Python finds.
"""

import logging
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from alignment import device as devices
from alignment.modality import MODALITIES, Modality
from alignment.names import did_you_mean
from connector.encoding.encoders import IMPORTED, Encoder
from connector.encoding.failures import naming_encoder
from connector.errors import EncoderError

_log = logging.getLogger(__name__)

GROUP = "modalign.encoders"
CANNOT_BE_LOADED = "cannot be loaded"
CLASS_SPEC = re.compile(
    r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)(?::(?P<argument>.*))?", re.DOTALL
)

Key: TypeAlias = tuple[Any, ...]

# Held while a model loads: model libraries change settings of the process meanwhile. An encoder may load others.
_loading = threading.RLock()
_lock = threading.Lock()  # of the two below
_loaded: WeakValueDictionary[Key, Encoder] = WeakValueDictionary()
_pending: dict[Key, "Future[Encoder]"] = {}


def load_encoder(spec: str, device: str = "auto", *, fingerprint: str | None = None) -> Encoder:
    """Return the encoder that `spec` names, ready to compute on `device`.

    A process holds an encoder once: whoever asks for it while it loads waits for it, and gets the error if that fails.
    It is forgotten when nobody uses it any more. Several threads may ask, and encode.

    Args:
        spec: what to load.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        fingerprint: what its weights should have. One with others that is held already is not returned: the spec is
            loaded again, because its files may have changed. The caller compares what loads then.

    Raises:
        EncoderError: the scheme or model is unknown, or its weights cannot be loaded.
        MissingPackageError: a package that it needs is not installed.
        OutOfResourcesError: there is not enough memory for it.
        DeviceError: there is no such device.
    """
    found = encoder_class(spec)
    _check_downloads({spec: found})
    return _load(found, spec, device, fingerprint)


def load_encoders(
    specs: Mapping[Modality, str], device: str = "auto", *, fingerprints: Mapping[str, str] | None = None
) -> dict[Modality, Encoder]:
    """Load the encoder of each modality; a model for both modalities is loaded once.

    Args:
        specs: by modality, what to load.
        device: as of `load_encoder`.
        fingerprints: by spec, as of `load_encoder`.

    Raises:
        EncoderError: a scheme is unknown, its encoders do not encode the modality, or no model of it has the name, and
            no model was loaded; a model is unknown, or its weights cannot be loaded.
        MissingPackageError: a package that one of them needs is not installed.
        DeviceError: there is no such device.
    """
    classes = encoder_classes(specs)
    _check_downloads(classes)
    expected = fingerprints or {}
    loaded = {spec: _load(encoder_class, spec, device, expected.get(spec)) for spec, encoder_class in classes.items()}
    return {modality: loaded[spec] for modality, spec in specs.items()}


def encoder_classes(specs: Mapping[Modality, str]) -> dict[str, type[Encoder]]:
    """Return the class of each spec. No model is loaded.

    Raises:
        EncoderError: a scheme is unknown, its encoders do not encode the modality, or no model of it has the name.
        MissingPackageError: a package that a class needs is not installed.
    """
    classes = {spec: encoder_class(spec) for spec in dict.fromkeys(specs.values())}
    for modality, spec in specs.items():
        if modality not in (modalities := classes[spec].modalities):
            raise EncoderError(
                f"encoder {spec} encodes {' and '.join(modalities)}s; expected one of {modality}s, as the "
                f"{modality} encoder"
            )
    return classes


def encoder_entry_point(spec: str) -> EntryPoint:
    """Return where the class of the encoder that `spec` names is found; nothing is loaded.

    The name of the entry point is the scheme: what the spec begins with, in front of the name.

    Raises:
        EncoderError: the scheme is unknown, or the name is missing.
    """
    scheme, _, name = spec.partition(":")
    if scheme == IMPORTED:
        raise EncoderError(
            f"encoder {spec} names the source of imported vectors and cannot be loaded; encode the query with that "
            "model and search with its vector: Retriever.search_embeddings"
        )
    known = {point.name: point for point in entry_points(group=GROUP)}
    if scheme in known and name:
        return known[scheme]
    match = CLASS_SPEC.fullmatch(spec)
    if scheme not in known and match and _is_module(match["module"].partition(".")[0]):
        place = f"{match['module']}:{match['name']}"
        return EntryPoint(place, place, GROUP)
    if scheme in known:
        raise EncoderError(f"encoder {spec!r} names no model; expected {scheme}:NAME")
    near = did_you_mean(scheme, sorted(known))
    raise EncoderError(
        f"unknown encoder {spec!r}{near}; expected SCHEME:NAME with a scheme of {', '.join(sorted(known))}, or "
        "MODULE:CLASS of a module that Python finds: installed, or in a directory that PYTHONPATH names"
    )


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # of a module without a spec, as one that is made up in memory
        return True


def encoder_class(spec: str) -> type[Encoder]:
    """Return the class of the encoder that `spec` names; no model is loaded.

    Raises:
        EncoderError: the scheme is unknown, is none of an encoder, or has no model of this name.
        MissingPackageError: a package that the class imports is not installed.
    """
    point = encoder_entry_point(spec)
    with naming_encoder(spec, CANNOT_BE_LOADED):
        encoder_class: Any = point.load()
    if not (isinstance(encoder_class, type) and issubclass(encoder_class, Encoder)):
        raise EncoderError(
            f"encoder {spec}: expected {point.value} to be a subclass of connector.encoding.encoders.Encoder, "
            f"got {encoder_class!r}"
        )
    modalities = getattr(encoder_class, "modalities", None)
    if not isinstance(modalities, tuple) or not modalities or not set(modalities) <= set(MODALITIES):
        raise EncoderError(
            f'encoder {spec}: expected {point.value}.modalities to be ("image",), ("text",) or both, got {modalities!r}'
        )
    if getattr(encoder_class, "scheme", None) != point.name:  # cards hold the spec that loads it again
        members = {"scheme": point.name, "__module__": encoder_class.__module__}
        encoder_class = type(encoder_class.__name__, (encoder_class,), members)
    with naming_encoder(spec, CANNOT_BE_LOADED):
        encoder_class.check_name(_name_of(spec, encoder_class))
    checked: type[Encoder] = encoder_class
    return checked


def _check_downloads(classes: Mapping[str, type[Encoder]]) -> None:
    """Raise an error if the files of an encoder that is not held, and does not load, surely cannot be had."""
    with _lock:
        known = {key[0] for key in (*_loaded, *_pending)}
    for spec, found in classes.items():
        if spec not in known:
            with naming_encoder(spec, CANNOT_BE_LOADED):
                found.check_download(_name_of(spec, found))


def _load(encoder_class: type[Encoder], spec: str, device: str, fingerprint: str | None) -> Encoder:
    key = (spec, encoder_class.__module__, encoder_class.__qualname__, str(devices.resolve(device)))
    with _lock:
        held = _loaded.get(key)
        if held is not None and fingerprint in (None, held.fingerprint):
            return held
        load = _pending.setdefault(key, Future())
    # Nobody waits for a future, which may be of an encoder that the holder of the lock loads next, as a part of its
    # own. Whoever has the lock finds a load done, or does it.
    with _loading:
        if load.done():
            return load.result()
        if load.running():  # by this thread: the lock lets no other one in
            raise EncoderError(f"encoder {spec} loads itself: expected its __init__ to load other encoders alone")
        load.set_running_or_notify_cancel()
        try:
            encoder = _new(encoder_class, spec, device)
        except BaseException as error:
            _end(key)
            load.set_exception(error)
            raise
        _end(key, encoder)
        load.set_result(encoder)
        return encoder


def _end(key: Key, encoder: Encoder | None = None) -> None:
    """Let whoever asks from now on have the encoder that was loaded, or load it."""
    with _lock:
        del _pending[key]
        if encoder is not None:
            _loaded[key] = encoder


def _new(encoder_class: type[Encoder], spec: str, device: str) -> Encoder:
    started = time.monotonic()
    resolved = devices.resolve(device)
    _log.info("loading encoder %s on %s", spec, resolved)
    with naming_encoder(spec, CANNOT_BE_LOADED):
        encoder = encoder_class(_name_of(spec, encoder_class), resolved)
    if not (encoder.fingerprint and encoder.dim):
        raise EncoderError(
            f"encoder {spec} has no fingerprint and dimension: the __init__ of {encoder_class.__qualname__} has to end "
            "with self._identify(model, preprocessing)"
        )
    _log.info("encoder %s loaded in %.1f s", spec, time.monotonic() - started)
    return encoder


def _name_of(spec: str, encoder_class: type[Encoder]) -> str:
    return spec.removeprefix(encoder_class.scheme).removeprefix(":")
