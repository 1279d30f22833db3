"""What an offset for seen items does not change is said by the push and by the audit, each limit once a modality."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.modality import MODALITIES, Modality
from alignment.sets.hold_out import HoldOut
from connector.releases import seen_offset
from connector.releases.seen_offset import limits_of_offset, offset_warnings
from tests.support.slow import slow_unless
from tests.support.world import World, audit, opened, opened_world, pairs, the_set

N = 12
OFFSETS: dict[Modality, float] = {"image": 0.3125, "text": 0.1875}
NOBODY = HoldOut(1e-9)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opened_world("edge", tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("sample", [1, 256])  # points that are looked at before the store is asked for a kind
@pytest.mark.parametrize(
    ("seen", "metric", "layout", "values"),
    slow_unless(
        lambda case: case[0] == N or "quantization" in case[2],
        [
            (5, "cosine", {}, []),
            (5, "chi2", {"quantization": "scalar"}, []),
            (0, "cosine", {}, ["no image", "no text"]),
            (N, "euclid", {}, ["every image", "every text"]),
            (5, "mlp", {}, ["mlp", "mlp"]),
            (5, "cosine", {"quantization": "binary"}, ["binary", "binary"]),
            (N, "mlp", {}, ["every image", "mlp", "every text", "mlp"]),
        ],
    ),
)
def test_each_limit_is_said_by_the_push_and_by_the_audit(
    world: World,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    seen: int,
    metric: str,
    layout: dict[str, Any],
    values: list[str],
    sample: int,
) -> None:
    monkeypatch.setattr(seen_offset, "SAMPLE", sample)
    parts = pairs(N)
    known = [part.take(range(seen)) for part in parts] if seen else pairs(N, seed=9)
    world.alignment(hold_out=NOBODY, seen=known, offsets=OFFSETS)
    (release,) = world.push(world.set("s", *parts), metrics=[metric], **layout).releases
    warned = [record.getMessage() for record in caplog.records if "for seen" in record.getMessage()]
    found = audit(opened(world, metric), world.store, the_set(world), queries="all", gallery="all")
    findings = [finding for finding in found.findings if "for seen" in finding]
    for sentences in (warned, findings, list(offset_warnings(release, world.store))):
        assert len(sentences) == len(values)
        for sentence, own in zip(sentences, values, strict=True):
            assert own in sentence
    for sentence in warned:
        assert any(f"{OFFSETS[modality]}" in sentence and modality in sentence for modality in MODALITIES)


def test_without_an_offset_or_without_items_there_is_nothing_to_say(world: World) -> None:
    parts = pairs(N)
    world.alignment(hold_out=NOBODY, seen=pairs(N, seed=9))
    (release,) = world.push(world.set("s", *parts), metrics=["mlp"]).releases
    assert list(offset_warnings(release, world.store)) == []
    world.alignment("b", hold_out=NOBODY, seen=parts, offsets=OFFSETS)
    (of_images,) = world.push(world.set("t", parts[0]), "b", metrics=["cosine"], collection="other").releases
    assert [("image" in sentence, "text" in sentence) for sentence in offset_warnings(of_images, world.store)] == [
        (True, False)
    ]
    assert list(limits_of_offset(of_images, "text", has_seen=False, has_others=False)) == []
