"""Encoders: frozen models that turn images or texts into raw embeddings.

`connector.encoding.loading` finds and loads them by their specs. CONTRIBUTING.md has the steps for one of your own.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from typing_extensions import override

from alignment.modality import MODALITIES, Modality
from alignment.plurals import counted
from alignment.sets.cards import EncoderCard
from alignment.vectors import FloatArray
from connector.encoding.failures import naming_encoder
from connector.encoding.hub import check_hub, hub
from connector.errors import EMBED, EncoderError

if TYPE_CHECKING:
    import torch

    from connector.encoding.text_graph import TextGraph

IMPORTED = "imported"
HUB = ("hf-hub:", "hf_hub:")  # what the name of a model begins with that is a repository
# Models of timm whose weights are on no hub.
ELSEWHERE = ("gcvit_", "legacy_", "vit_giant_patch16_gap_", "vit_huge_patch14_gap_", "vit_huge_patch16_gap_")


class Encoder(ABC):
    """A frozen model.

    Subclasses load the model in `__init__`, then call `_identify`.

    Attributes:
        scheme: first part of the spec.
        modalities: the modalities that it encodes.
        fingerprint: SHA-256 of weights and preprocessing, which tells two checkpoints of one name apart.
        dim: dimension of the embeddings.
    """

    scheme: ClassVar[str]
    modalities: ClassVar[tuple[Modality, ...]]

    def __init__(self, name: str, device: "torch.device"):
        self.name = name
        self.device = device
        self.fingerprint = ""
        self.dim = 0

    @property
    def spec(self) -> str:
        """The spec that loads this encoder."""
        return f"{self.scheme}:{self.name}" if self.name else self.scheme

    @property
    def card(self) -> EncoderCard:
        """The identity of this encoder in embedding sets, alignments, collections and SQL."""
        return EncoderCard(self.spec, self.fingerprint, self.dim)

    @classmethod  # noqa: B027  an encoder need not know its names
    def check_name(cls, name: str) -> None:
        """Raise an error if no model has this name. It is called, and quick, before the first encoder is loaded."""

    @classmethod  # noqa: B027  an encoder need not download anything
    def check_download(cls, name: str) -> None:
        """Raise an error if the files of a model surely cannot be had. It is called, and quick, before torch loads."""

    def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
        """Preprocess one item on the CPU. Images must be prepared thread-safely."""
        return content

    @abstractmethod
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> "torch.Tensor":
        """Run the model on n >= 1 prepared items; return (n, dim)."""

    def truncates(self, text: str) -> bool | None:
        """Whether the model reads only the beginning of a text. None: this encoder does not say."""
        return None

    @property
    def says_truncated(self) -> bool:
        """Whether `truncates` may say anything. Nothing is loaded for the answer."""
        return type(self).truncates is not Encoder.truncates

    def loaded(self) -> "Encoder":
        """Return the encoder that computes: this one. One of `connector.encoding.deferred` loads it first."""
        return self

    def text_graph(self) -> "TextGraph | None":
        """Return what encodes texts without this class, of a model on the CPU; None: nothing does.

        Searches then need not load the model: see `connector.encoding.compiling`.
        """
        return None

    def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        """Return raw embeddings (n, dim) float32 of n >= 1 prepared items. CUDA computes in half precision.

        Raises:
            EncoderError: `forward` fails, or returns something else than a tensor (n, dim).
            OutOfResourcesError: there is not enough memory for the batch.
        """
        import torch

        half = torch.autocast("cuda", torch.float16, enabled=self.device.type == "cuda")
        failed = f"failed to embed {counted(len(prepared), modality)}"
        with naming_encoder(self.spec, failed, code=EMBED), torch.inference_mode(), half:
            tensor: Any = self.forward(modality, prepared)
            self._check_shape(tensor, len(prepared))
            return np.ascontiguousarray(tensor.float().cpu().numpy())

    def encode(self, modality: Modality, contents: Sequence[Image.Image | str]) -> FloatArray:
        """Return raw embeddings (n, dim) float32 of RGB images or texts.

        Raises:
            EncoderError: this encoder does not encode the modality, or fails.
        """
        self.require(modality)
        if not contents:
            return np.empty((0, self.dim), np.float32)
        with naming_encoder(self.spec, f"failed to prepare {counted(len(contents), modality)}"):
            prepared = [self.prepare(modality, content) for content in contents]
        return self.embed(modality, prepared)

    def require(self, modality: Modality) -> None:
        """Raise an `EncoderError` if this encoder does not encode `modality`."""
        if modality not in self.modalities:
            raise EncoderError(f"{self.spec} encodes {' and '.join(self.modalities)}; expected one for {modality}")

    def _check_shape(self, tensor: Any, items: int) -> None:
        """Raise an `EncoderError` unless `forward` returned a tensor (items, dim): NumPy would spread or cut others."""
        import torch

        expected = f"({items}, {self.dim or 'dim'})"
        if not isinstance(tensor, torch.Tensor):
            raise EncoderError(
                f"encoder {self.spec}: expected a torch.Tensor of shape {expected} from forward, "
                f"got {type(tensor).__module__}.{type(tensor).__qualname__}"
            )
        shape = tuple(tensor.shape)
        if len(shape) != 2 or shape[0] != items or self.dim not in (0, shape[1]):
            raise EncoderError(
                f"encoder {self.spec}: expected a tensor of shape {expected} from forward, a row for each of "
                f"{items} items, got shape {shape}"
            )

    def _identify(self, model: "torch.nn.Module", preprocessing: str) -> None:
        """Set fingerprint and dimension. Call it once the model is loaded."""
        # The text of a function holds its address, which differs in every process.
        sha = hashlib.sha256(re.sub(r" at 0x[0-9a-fA-F]+", "", preprocessing).encode())
        for name, tensor in sorted(model.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            sha.update(f"\n{name} {values.dtype} {tuple(values.shape)}\n".encode())
            sha.update(values.flatten().view(_bytes()).numpy() if values.numel() else b"")
        self.fingerprint = sha.hexdigest()
        probe = Image.new("RGB", (32, 32)) if self.modalities[0] == "image" else "a"
        prepared = self.prepare(self.modalities[0], probe)
        self.dim = int(self.embed(self.modalities[0], [prepared]).shape[1])


class OpenClipEncoder(Encoder):
    """A vision-language model of open_clip: `open_clip:MODEL/PRETRAINED`, both modalities from one model.

    PRETRAINED is a tag of open_clip or the path of a checkpoint; `open_clip:hf-hub:ORG/MODEL` has none. Longer captions
    are truncated to the context length of the model.
    """

    scheme = "open_clip"
    modalities = ("image", "text")

    def __init__(self, name: str, device: "torch.device"):
        super().__init__(name, device)
        import open_clip  # takes seconds to import, and only this class needs it

        model_name, _, pretrained = (name, "", None) if name.startswith("hf-hub:") else name.partition("/")
        with hub(self.spec):
            self._model, _, self._preprocess = open_clip.create_model_and_transforms(
                model_name, pretrained=pretrained, device=device
            )
            self._tokenizer = open_clip.get_tokenizer(model_name)
        self._model.eval()
        self._identify(self._model, f"{self._preprocess} {type(self._tokenizer).__name__} {model_name}")

    @classmethod
    @override
    def check_name(cls, name: str) -> None:
        pretrained = name.partition("/")[2]
        if not pretrained:
            raise EncoderError(
                f"open_clip:{name}: expected open_clip:MODEL/PRETRAINED; without PRETRAINED the weights are random"
            )
        if not name.startswith("hf-hub:"):
            _check_path(pretrained)

    @classmethod
    @override
    def check_download(cls, name: str) -> None:
        if name.startswith(HUB) or not Path(name.partition("/")[2]).exists():
            check_hub(f"{cls.scheme}:{name}", "open_clip", *_repository(name))

    @override
    def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
        return self._preprocess(content) if modality == "image" else self._tokenizer([content])[0]

    @override
    def truncates(self, text: str) -> bool:
        limit = self._tokenizer.context_length
        if _surely_fits(text, limit):
            return False
        # Every tokenizer of open_clip pads, with a token of its own, and takes another length.
        tokens, padding = self._tokenizer([text, ""], context_length=limit + 8)
        return bool((tokens[limit:] != padding[limit:]).any())

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> "torch.Tensor":
        import torch

        batch = torch.stack(list(prepared)).to(self.device)
        encode = self._model.encode_image if modality == "image" else self._model.encode_text
        features: torch.Tensor = encode(batch)
        return features


class TimmEncoder(Encoder):
    """An image encoder of timm: `timm:MODEL`, with the pooled features before the classifier.

    `timm:local-dir:PATH` loads a directory with `config.json` and `model.safetensors`.
    """

    scheme = "timm"
    modalities = ("image",)

    def __init__(self, name: str, device: "torch.device"):
        super().__init__(name, device)
        import timm  # takes seconds to import, and only this class needs it
        from timm import data

        with hub(self.spec, local=name.startswith("local-dir:")):
            self._model = timm.create_model(name, pretrained=True, num_classes=0).to(device).eval()
        settings = data.resolve_model_data_config(self._model)
        self._preprocess = data.create_transform(**settings, is_training=False)
        self._identify(self._model, str(self._preprocess))

    @classmethod
    @override
    def check_name(cls, name: str) -> None:
        _check_path(name.removeprefix("local-dir:"))

    @classmethod
    @override
    def check_download(cls, name: str) -> None:
        if not name.startswith(("local-dir:", *ELSEWHERE)):
            check_hub(f"{cls.scheme}:{name}", "timm", *_repository(name))

    @override
    def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
        return self._preprocess(content)

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> "torch.Tensor":
        import torch

        features: torch.Tensor = self._model(torch.stack(list(prepared)).to(self.device))
        return features


class SentenceTransformersEncoder(Encoder):
    """A text encoder of sentence-transformers: `sentence-transformers:NAME-OR-PATH`.

    Longer texts are truncated to the maximum length of the model.
    """

    scheme = "sentence-transformers"
    modalities = ("text",)

    def __init__(self, name: str, device: "torch.device"):
        super().__init__(name, device)
        # takes seconds to import, and only this class needs it
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        source = self.locate(name)
        local = Path(source).is_dir()
        with hub(self.spec, local=local):
            self._model = SentenceTransformer(source, device=str(device), local_files_only=local)
        tokenizer = self._model.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else repr(tokenizer)
        self._identify(self._model, f"{self._model.max_seq_length} {self._model.prompts} {vocabulary}")

    @classmethod
    @override
    def check_name(cls, name: str) -> None:
        _check_path(name)

    @classmethod
    @override
    def check_download(cls, name: str) -> None:
        if not Path(name).is_dir():
            check_hub(f"{cls.scheme}:{name}", "sentence_transformers", name, f"sentence-transformers/{name}")

    def locate(self, name: str) -> str:
        """Return the name or path that sentence-transformers loads."""
        return name

    @property
    def _prompt(self) -> str:
        """What sentence-transformers puts in front of every text."""
        return self._model.prompts.get(self._model.default_prompt_name or "") or ""

    @override
    def text_graph(self) -> "TextGraph | None":
        from connector.encoding.sentence_graph import sentence_graph  # loads torch

        return sentence_graph(self._model, self._prompt)

    @override
    def truncates(self, text: str) -> bool | None:
        limit = self._model.max_seq_length
        if limit is None:
            return None
        text = self._prompt + text
        if _surely_fits(text, limit):
            return False
        tokens = self._model.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return len(tokens) > limit

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> "torch.Tensor":
        embedded: torch.Tensor = self._model.encode(
            list(prepared), batch_size=len(prepared), convert_to_tensor=True, show_progress_bar=False
        )
        return embedded


def _check_path(name: str) -> None:
    """Raise a `FileNotFoundError` if a name is an absolute path at which nothing is."""
    if Path(name).is_absolute() and not Path(name).exists():
        raise FileNotFoundError(f"there is nothing at {name}")


def _repository(name: str) -> list[str]:
    """Return the repository that the name of a model is, without its revision; none: the name is of a model."""
    return [name.partition(":")[2].partition("@")[0]] if name.startswith(HUB) else []


def _surely_fits(text: str, limit: int) -> bool:
    """Whether a text has so few bytes that it cannot have more than `limit` tokens, two of them special."""
    return len(text.encode("utf-8", "surrogatepass")) + 2 <= limit


class ImportedEncoder(Encoder):
    """The named source of imported embeddings: `imported:NAME`. The name is recorded, not verified.

    There are no weights to hash, so the fingerprint is a hash of name and dimension. Vectors imported under one name
    share it, and no loadable model has it. It is never loaded to encode new items.
    """

    scheme = IMPORTED
    modalities = MODALITIES

    def __init__(self, name: str, dim: int):
        self.name = name  # it computes nothing, so it needs neither a device nor torch
        if not name.strip() or not name.isprintable():
            raise EncoderError(f"expected the name of the encoder that computed the vectors, got {name!r}")
        self.fingerprint = hashlib.sha256(f"{IMPORTED}\n{name}\n{dim}".encode()).hexdigest()
        self.dim = dim

    @override
    def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        return np.stack(prepared).astype(np.float32)

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> "torch.Tensor":
        import torch

        return torch.from_numpy(self.embed(modality, prepared))


class PrecomputedEncoder(ImportedEncoder):
    """The encoder of a card, which has computed the vectors elsewhere. It is never loaded."""

    def __init__(self, card: EncoderCard):
        self.name, self.fingerprint, self.dim = card.spec, card.fingerprint, card.dim

    @property
    @override
    def spec(self) -> str:
        return self.name


def _bytes() -> Any:
    import torch

    return torch.uint8
