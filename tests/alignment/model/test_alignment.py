import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from alignment.errors import AlignmentError, MetricError, VectorError
from alignment.metrics import METRICS, Cosine, LearnedMetric, bank_name, parse
from alignment.modality import MODALITIES
from alignment.model.alignment import WEIGHTS, Alignment
from alignment.model.card import LATER, AlignmentCard, library_versions
from alignment.model.projections import Projection
from alignment.sets.cards import CARD, EncoderCard
from tests.support.alignments import alignment, projection
from tests.support.errors import raises

IDENTITY = {"image": Projection(4), "text": Projection(4)}
RIDGE = {"image": projection(5, 4, 3), "text": Projection(4, np.zeros(4, np.float32))}


def variants() -> list[Alignment]:
    base = alignment()
    four = {**base.card.encoders, "image": EncoderCard("fake-image:1", "a" * 64, 4)}
    return [base, Alignment(replace(base.card, encoders=four), IDENTITY), Alignment(base.card, RIDGE)]  # type: ignore[arg-type]


every_variant = pytest.mark.parametrize("saved", variants(), ids=["both", "identity", "one side"])


def same_arrays(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return bool(one.dtype == other.dtype and np.array_equal(one, other))


@every_variant
def test_an_alignment_loads_as_it_was_saved(saved: Alignment, tmp_path: Path) -> None:
    saved.save(tmp_path / "deep" / "a")
    loaded = Alignment.load(tmp_path / "deep" / "a")
    assert loaded.card == saved.card
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.dim == saved.dim
    for modality, dim in (("image", saved.card.encoders["image"].dim), ("text", 4)):
        one, other = saved.projections[modality], loaded.projections[modality]  # type: ignore[index]
        assert one.in_dim == other.in_dim == dim
        assert same_arrays(one.mean, other.mean)
        assert same_arrays(one.weight, other.weight)
        X = np.random.default_rng(0).standard_normal((6, dim))
        np.testing.assert_array_equal(saved.project(modality, X), loaded.project(modality, X))  # type: ignore[arg-type]


def test_a_directory_holds_the_card_and_safetensors_and_nothing_else(tmp_path: Path) -> None:
    alignment().save(str(tmp_path / "a"))
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [CARD, WEIGHTS]
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    tensors = safetensors.numpy.load_file(tmp_path / "a" / WEIGHTS)
    assert {name: t.shape for name, t in tensors.items()} == {
        "image.mean": (5,),
        "image.weight": (5, 3),
        "text.mean": (4,),
        "text.weight": (4, 3),
    }
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads((tmp_path / "a" / WEIGHTS).read_bytes())


def test_the_card_says_what_a_reader_needs(tmp_path: Path) -> None:
    alignment().save(tmp_path / "a")
    card = json.loads((tmp_path / "a" / CARD).read_text())
    assert card["format"] == 1
    assert card["dim"] == 3
    assert card["fingerprint"] == alignment().fingerprint
    assert card["hold_out"] == {"fraction": 0.3, "seed": 7}
    assert card["versions"] == library_versions()
    assert card["versions"].keys() == {"modalign", "torch", "numpy"}


def test_an_alignment_is_never_overwritten(tmp_path: Path) -> None:
    alignment().save(tmp_path / "a")
    before = (tmp_path / "a" / CARD).read_bytes()
    with raises(AlignmentError, tmp_path / "a"):
        alignment(pairs=3).save(tmp_path / "a")
    assert (tmp_path / "a" / CARD).read_bytes() == before


def test_of_several_that_save_one_name_the_first_wins(tmp_path: Path) -> None:
    made = [alignment(pairs=number) for number in range(1, 9)]

    def save(one: Alignment) -> bool:
        try:
            one.save(tmp_path / "a")
        except AlignmentError:
            return False
        return True

    with ThreadPoolExecutor(len(made)) as threads:
        saved = list(threads.map(save, made))
    assert saved.count(True) == 1
    assert Alignment.load(tmp_path / "a").card.pairs == made[saved.index(True)].card.pairs
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_save_left_is_no_alignment(tmp_path: Path) -> None:
    half = tmp_path / f".a.{'0' * 32}.tmp"
    half.mkdir()
    (half / CARD).write_bytes(b"{")
    with raises(AlignmentError, tmp_path / "a"):
        Alignment.load(tmp_path / "a")
    alignment().save(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_fingerprint_is_that_of_encoders_and_weights_alone() -> None:
    base = alignment()
    assert alignment(pairs=3, method="ridge", metrics=["dot"]).fingerprint == base.fingerprint
    other_encoder = {**base.card.encoders, "text": EncoderCard("fake-text:1", "d" * 64, 4)}
    weight = base.projections["text"].weight
    assert weight is not None
    nudged = weight.copy()
    nudged[0, 0] = np.nextafter(nudged[0, 0], np.float32(np.inf))
    mean = base.projections["text"].mean
    found = [
        base,
        alignment(encoders=other_encoder),
        Alignment(base.card, {**base.projections, "text": Projection(4, mean, nudged)}),
        Alignment(base.card, {**base.projections, "text": Projection(4, None, weight)}),
        Alignment(base.card, {**base.projections, "text": Projection(4, mean, None)}),
        Alignment(base.card, {"image": base.projections["text"], "text": base.projections["image"]}),
    ]
    assert len({one.fingerprint for one in found}) == len(found)


def test_a_fingerprint_does_not_depend_on_the_layout_in_memory() -> None:
    base = alignment()
    weight = base.projections["image"].weight
    assert weight is not None
    turned = Projection(5, base.projections["image"].mean, np.asfortranarray(weight))
    assert Alignment(base.card, {**base.projections, "image": turned}).fingerprint == base.fingerprint


def test_weights_that_were_changed_are_refused(tmp_path: Path) -> None:
    alignment().save(tmp_path / "a")
    tensors = safetensors.numpy.load_file(tmp_path / "a" / WEIGHTS)
    tensors["image.weight"][0, 0] += 1e-3
    safetensors.numpy.save_file(tensors, tmp_path / "a" / WEIGHTS)
    with pytest.raises(AlignmentError, match=r"card or weights were changed: fit it again"):
        Alignment.load(tmp_path / "a")


@pytest.mark.parametrize("missing", ["image.mean", "text.weight"])
def test_weights_that_are_missing_are_refused(missing: str, tmp_path: Path) -> None:
    alignment().save(tmp_path / "a")
    tensors = safetensors.numpy.load_file(tmp_path / "a" / WEIGHTS)
    del tensors[missing]
    safetensors.numpy.save_file(tensors, tmp_path / "a" / WEIGHTS)
    with pytest.raises(AlignmentError, match="fit it again"):
        Alignment.load(tmp_path / "a")


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    alignment().save(tmp_path / "a")
    tensors = safetensors.numpy.load_file(tmp_path / "a" / WEIGHTS)
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(halves, tmp_path / "a" / WEIGHTS)
    with pytest.raises(AlignmentError, match="fit it again"):
        Alignment.load(tmp_path / "a")


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    alignment().save(tmp_path / "a")
    content = (tmp_path / "a" / WEIGHTS).read_bytes()
    for length in (0, 4, len(content) // 2, len(content) - 1):
        (tmp_path / "a" / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(AlignmentError, match="is damaged"):
            Alignment.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["fingerprint"], "0" * 64),
        (["dim"], 4),
        (["encoders", "image", "fingerprint"], "0" * 64),
        (["encoders", "image", "dim"], 6),
        (["encoders", "text", "dim"], 3),
        (["encoders"], {}),
        (["encoders"], None),
        (["encoders", "text"], "fake-text:1"),
        (["hold_out"], 0.3),
        (["hold_out", "fraction"], 0.1),
        (["hold_out"], {"fraction": 0.3, "surprise": 1}),
        (["surprise"], 1),
    ],
)
def test_a_card_that_does_not_belong_to_the_weights_is_refused(path: list[str], value: Any, tmp_path: Path) -> None:
    alignment().save(tmp_path / "a")
    card = json.loads((tmp_path / "a" / CARD).read_text())
    place = card
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (tmp_path / "a" / CARD).write_text(json.dumps(card))
    with pytest.raises(AlignmentError, match="fit it again"):
        Alignment.load(tmp_path / "a")


REQUIRED = [name for name in AlignmentCard.__dataclass_fields__ if name not in LATER]


@pytest.mark.parametrize("field", [*REQUIRED, "dim", "fingerprint"])
def test_a_card_without_one_of_its_fields_is_refused(field: str, tmp_path: Path) -> None:
    alignment().save(tmp_path / "a")
    card = json.loads((tmp_path / "a" / CARD).read_text())
    del card[field]
    (tmp_path / "a" / CARD).write_text(json.dumps(card))
    with pytest.raises(AlignmentError, match="damaged"):
        Alignment.load(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"format": 1}'])
def test_a_damaged_card_is_refused(content: bytes, tmp_path: Path) -> None:
    alignment().save(tmp_path / "a")
    (tmp_path / "a" / CARD).write_bytes(content)
    with pytest.raises(AlignmentError, match="damaged"):
        Alignment.load(tmp_path / "a")


def test_a_card_of_another_format_is_refused(tmp_path: Path) -> None:
    alignment().save(tmp_path / "a")
    card = json.loads((tmp_path / "a" / CARD).read_text())
    (tmp_path / "a" / CARD).write_text(json.dumps({**card, "format": 2}))
    with raises(AlignmentError, "format 1", "format 2"):
        Alignment.load(tmp_path / "a")


def test_what_is_no_alignment_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "file", "empty"):
        with raises(AlignmentError, name, "modalign fit"):
            Alignment.load(tmp_path / name)


