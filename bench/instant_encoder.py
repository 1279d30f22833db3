"""An encoder that computes next to nothing, waits as long as a model on a GPU would, and counts what it embeds."""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from typing_extensions import override

from alignment.modality import MODALITIES, Modality
from alignment.vectors import FloatArray
from connector.encoding.encoders import Encoder

DIM = 64
# Environment variables: a directory to count in, and how long an item takes.
COUNTS, SECONDS = "BENCH_ENCODER_COUNTS", "BENCH_ENCODER_SECONDS"


class Instant(Encoder):
    """Vectors that follow from the hash of a text."""

    scheme = "instant"
    modalities = MODALITIES

    def __init__(self, name: str, device: torch.device):
        super().__init__(name, device)
        self.fingerprint, self.dim = hashlib.sha256(b"instant").hexdigest(), DIM

    @override
    def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
        seed = int.from_bytes(hashlib.sha256(str(content).encode()).digest()[:8])
        return torch.from_numpy(np.random.default_rng(seed).standard_normal(DIM, np.float32))

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        return torch.stack(list(prepared))

    @override
    def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        time.sleep(float(os.environ.get(SECONDS, "0")) * len(prepared))
        if directory := os.environ.get(COUNTS):
            with Path(directory, f"{os.getpid()}").open("a", encoding="utf-8") as file:
                file.write(f"{len(prepared)}\n")
        return super().embed(modality, prepared)
