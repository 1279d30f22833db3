"""Production search: texts or images in, items of the other modality out, with the metric's own score.

Beside the score of an item that the fit saw is what the alignment takes off it, where it has an offset for such items.
Lists are in the order of what is left.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from alignment.metrics import Guarantee, Lowering
from alignment.modality import OTHER, Modality
from alignment.object_storage import is_remote
from alignment.retrieval.ways import CAPTION, FUSED, IMAGE, Way
from connector.corpora.images import ImageRejectedError, decode, read_image, upright_rgb
from connector.encoding.compiled import DEVICES, open_compiled
from connector.encoding.compiled import DIRECTORY as COMPILED
from connector.encoding.encoders import IMPORTED, Encoder
from connector.encoding.loading import load_encoder
from connector.errors import MismatchError, PictureError, SettingsError, StrangePointError
from connector.provenance.recorder import Provenance
from connector.releases.chain import check_encoder
from connector.releases.fusion import WAY_OF, Fusion
from connector.releases.payload_fields import missing_in_words, unlike_in_words
from connector.releases.points import FITTED
from connector.releases.release import Release, open_release
from connector.search.candidates import CandidateSearch, ScoredHit
from connector.search.item_search import BY_CAPTION, ItemSearch, ShownItem
from connector.search.search_arguments import (
    check_deadline,
    check_embeddings,
    check_fingerprint,
    check_images,
    check_modality,
    check_opening,
    check_reading,
    check_search,
    check_texts,
    check_way,
)
from connector.settings import MAX_PIXELS
from connector.stores.contract import Store
from connector.stores.deadlines import within
from connector.stores.payload_kinds import check_kinds, fields_of

if TYPE_CHECKING:
    from qdrant_client.models import Filter

_log = logging.getLogger(__name__)

PROBES: Mapping[Modality, Image.Image | str] = {"image": Image.new("RGB", (32, 32), "grey"), "text": "a"}


class SearchResult(list["SearchHit"]):
    """The hits of one query, best first: in the order of `score - seen_offset`.

    Attributes:
        certified: True if it is proved that no better item was left out; False if that could not be proved, within
            `max_candidates`, along a graph or over quantized vectors; None if the metric's guarantee needs no proof or
            allows none, see `Retriever.guarantee`.
        candidates: number of items that the metric itself scored; 0 if Qdrant's order is the metric's own.
        exact: the search was asked to compare every item, instead of those that the index leads to. Where there is no
            index yet, every search does: `Retriever.compares_with_all`.
    """

    def __init__(self, hits: Iterable["SearchHit"], *, certified: bool | None, candidates: int, exact: bool):
        super().__init__(hits)
        self.certified = certified
        self.candidates = candidates
        self.exact = exact


class SearchHit(NamedTuple):
    """An item that a search found.

    Attributes:
        score: the metric's own; higher is better under every metric. Found both ways it is no score of the metric, but
            the sum of two standardised ones.
        seen_offset: what is taken off it to rank the item, because the fit saw it: at least 0. 0 of any other item,
            of one that is found by caption, and where the alignment has no offset under this metric.
        raw_score: Qdrant's; a distance under Euclid and Manhattan. The offset is in it. Found both ways it is what the
            item ranks by: Qdrant has no score of both.
        found_by: what the query was compared with: the image, a caption, or both.
        scores: the metric's own of each that it was compared with.
        caption: payload of the caption that counted, the best of the item's; None: none was compared.
    """

    key: str
    group: str
    modality: Modality
    score: float
    seen_offset: float
    raw_score: float
    payload: dict[str, Any]
    found_by: Way
    scores: Mapping[Way, float]
    caption: dict[str, Any] | None


class Retriever:
    """Searches one release.

        with open_store(settings) as store, Provenance.open(settings.database_url, home=settings.home) as provenance:
            retriever = Retriever.open(provenance, store, "emoji")
            for hit in retriever.search_texts(["a red car"], k=5)[0]:
                print(hit.key, hit.score)

    An encoder is loaded at the first query that needs it, or by `warm`. Several threads may search at once. The release
    stays the one that was opened, whatever goes live afterwards.

    Args:
        release: what is searched.
        store: where it is.
        device: where encoders and learned metrics compute.
        max_pixels: of an image to search with.
        deadline: seconds within which a server has to answer a search, with all requests and retries of it; None: each
            request is tried for two minutes. Encoding the queries does not count. Looking for the fields of a filter,
            once each, may take as long again.
        compiled: directory of compiled text encoders; None: models are loaded.
        keeps_encoders: whether an encoder stays for the next query. A process that searches once lets it go before the
            store is read, which needs as much memory.

    Raises:
        QueryError: an argument is not what it has to be.
    """

    def __init__(
        self,
        release: Release,
        store: Store,
        *,
        device: str = "auto",
        max_pixels: int = MAX_PIXELS,
        deadline: float | None = None,
        compiled: Path | None = None,
        keeps_encoders: bool = True,
    ):
        check_deadline(deadline)
        check_reading(device, max_pixels)
        self.deadline = deadline
        self.release = release
        self._store = store
        self._candidates = CandidateSearch(release, store)
        self._items = ItemSearch(CandidateSearch(release, store))
        self._device = device
        self._compiled = compiled
        self.max_pixels = max_pixels
        self._encoders: dict[Modality, Encoder] = {}
        self._keeps_encoders = keeps_encoders
        self._looked_for: set[str] = set()

    @classmethod
    def open(
        cls,
        provenance: Provenance,
        store: Store,
        collection: str,
        metric: str | None = None,
        *,
        device: str = "auto",
        max_pixels: int = MAX_PIXELS,
        deadline: float | None = None,
        keeps_encoders: bool = True,
    ) -> "Retriever":
        """Open the live release of `collection` and check its provenance chain; raises as `open_release` does.

        `deadline` is of each search: opening is given the time that it needs.
        """
        check_deadline(deadline)
        check_opening(collection, metric)
        check_reading(device, max_pixels)
        release = open_release(provenance, store, collection, metric, device=device)
        home = provenance.database.home
        compiled = None if home is None or is_remote(home) else home / COMPILED
        return cls(
            release,
            store,
            device=device,
            max_pixels=max_pixels,
            deadline=deadline,
            compiled=compiled,
            keeps_encoders=keeps_encoders,
        )

    @property
    def guarantee(self) -> Guarantee:
        """What the metric allows: `exact`, `certified`, `bounded` or `measured`; see docs/metrics.md.

        Whether one result is proved complete is told by `SearchResult.certified`.
        """
        return self.release.guarantee

    def warm(self) -> None:
        """Load the encoders and search once for items of each modality: the first query then takes as long as others.

        Of a modality whose vectors were imported no encoder is loaded: there is none.

        Raises:
            EncoderError: a model cannot be loaded.
            MismatchError: what loads now is not what the release was made for.
        """
        for modality, card in self.release.alignment.card.encoders.items():
            if card.spec.partition(":")[0] == IMPORTED:
                X = np.ones((1, card.dim), np.float32)
            else:
                X = self._encoder(modality).encode(modality, [PROBES[modality]])
            self._search(
                modality, X, 1, target=OTHER[modality], by=IMAGE, filter=None, exact=False, max_candidates=None
            )

    def compares_with_all(self) -> bool:
        """Say whether all searches compare with every item, because there is no index yet, and no quantization.

        On a server this is a request.
        """
        with within(self.deadline):
            return self._candidates.compares_with_all()

    def search_texts(
        self,
        texts: Sequence[str],
        k: int = 10,
        *,
        target: Modality = "image",
        by: Way = IMAGE,
        filter: "Filter | None" = None,
        exact: bool = False,
        max_candidates: int | None = None,
    ) -> list[SearchResult]:
        """Find the `k` best items of modality `target` for each text.

        Args:
            texts: queries.
            k: hits a query.
            target: modality to find.
            by: what texts are compared with to find images: `image`, the images themselves; `caption`, the captions of
                their groups, of which the best counts; `fused`, both. The last two give one hit a group: its image
                where it has one, else its caption.
            filter: only items that match it. By caption, and fused, only images and captions that match it are
                compared.
            exact: compare with every item instead of searching the HNSW graph.
            max_candidates: most candidates to rescore, for metrics that Qdrant cannot order by itself. By caption, and
                fused, most points to fetch of each modality under any metric.

        Raises:
            SettingsError: the release has no weights to fuse by.
        """
        check_search(k, target, filter, exact=exact, max_candidates=max_candidates)
        check_way(by, "text", target)
        check_texts(texts)
        self._check_answered(by, filter)
        X = self._encoder("text").encode("text", texts)
        options: dict[str, Any] = {"filter": filter, "exact": exact, "max_candidates": max_candidates}
        return self._search("text", X, k, target=target, by=by, **options)

    def search_images(
        self,
        images: Sequence[Image.Image | Path],
        k: int = 10,
        *,
        target: Modality = "text",
        filter: "Filter | None" = None,
        exact: bool = False,
        max_candidates: int | None = None,
    ) -> list[SearchResult]:
        """Find the `k` best items of modality `target` for each image or image file.

        Raises:
            PictureError: a file cannot be decoded as an image.
        """
        check_search(k, target, filter, exact=exact, max_candidates=max_candidates)
        check_images(images)
        loaded = [
            upright_rgb(image) if isinstance(image, Image.Image) else load_picture(image, self.max_pixels)
            for image in images
        ]
        self._check_answered(IMAGE, filter)
        X = self._encoder("image").encode("image", loaded)
        options: dict[str, Any] = {"filter": filter, "exact": exact, "max_candidates": max_candidates}
        return self._search("image", X, k, target=target, by=IMAGE, **options)

    def search_embeddings(
        self,
        modality: Modality,
        X: npt.NDArray[np.floating],
        k: int = 10,
        *,
        encoder: str,
        target: Modality | None = None,
        by: Way = IMAGE,
        filter: "Filter | None" = None,
        exact: bool = False,
        max_candidates: int | None = None,
    ) -> list[SearchResult]:
        """Find the `k` best items for each raw embedding of `X` (n, d), made by the encoder of fingerprint `encoder`.

        Raises:
            MismatchError: the release was made for another encoder.
            VectorError: another dimension, or vectors that are NaN, infinite or zero.
        """
        check_modality("modality", modality)
        target = OTHER[modality] if target is None else target
        check_search(k, target, filter, exact=exact, max_candidates=max_candidates)
        check_way(by, modality, target)
        check_embeddings(X)
        check_fingerprint(encoder)
        expected = self.release.alignment.card.encoders[modality]
        if encoder != expected.fingerprint:
            raise MismatchError(
                f"release {self.release.name} takes {modality} embeddings of {expected}, got embeddings of an encoder "
                f"with fingerprint {encoder[:12]}; encode with the first, or push for the second"
            )
        self._check_answered(by, filter)
        options: dict[str, Any] = {"filter": filter, "exact": exact, "max_candidates": max_candidates}
        return self._search(modality, X, k, target=target, by=by, **options)

    def _check_answered(self, by: Way, filter: "Filter | None") -> None:
        """Refuse what the release cannot answer, and warn of fields that cannot match, before a query is encoded."""
        if by == FUSED:
            self._fusion()
        if filter is not None:
            check_kinds(filter, self.release.indexes)
            with within(self.deadline):
                self._look_for_fields(filter)

    def _search(
        self,
        modality: Modality,
        X: npt.NDArray[np.floating],
        k: int,
        *,
        target: Modality,
        by: Way,
        filter: "Filter | None",
        exact: bool,
        max_candidates: int | None,
    ) -> list[SearchResult]:
        if not len(X):
            return []
        aligned = self.release.alignment.project(modality, X)
        options: dict[str, Any] = {"filter": filter, "exact": exact, "max_candidates": max_candidates}
        with within(self.deadline):
            if by != IMAGE:
                return self._search_items(aligned, k, by, **options)
            ranked = self._candidates.search(target, aligned, k, **options)
        return [
            SearchResult(
                (_search_hit(hit, target, self.release.lowerings[target]) for hit in result.hits),
                certified=result.certified,
                candidates=result.candidates,
                exact=exact,
            )
            for result in ranked
        ]

    def _search_items(
        self,
        aligned: npt.NDArray[np.floating],
        k: int,
        by: Way,
        *,
        filter: "Filter | None",
        exact: bool,
        max_candidates: int | None,
    ) -> list[SearchResult]:
        fusion = BY_CAPTION if by == CAPTION else self._fusion()
        ranked = self._items.search(aligned, k, fusion, filter=filter, exact=exact, max_candidates=max_candidates)
        return [
            SearchResult(
                (_item_hit(shown, by) for shown in self._items.shown(query, result.items, filter=filter)),
                certified=result.certified,
                candidates=result.candidates,
                exact=exact,
            )
            for query, result in zip(aligned, ranked, strict=True)
        ]

    def _fusion(self) -> Fusion:
        if self.release.fusion is None:
            raise SettingsError(
                f"release {self.release.name} has no weights to fuse images and captions by: either it holds images "
                "or captions alone, or it was pushed by an earlier version; push captions of it, or push one of its "
                "embedding sets again. By image and by caption it can be searched as it is"
            )
        return self.release.fusion

    def _look_for_fields(self, filter: "Filter") -> None:
        """Warn once of each field of a filter that cannot match."""
        fields = fields_of(filter) - self._looked_for
        self._looked_for |= fields
        store, name = self._store, self.release.name
        for sentence in missing_in_words(store, name, fields) + unlike_in_words(store, name, filter, fields):
            _log.warning("filter: %s", sentence)

    def _encoder(self, modality: Modality) -> Encoder:
        if modality in self._encoders:
            return self._encoders[modality]
        encoder = self._compiled_encoder(modality) or self._loaded_encoder(modality)
        if self._keeps_encoders:
            self._encoders[modality] = encoder
        return encoder

    def _compiled_encoder(self, modality: Modality) -> Encoder | None:
        if modality != "text" or self._compiled is None or self._device not in DEVICES:
            return None
        return open_compiled(self._compiled, self.release.alignment.card.encoders[modality])

    def _loaded_encoder(self, modality: Modality) -> Encoder:
        card = self.release.alignment.card.encoders[modality]
        encoder = load_encoder(card.spec, self._device, fingerprint=card.fingerprint)
        check_encoder(self.release.alignment, modality, encoder.card, f"the encoder that {card.spec} loads now")
        return encoder


def _search_hit(hit: ScoredHit, target: Modality, lowering: Lowering) -> SearchHit:
    key, group = hit.payload.get("key"), hit.payload.get("group")
    if not (isinstance(key, str) and isinstance(group, str)):
        raise StrangePointError(hit.id, f"has no {'group' if isinstance(key, str) else 'key'}")
    taken = lowering.taken_off(hit.score, seen=hit.payload.get("split") == FITTED)
    score, way = hit.score + taken, WAY_OF[target]
    caption = hit.payload if way == CAPTION else None
    return SearchHit(key, group, target, score, taken, hit.raw_score, hit.payload, way, {way: score}, caption)


def _item_hit(shown: ShownItem, by: Way) -> SearchHit:
    item, record = shown.item, shown.record
    key = record.payload.get("key")
    if not isinstance(key, str):
        raise StrangePointError(record.id, "has no key")
    scores = {WAY_OF[modality]: score for modality, score in item.own_scores.items()}
    return SearchHit(
        key=key,
        group=item.group,
        modality=shown.modality,
        score=item.score,
        seen_offset=item.score - item.rank_score,
        raw_score=item.rank_score if by == FUSED else item.points["text"].raw_score,
        payload=record.payload,
        found_by=next(iter(scores)) if len(scores) == 1 else FUSED,
        scores=scores,
        caption=shown.caption,
    )


def load_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read and decode an image file.

    Raises:
        PictureError: it cannot be read or decoded.
    """
    try:
        return decode(read_image(path), max_pixels)
    except ImageRejectedError as error:
        raise PictureError(f"picture {path} cannot be used ({error.reason}): {error}") from error