def test_vectors_of_another_encoder_are_refused() -> None:
    with raises(VectorError, "(n, 5)", "(2, 4)"):
        alignment().project("image", np.ones((2, 4)))


def test_projections_end_in_the_dimension_of_the_alignment() -> None:
    one = alignment()
    assert one.dim == 3
    for modality, dim in (("image", 5), ("text", 4)):
        Z = one.project(modality, np.eye(dim))  # type: ignore[arg-type]
        assert Z.shape == (dim, 3)
        assert Z.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1, rtol=1e-6)


# What metrics have learned

LEARNERS = [METRICS["bilinear"], parse("mol(components=2,size=2)"), parse("mlp(hidden=3)")]


def learned() -> dict[str, Any]:
    weights: dict[str, Any] = {}
    for metric in LEARNERS:
        assert isinstance(metric, LearnedMetric)
        weights |= metric.start(3, seed=1).weights()
    rng = np.random.default_rng(0)
    return {**weights, **{bank_name(m): rng.standard_normal((9, 3)).astype(np.float32) for m in MODALITIES}}


def with_weights(weights: Any = None) -> Alignment:
    return replace(alignment(), weights=learned() if weights is None else weights)


def test_weights_load_as_they_were_saved(tmp_path: Path) -> None:
    saved = with_weights()
    saved.save(tmp_path / "a")
    loaded = Alignment.load(tmp_path / "a")
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.weights.keys() == saved.weights.keys()
    for name, tensor in saved.weights.items():
        assert same_arrays(tensor, loaded.weights[name])
    tensors = safetensors.numpy.load_file(tmp_path / "a" / WEIGHTS)
    assert set(tensors) == {
        "image.mean",
        "image.weight",
        "text.mean",
        "text.weight",
        *(f"metric/{name}" for name in saved.weights),
    }
    Q, X = (np.random.default_rng(seed).standard_normal((4, 3)) for seed in (1, 2))
    for metric in [*LEARNERS, parse("dot+nnn(k=9)"), parse("bilinear+nnn(k=3)")]:
        for modality in MODALITIES:
            one, other = (a.metric(metric, items=modality, device="cpu") for a in (saved, loaded))
            np.testing.assert_array_equal(one.score(Q, X), other.score(Q, X))


