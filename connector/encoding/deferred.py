"""Encoders of an embedding set that exists: known by its card, and loaded when something is to be encoded.

A pass over a corpus in which nothing is new ends without a model, and without torch.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from PIL import Image
from typing_extensions import override

from alignment import device as devices
from alignment.modality import Modality
from alignment.sets.cards import EncoderCard
from alignment.vectors import FloatArray
from connector.encoding.encoders import Encoder
from connector.encoding.loading import encoder_classes, load_encoder, load_encoders

if TYPE_CHECKING:
    import torch

CheckEncoder = Callable[[Modality, EncoderCard], None]


class DeferredEncoder(Encoder):
    """An encoder that is what a card says, and loads at its first use.

    Args:
        card: what was recorded of it.
        encoder_class: of its spec.
        device: what it is loaded on.
        check: called with the card of what was loaded; raises if that is another encoder.
    """

    def __init__(
        self, card: EncoderCard, encoder_class: type[Encoder], device: str, check: Callable[[EncoderCard], None]
    ):
        # Without the base's __init__, which takes a device of torch: that takes a second to import.
        self.scheme, self.modalities = encoder_class.scheme, encoder_class.modalities  # type: ignore[misc]
        self.name = card.spec.removeprefix(encoder_class.scheme).removeprefix(":")
        self.fingerprint, self.dim = card.fingerprint, card.dim
        self._class = encoder_class
        self._device = device
        self._check = check
        self._load: Future[Encoder] = Future()
        self._lock = threading.Lock()

    @property
    @override
    def says_truncated(self) -> bool:
        return self._class.truncates is not Encoder.truncates

    @override
    def loaded(self) -> Encoder:
        """Return the encoder, loaded and checked. Thread-safe: one that cannot be loaded is tried once.

        Raises: as `connector.encoding.loading.load_encoder`, and what the check raises.
        """
        with self._lock:
            if not self._load.done():
                try:
                    encoder = load_encoder(self.spec, self._device, fingerprint=self.fingerprint)
                    self._check(encoder.card)
                except BaseException as error:
                    self._load.set_exception(error)
                    raise
                self._load.set_result(encoder)
        return self._load.result()

    @override
    def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
        return self.loaded().prepare(modality, content)

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> "torch.Tensor":
        return self.loaded().forward(modality, prepared)

    @override
    def truncates(self, text: str) -> bool | None:
        return self.loaded().truncates(text)

    @override
    def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        return self.loaded().embed(modality, prepared)


def open_encoders(
    specs: Mapping[Modality, str],
    device: str,
    *,
    recorded: Mapping[Modality, EncoderCard],
    check: CheckEncoder,
    fingerprints: Mapping[str, str] | None = None,
) -> dict[Modality, Encoder]:
    """Return the encoder of each modality, and load those of which nothing is recorded.

    Args:
        specs: by modality, what to load.
        device: as of `load_encoder`.
        recorded: cards of the embedding set that the encoders add to. A spec that is the card's loads at its first use.
        check: called with modality and card of each encoder that was loaded; raises if that is another one.
        fingerprints: by spec, as of `load_encoders`.

    Raises: as `load_encoders`, and what the check raises. What needs no model is checked at once.
    """
    classes = encoder_classes(specs)
    devices.check(device)
    known = {modality: card for modality, card in recorded.items() if specs.get(modality) == card.spec}
    unknown = {modality: spec for modality, spec in specs.items() if modality not in known}
    loaded = load_encoders(unknown, device, fingerprints=fingerprints) if unknown else {}
    for modality, encoder in loaded.items():
        check(modality, encoder.card)

    def deferred(modality: Modality, card: EncoderCard) -> Encoder:
        return DeferredEncoder(card, classes[card.spec], device, lambda found: check(modality, found))

    return {m: loaded[m] if m in loaded else deferred(m, known[m]) for m in specs}
