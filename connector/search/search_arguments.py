"""Arguments of a search, judged in our words before anything is encoded or sent."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from alignment.modality import MODALITIES, Modality
from alignment.retrieval.ways import Way
from connector.errors import QueryError
from connector.safe_text import printable

WAYS = get_args(Way)
SHOWN = 60  # characters of an argument in a message


def check_search(k: object, target: object, filter: object, *, exact: object, max_candidates: object) -> None:
    """Raise a `QueryError` that names the first argument of a search that is not what it has to be."""
    _check_whole("k", k)
    check_modality("target", target)
    _check_filter(filter)
    if not isinstance(exact, bool | np.bool_):
        raise QueryError(f"exact: expected True or False, got {_shown(exact)}")
    if max_candidates is not None:
        _check_whole("max_candidates", max_candidates)


def check_modality(name: str, value: object) -> None:
    """Raise a `QueryError` unless `value` is a modality."""
    if not isinstance(value, str) or value not in MODALITIES:
        raise QueryError(f"{name}: expected {' or '.join(map(repr, MODALITIES))}, got {_shown(value)}")


def check_way(by: object, modality: Modality, target: Modality) -> None:
    """Raise a `QueryError` unless queries of `modality` can find items of `target` in the way `by`."""
    if not isinstance(by, str) or by not in WAYS:
        raise QueryError(f"by: expected {', '.join(map(repr, WAYS[:-1]))} or {WAYS[-1]!r}, got {_shown(by)}")
    if by != WAYS[0] and (modality, target) != ("text", "image"):
        raise QueryError(
            f"by {by}: expected a text that looks for images, which captions stand for, got a query of modality "
            f"{modality} that looks for {target}; leave out `by`"
        )


def check_texts(texts: object) -> None:
    """Raise a `QueryError` unless `texts` is a sequence of texts that can be searched for."""
    for text in _listed("texts", texts, "texts"):
        if not isinstance(text, str):
            raise QueryError(f"texts: expected texts, got {_shown(text)} among them")
        if not text.strip() or text != printable(text):
            raise QueryError(f"expected a text of Unicode to search for, got {printable(text)!r}")


def check_images(images: object) -> None:
    """Raise a `QueryError` unless `images` is a sequence of images and paths of image files."""
    for image in _listed("images", images, "images or paths"):
        if not isinstance(image, Image.Image | Path):
            raise QueryError(
                f"images: expected images of Pillow or paths (pathlib.Path), got {_shown(image)} among them"
            )


def check_embeddings(X: object) -> None:
    """Raise a `QueryError` unless `X` is an array of numbers. The alignment judges its shape."""
    if not isinstance(X, np.ndarray) or X.dtype.kind not in "fiu":
        what = f"an array of type {X.dtype}" if isinstance(X, np.ndarray) else _shown(X)
        raise QueryError(f"X: expected a numpy array of numbers of shape (queries, dimension), got {what}")


def check_fingerprint(encoder: object) -> None:
    """Raise a `QueryError` unless `encoder` is a text, as the fingerprint of an encoder is."""
    if not isinstance(encoder, str):
        raise QueryError(f"encoder: expected the fingerprint of an encoder, a text, got {_shown(encoder)}")


def check_opening(collection: object, metric: object) -> None:
    """Raise a `QueryError` unless `collection` is a text, and `metric` a text or None."""
    for name, value in (("collection", collection), ("metric", "" if metric is None else metric)):
        if not isinstance(value, str):
            raise QueryError(f"{name}: expected a text, got {_shown(value)}")


def check_reading(device: object, max_pixels: object) -> None:
    """Raise a `QueryError` unless `device` is a text, and `max_pixels` a whole number of at least 1."""
    if not isinstance(device, str):
        raise QueryError(f"device: expected a text such as 'cpu' or 'cuda:0', got {_shown(device)}")
    _check_whole("max_pixels", max_pixels)


def check_deadline(seconds: object) -> None:
    """Raise a `QueryError` unless a deadline is None or a number of seconds above 0."""
    number = isinstance(seconds, Real) and not isinstance(seconds, bool)
    if seconds is not None and not (number and 0 < float(seconds) < math.inf):  # type: ignore[arg-type]
        raise QueryError(f"deadline: expected seconds above 0, or None, got {_shown(seconds)}")


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise QueryError(f"{name}: expected a whole number, got {_shown(value)}")
    if int(value) < 1:
        raise QueryError(f"expected {name} of at least 1, got {value}")


def _check_filter(filter: object) -> None:
    if filter is None:
        return
    from qdrant_client.models import Filter  # takes a second to import

    if not isinstance(filter, Filter):
        raise QueryError(
            f"filter: expected a qdrant_client.models.Filter, as connector.stores.filters.parse_filter makes of JSON, "
            f"got {_shown(filter)}"
        )


def _listed(name: str, values: object, what: str) -> Sequence[Any]:
    """Return a sequence; one text, image or path alone is none, although some can be gone through as well."""
    if isinstance(values, str | bytes | Path | Image.Image) or not isinstance(values, Sequence | np.ndarray):
        raise QueryError(f"{name}: expected a list of {what}, got {_shown(values)}; put a single one in a list")
    return values  # type: ignore[return-value]


def _shown(value: object) -> str:
    text = printable(repr(value))
    return f"{type(value).__name__} {text if len(text) <= SHOWN else text[:SHOWN] + '...'}"