def test_a_metric_that_learns_nothing_is_ready_as_it_is() -> None:
    for metric in (METRICS["cosine"], METRICS["chi2"]):
        assert alignment().metric(metric, items="image") == metric


def test_a_metric_that_was_not_learned_says_how_to_get_it() -> None:
    one = with_weights()
    for text in ("mlp", "mol", "bilinear(rank=2)", "mlp(hidden=4)"):
        metric = parse(text)
        message = f"metric {metric}; fit one with `modalign fit --metric '{metric}'`"
        with pytest.raises(MetricError, match=re.escape(message)):
            one.metric(metric, items="image")
    with raises(MetricError, 9):
        one.metric(parse("dot+nnn(k=10)"), items="image")


def test_weights_are_part_of_the_fingerprint() -> None:
    base = learned()
    bilinear = "bilinear(rank=16,blocks=8)/left"
    nudged = base[bilinear].copy()
    nudged[0, 0] = np.nextafter(nudged[0, 0], np.float32(np.inf))
    found = [
        {},
        base,
        {**base, bilinear: nudged},
        {**base, bilinear: base[bilinear].T.copy()},
        {**base, bilinear: base[bilinear].astype(np.float64)},
        {**base, "nnn/image": base["nnn/text"], "nnn/text": base["nnn/image"]},
        {name: tensor for name, tensor in base.items() if name != "nnn/image"},
        {name.replace("mlp(hidden=3)", "mlp(hidden=4)"): tensor for name, tensor in base.items()},
    ]
    assert len({with_weights(weights).fingerprint for weights in found}) == len(found)
    assert with_weights(dict(reversed(base.items()))).fingerprint == with_weights().fingerprint
    turned = {name: np.asfortranarray(tensor) for name, tensor in base.items()}
    assert with_weights(turned).fingerprint == with_weights().fingerprint
    assert with_weights({}).fingerprint == alignment().fingerprint


