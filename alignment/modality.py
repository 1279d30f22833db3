"""The two modalities, and the two directions of retrieval between them."""

from typing import Literal

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
# Names of the directions that are searched in, each with the modality of its queries and that of its items.
DIRECTIONS: dict[str, tuple[Modality, Modality]] = {
    "text-to-image": ("text", "image"),
    "image-to-text": ("image", "text"),
}
OTHER: dict[Modality, Modality] = {"image": "text", "text": "image"}
