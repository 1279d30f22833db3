"""Production search: a text or an image in, items of the other modality out, with the metric's own score."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from alignment import device as devices
from alignment.embeddings import Modality
from connector.encoders import Encoder, load_encoder
from connector.errors import ConnectorError, MismatchError
from connector.images import ImageRejectedError, decode, read_image, upright_rgb
from connector.items import printable
from connector.provenance import Provenance
from connector.release import Release, open_release, require_encoder
from connector.store import Hit, Store

if TYPE_CHECKING:
    from qdrant_client.models import Filter

OTHER: dict[Modality, Modality] = {"image": "text", "text": "image"}


class Found(NamedTuple):
    """An item that a search found.

    Attributes:
        score: the metric's own score; higher is better under every metric.
        raw_score: what Qdrant returned: a distance under Euclid and Manhattan.
    """

    key: str
    group: str
    modality: Modality
    score: float
    raw_score: float
    payload: dict[str, Any]


class Retriever:
    """Searches one release.

        with open_store(settings) as store, Provenance.open(settings.database_url, home=settings.home) as provenance:
            retriever = Retriever.open(provenance, store, "emoji")
            for found in retriever.search_texts(["a red car"], k=5)[0]:
                print(found.key, found.score)

    Encoders are loaded at the first query that needs them.
    """

    def __init__(self, release: Release, store: Store, *, device: str = "auto"):
        self.release = release
        self._store = store
        self._device = device
        self._encoders: dict[Modality, Encoder] = {}

    @classmethod
    def open(
        cls, provenance: Provenance, store: Store, collection: str, metric: str | None = None, *, device: str = "auto"
    ) -> "Retriever":
        """Open the live release of `collection` and check its chain; see `open_release` for what is refused."""
        return cls(open_release(provenance, store, collection, metric), store, device=device)

    def search_texts(
        self,
        texts: Sequence[str],
        k: int = 10,
        *,
        target: Modality = "image",
        filter: "Filter | None" = None,
        exact: bool = False,
    ) -> list[list[Found]]:
        """Find the `k` best items of modality `target` for each text."""
        for text in texts:
            if not text.strip() or text != printable(text):
                raise ConnectorError(f"expected a text of Unicode to search for, got {printable(text)!r}")
        X = self._encoder("text").encode("text", texts)
        return self._search("text", X, k, target=target, filter=filter, exact=exact)

    def search_images(
        self,
        images: Sequence[Image.Image | Path],
        k: int = 10,
        *,
        target: Modality = "text",
        filter: "Filter | None" = None,
        exact: bool = False,
    ) -> list[list[Found]]:
        """Find the `k` best items of modality `target` for each image or image file.

        Raises:
            ConnectorError: a file is no image that can be decoded.
        """
        loaded = [upright_rgb(image) if isinstance(image, Image.Image) else load_picture(image) for image in images]
        X = self._encoder("image").encode("image", loaded)
        return self._search("image", X, k, target=target, filter=filter, exact=exact)

    def search_embeddings(
        self,
        modality: Modality,
        X: npt.NDArray[np.floating],
        k: int = 10,
        *,
        encoder: str,
        target: Modality | None = None,
        filter: "Filter | None" = None,
        exact: bool = False,
    ) -> list[list[Found]]:
        """Find the `k` best items for each raw embedding of `X` (n, d), made by the encoder of fingerprint `encoder`.

        Raises:
            MismatchError: the release was made for another encoder.
            VectorError: another dimension, or vectors that are NaN, infinite or zero.
        """
        expected = self.release.alignment.card.encoders[modality]
        if encoder != expected.fingerprint:
            raise MismatchError(
                f"release {self.release.name} takes {modality} embeddings of {expected}, got embeddings of an encoder "
                f"with fingerprint {encoder[:12]}; encode with the first, or push for the second"
            )
        return self._search(modality, X, k, target=target or OTHER[modality], filter=filter, exact=exact)

    def _search(
        self,
        modality: Modality,
        X: npt.NDArray[np.floating],
        k: int,
        *,
        target: Modality,
        filter: "Filter | None",
        exact: bool,
    ) -> list[list[Found]]:
        if k < 1:
            raise ConnectorError(f"expected k of at least 1, got {k}")
        if not len(X):
            return []
        lowering = self.release.lowering
        queries = lowering.query(self.release.alignment.project(modality, X))
        answers = self._store.search(self.release.name, target, queries, k, filter=filter, exact=exact)
        return [[self._found(hit, target) for hit in hits] for hits in answers]

    def _found(self, hit: Hit, target: Modality) -> Found:
        payload = hit.payload
        score = self.release.lowering.score(hit.raw_score)
        return Found(payload["key"], payload["group"], target, score, hit.raw_score, payload)

    def _encoder(self, modality: Modality) -> Encoder:
        if modality not in self._encoders:
            card = self.release.alignment.card.encoders[modality]
            encoder = load_encoder(card.spec, devices.resolve(self._device))
            require_encoder(self.release.alignment, modality, encoder.card, f"the encoder that {card.spec} loads now")
            self._encoders[modality] = encoder
        return self._encoders[modality]


def load_picture(path: Path) -> Image.Image:
    """Read and decode an image file.

    Raises:
        ConnectorError: it cannot be.
    """
    try:
        return decode(read_image(path))
    except ImageRejectedError as error:
        raise ConnectorError(f"picture {path} cannot be used ({error.reason}): {error}") from error
