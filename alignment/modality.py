"""The two modalities, and what is called a direction between them."""

from typing import Literal

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
OTHER: dict[Modality, Modality] = {"image": "text", "text": "image"}
