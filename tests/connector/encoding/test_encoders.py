import hashlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from typing_extensions import override

from alignment.modality import MODALITIES, Modality
from connector.encoding.encoders import Encoder
from connector.encoding.loading import GROUP, load_encoder
from connector.encoding.truncation import is_truncated
from connector.errors import EncoderError, OutOfResourcesError
from tests.support.errors import raises
from tests.support.fakes import IMAGE_DIM, NAN_WORD, TEXT_DIM, FakeImageEncoder, FakeTextEncoder
from tests.support.sentence_models import sentence_directory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _offline() -> Iterator[None]:
    """A model that is not here is not looked for elsewhere."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


def open_clip_checkpoint(directory: Path, seed: int) -> Path:
    import open_clip

    if "modalign-tiny" not in open_clip.list_models():
        config = directory / "modalign-tiny.json"
        config.write_text(
            json.dumps(
                {
                    "embed_dim": 16,
                    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
                    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
                }
            )
        )
        open_clip.add_model_config(config)
    torch.manual_seed(seed)
    path = directory / f"open-clip-{seed}.pt"
    torch.save(open_clip.create_model("modalign-tiny", require_pretrained=False).state_dict(), path)
    return path


def timm_directory(directory: Path, seed: int) -> Path:
    import timm

    torch.manual_seed(seed)
    path = directory / f"timm-{seed}"
    timm.models.save_for_hf(timm.create_model("test_vit", pretrained=False), str(path), safe_serialization=True)
    return path


def spec_of(kind: str, directory: Path, seed: int) -> str:
    match kind:
        case "open_clip":
            return f"open_clip:modalign-tiny/{open_clip_checkpoint(directory, seed)}"
        case "timm":
            return f"timm:local-dir:{timm_directory(directory, seed)}"
        case "sentence-transformers":
            return f"sentence-transformers:{sentence_directory(directory, seed)}"
        case "efficientnet-lite":
            return "efficientnet-lite:0"
        case "minilm":
            return "minilm:L6-v2"
    raise AssertionError(f"add a tiny model of the scheme {kind} here")


DIMS = {"open_clip": 16, "timm": 64, "sentence-transformers": 8, "efficientnet-lite": 1280, "minilm": 384}
SCHEMES = sorted(point.name for point in entry_points(group=GROUP))
TRAINABLE = [scheme for scheme in SCHEMES if scheme not in ("efficientnet-lite", "minilm")]


@pytest.fixture(scope="module")
def models_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=SCHEMES)
def encoder(request: pytest.FixtureRequest, models_directory: Path) -> Encoder:
    return load_encoder(spec_of(request.param, models_directory, 0), "cpu")


def contents(modality: Modality, n: int = 3) -> list[Image.Image | str]:
    if modality == "text":
        texts: list[Image.Image | str] = ["a red square", "blue circles", "", "a green circle " * 100]
        return texts[:n]
    rng = np.random.default_rng(1)
    shapes = [(40, 60, 3), (7, 5, 3), (1, 1, 3), (300, 20, 3)][:n]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


# Every encoder that is installed


def test_every_scheme_is_tested() -> None:
    assert set(SCHEMES) == DIMS.keys()


@pytest.mark.slow
def test_an_encoder_says_what_it_is(encoder: Encoder) -> None:
    assert encoder.card.spec == encoder.spec == f"{encoder.scheme}:{encoder.name}"
    assert encoder.card.dim == encoder.dim == DIMS[encoder.scheme]
    assert len(encoder.card.fingerprint) == 64
    assert set(encoder.modalities) <= set(MODALITIES)
    assert "0x" not in encoder.spec


def test_raw_embeddings_have_the_promised_shape(encoder: Encoder) -> None:
    for modality in encoder.modalities:
        X = encoder.encode(modality, contents(modality, 4))
        assert X.shape == (4, encoder.dim)
        assert X.dtype == np.float32
        assert X.flags.c_contiguous
        assert np.isfinite(X).all()
        assert encoder.encode(modality, []).shape == (0, encoder.dim)


@pytest.mark.slow
def test_an_item_is_embedded_alike_in_any_company(encoder: Encoder) -> None:
    for modality in encoder.modalities:
        everything = contents(modality, 4)
        together = encoder.encode(modality, everything)
        alone = np.concatenate([encoder.encode(modality, [content]) for content in everything])
        backwards = encoder.encode(modality, everything[::-1])[::-1]
        scale = np.abs(alone).max()
        np.testing.assert_allclose(together, alone, atol=1e-4 * scale)
        np.testing.assert_allclose(backwards, together, atol=1e-4 * scale)
        assert np.abs(together[0] - together[1]).max() > 1e-3 * scale


def test_a_model_is_frozen(encoder: Encoder) -> None:
    """No dropout, no batch statistics: encoding twice gives the same bits."""
    for modality in encoder.modalities:
        one, other = (encoder.encode(modality, contents(modality)) for _ in range(2))
        np.testing.assert_array_equal(one, other)


def test_a_text_is_said_to_be_truncated_where_its_end_changes_nothing(encoder: Encoder) -> None:
    if "text" not in encoder.modalities:
        assert encoder.truncates("a red square " * 1000) is None
        return
    said = []
    for words in (*range(1, 10), *range(251, 257)):
        begin = "red " * words
        ends: list[Image.Image | str] = [f"{begin}blue", f"{begin}green"]
        one, other = encoder.encode("text", ends)
        said.append(encoder.truncates(f"{begin}blue"))
        assert said[-1] == np.array_equal(one, other)
    assert set(said) == {False, True}


def test_items_are_prepared_by_several_threads_alike(encoder: Encoder) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for modality in encoder.modalities:
        with ThreadPoolExecutor(4) as pool:
            prepared = list(pool.map(lambda content: encoder.prepare(modality, content), contents(modality, 4)))  # noqa: B023
        np.testing.assert_allclose(
            encoder.embed(modality, prepared), encoder.encode(modality, contents(modality, 4)), rtol=1e-6
        )


def test_a_modality_that_an_encoder_does_not_know_is_refused(encoder: Encoder) -> None:
    for modality in set(MODALITIES) - set(encoder.modalities):
        with raises(EncoderError, encoder.spec, " and ".join(encoder.modalities), modality):
            encoder.encode(modality, contents(modality))
    for modality in encoder.modalities:
        encoder.require(modality)


def test_the_same_model_has_the_same_fingerprint_again(encoder: Encoder) -> None:
    again = type(encoder)(encoder.name, CPU)  # a process loads an encoder once
    assert again.card == encoder.card
    np.testing.assert_array_equal(
        again.encode(again.modalities[0], contents(again.modalities[0])),
        encoder.encode(encoder.modalities[0], contents(encoder.modalities[0])),
    )


@pytest.mark.slow
@pytest.mark.parametrize("scheme", TRAINABLE)
def test_other_weights_have_another_fingerprint(scheme: str, models_directory: Path) -> None:
    one, other = (load_encoder(spec_of(scheme, models_directory, seed), "cpu") for seed in (0, 1))
    assert one.fingerprint != other.fingerprint
    assert one.dim == other.dim


@pytest.mark.slow
def test_a_fingerprint_is_the_same_in_every_process(models_directory: Path) -> None:
    """Nothing of it is an address, an order of a set or a time."""
    spec = spec_of("timm", models_directory, 0)
    script = """
        import sys
        from connector.encoding.loading import load_encoder
        print(load_encoder(sys.argv[1], "cpu").fingerprint)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), spec]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == load_encoder(spec, "cpu").fingerprint