@pytest.mark.parametrize(
    "name", ["metric/bilinear(rank=16,blocks=8)/left", "metric/mlp(hidden=3)/dim", "metric/nnn/image"]
)
@pytest.mark.parametrize("change", ["value", "gone", "type", "renamed"])
def test_weights_of_metrics_that_were_changed_are_refused(name: str, change: str, tmp_path: Path) -> None:
    with_weights().save(tmp_path / "a")
    tensors = safetensors.numpy.load_file(tmp_path / "a" / WEIGHTS)
    tensor = tensors.pop(name)
    if change == "value":
        tensor.flat[0] += 1
        tensors[name] = tensor
    elif change == "type":
        tensors[name] = tensor.astype(np.float16)
    elif change == "renamed":
        tensors[f"{name}2"] = tensor
    safetensors.numpy.save_file(tensors, tmp_path / "a" / WEIGHTS)
    with pytest.raises(AlignmentError, match=r"card or weights were changed: fit it again"):
        Alignment.load(tmp_path / "a")


def test_a_weights_file_with_metrics_that_was_damaged_is_refused(tmp_path: Path) -> None:
    with_weights().save(tmp_path / "a")
    content = (tmp_path / "a" / WEIGHTS).read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "a" / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(AlignmentError, match="is damaged"):
            Alignment.load(tmp_path / "a")
    flipped = bytearray(content)
    flipped[-1] ^= 1
    (tmp_path / "a" / WEIGHTS).write_bytes(bytes(flipped))
    with pytest.raises(AlignmentError, match="card or weights were changed"):
        Alignment.load(tmp_path / "a")


def test_an_alignment_of_the_first_releases_has_no_offset_and_knows_nothing_of_what_was_seen(tmp_path: Path) -> None:
    made = alignment()
    made.save(tmp_path / "a")
    card = json.loads((tmp_path / "a" / CARD).read_text())
    for name in LATER:
        del card[name]
    (tmp_path / "a" / CARD).write_text(json.dumps(card))
    loaded = Alignment.load(tmp_path / "a")
    assert loaded.fingerprint == made.fingerprint
    assert loaded.seen == {}
    assert loaded.metric(Cosine(), "image") == Cosine()