# The models by their own libraries


def test_open_clip_encodes_both_modalities_into_one_space(models_directory: Path) -> None:
    import open_clip

    path = open_clip_checkpoint(models_directory, 0)
    encoder = load_encoder(f"open_clip:modalign-tiny/{path}", "cpu")
    assert encoder.modalities == ("image", "text")
    model, _, preprocess = open_clip.create_model_and_transforms("modalign-tiny", pretrained=str(path))
    model.eval()
    image, text = contents("image", 1)[0], "a red square"
    with torch.inference_mode():
        expected_image = model.encode_image(preprocess(image)[None]).numpy()
        expected_text = model.encode_text(open_clip.get_tokenizer("modalign-tiny")([text])).numpy()
    np.testing.assert_allclose(encoder.encode("image", [image]), expected_image, atol=1e-6)
    np.testing.assert_allclose(encoder.encode("text", [text]), expected_text, atol=1e-6)


def test_timm_gives_pooled_features(models_directory: Path) -> None:
    import timm

    path = timm_directory(models_directory, 0)
    encoder = load_encoder(f"timm:local-dir:{path}", "cpu")
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    image = contents("image", 1)[0]
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(transform(image)[None]), pre_logits=True).numpy()
    np.testing.assert_allclose(encoder.encode("image", [image]), expected, atol=1e-5)


def test_sentence_transformers_are_themselves(models_directory: Path) -> None:
    from sentence_transformers import SentenceTransformer

    path = sentence_directory(models_directory, 0)
    encoder = load_encoder(f"sentence-transformers:{path}", "cpu")
    texts = ["a red square", "blue circles"]
    expected = SentenceTransformer(str(path), device="cpu").encode(texts)
    np.testing.assert_allclose(encoder.encode("text", texts), expected, atol=1e-6)


def test_the_vocabulary_is_part_of_what_an_encoder_is(models_directory: Path, tmp_path: Path) -> None:
    """The same weights behind other words are another encoder."""
    import shutil

    path = sentence_directory(models_directory, 0)
    other = tmp_path / "other"
    shutil.copytree(path, other)
    changed = 0
    for file in [*other.rglob("vocab.txt"), *other.rglob("tokenizer.json")]:
        text = file.read_text()
        changed += "red" in text
        file.write_text(text.replace("red", "der"))
    assert changed
    one, two = (load_encoder(f"sentence-transformers:{p}", "cpu") for p in (path, other))
    assert one.fingerprint != two.fingerprint


def test_demo_models_know_what_they_see() -> None:
    """Pretrained weights are loaded, not random ones: similar things are similar."""
    minilm = load_encoder("minilm:L6-v2", "cpu")
    X = minilm.encode("text", ["a photo of a cat", "a kitten", "quarterly tax report"])
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    assert X[0] @ X[1] > X[0] @ X[2] + 0.3


# The base class


class Linear(Encoder):
    """A weight matrix behind the mean colour, to see what a fingerprint depends on."""

    scheme = "linear"
    modalities = ("image",)

    def __init__(self, weight: npt.NDArray[np.float32], preprocessing: str = "mean") -> None:
        super().__init__("x", CPU)
        self.model = torch.nn.Linear(3, len(weight), bias=False)
        self.model.weight = torch.nn.Parameter(torch.from_numpy(weight))
        self._identify(self.model, preprocessing)

    def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
        return torch.from_numpy(np.asarray(content, np.float32).mean(axis=(0, 1)))

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        result: torch.Tensor = self.model(torch.stack(list(prepared)))
        return result


class Returning(FakeTextEncoder):
    """Returns from `forward` what a function makes of the vectors (n, dim)."""

    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__("odd")
        self._make = make

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        made: torch.Tensor = self._make(super().forward(modality, prepared))
        return made


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda X: X[:1], f"(1, {TEXT_DIM})"),
        (lambda X: X[:, :1], "(3, 1)"),
        (lambda X: X[:2], f"(2, {TEXT_DIM})"),
        (lambda X: torch.cat([X, X]), f"(6, {TEXT_DIM})"),
        (lambda X: X[:, :-1], f"(3, {TEXT_DIM - 1})"),
        (lambda X: X[0], f"({TEXT_DIM},)"),
        (lambda X: X[0, 0], "()"),
        (lambda X: X[None], f"(1, 3, {TEXT_DIM})"),
        (lambda X: X.numpy(), "numpy.ndarray"),
        (list, "list"),
        (lambda X: None, "NoneType"),
    ],
)
def test_what_is_no_row_for_each_item_is_refused(make: Callable[[torch.Tensor], Any], got: str) -> None:
    """NumPy would spread one row or one column over all items."""
    with raises(EncoderError, "fake-text:odd", f"(3, {TEXT_DIM})", got):
        Returning(make).encode("text", ["red", "green", "blue"])


def raising(error: BaseException) -> Callable[[torch.Tensor], Any]:
    def make(X: torch.Tensor) -> Any:
        raise error

    return make


@pytest.mark.parametrize("error", [ValueError("no\nrow"), KeyError("x"), SystemExit(0), SystemExit("no\nrow")])
def test_what_forward_raises_is_one_line_that_names_the_encoder(error: BaseException) -> None:
    with pytest.raises(EncoderError) as caught:
        Returning(raising(error)).encode("text", ["red"])
    assert "fake-text:odd" in str(caught.value)
    assert type(error).__name__ in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_lack_of_memory_is_no_fault_of_the_encoder(error: Exception) -> None:
    with raises(OutOfResourcesError, "fake-text:odd", type(error).__name__):
        Returning(raising(error)).encode("text", ["red"])


@pytest.mark.parametrize("method", ["prepare", "truncates"])
@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(0)])
def test_whatever_an_encoder_raises_names_it(
    method: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise error

    monkeypatch.setattr(FakeTextEncoder, method, fail)
    with raises(EncoderError, "fake-text:small", type(error).__name__):
        encoder = FakeTextEncoder()
        is_truncated(encoder, "red") if method == "truncates" else encoder.encode("text", ["red"])


def test_a_fingerprint_is_the_hash_of_preprocessing_and_weights() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    encoder = Linear(weight)
    expected = hashlib.sha256(b"mean" + b"\nweight torch.float32 (2, 3)\n" + weight.tobytes()).hexdigest()
    assert encoder.fingerprint == expected
    assert encoder.dim == 2


def test_a_fingerprint_changes_with_anything_that_changes_vectors() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    nudged = weight.copy()
    nudged[1, 2] = np.nextafter(nudged[1, 2], np.float32(9))
    found = [Linear(weight), Linear(nudged), Linear(weight, "median"), Linear(weight[:1])]
    assert len({encoder.fingerprint for encoder in found}) == len(found)


def test_an_address_in_a_preprocessing_is_no_part_of_a_fingerprint() -> None:
    """A function in a pipeline prints where it lies in memory, which changes from process to process."""
    weight = np.ones((2, 3), np.float32)
    one, other = (Linear(weight, f"Compose(<function rgb at {place}>)") for place in ("0x7f3a10c0", "0x55e2f1a8"))
    assert one.fingerprint == other.fingerprint


def test_nothing_is_recorded_for_gradients() -> None:
    encoder = Linear(np.ones((2, 3), np.float32))
    encoder.encode("image", [Image.new("RGB", (2, 2), "white")])
    assert encoder.model.weight.grad is None


# The fakes that other tests stand on


def test_fakes_are_deterministic_and_their_names_tell_them_apart() -> None:
    image, text = contents("image"), contents("text")
    for kind, items, dim in ((FakeImageEncoder, image, IMAGE_DIM), (FakeTextEncoder, text, TEXT_DIM)):
        modality = kind.modalities[0]
        one, again, other = kind("one"), kind("one"), kind("other")
        np.testing.assert_array_equal(one.encode(modality, items), again.encode(modality, items))
        assert one.card == again.card != other.card
        assert one.encode(modality, items).shape == (3, dim)
        assert not np.allclose(one.encode(modality, items), other.encode(modality, items))


def test_fakes_can_give_what_must_be_refused() -> None:
    assert not FakeImageEncoder().encode("image", [Image.new("RGB", (4, 4))]).any()
    assert np.isnan(FakeTextEncoder().encode("text", [f"red {NAN_WORD}"])).all()
