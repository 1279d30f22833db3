"""What the rows of a set become: which items were held out, seen by the fit or new, and what their points carry."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid5

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from alignment.metrics import Guarantee, parse
from alignment.modality import MODALITIES, Modality
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from connector.rejects import Reason
from connector.releases.aligned_payload import ALIGNED, unpacked
from connector.releases.points import NAMESPACE, point_id, point_ids, project
from connector.releases.release import Release
from tests.support.world import (
    LATENT,
    World,
    alignment,
    embedded,
    latent,
    opened_world,
    pairs,
    rows,
    stored,
)

N = 12
# One of each distance and guarantee, and a correction.
EACH_FORM = [str(parse(text)) for text in ("cosine", "euclid", "w1", "chi2", "mol", "mlp", "dot+nnn")]
OFFSETS: dict[Modality, float] = {"image": 0.2, "text": 0.1}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opened_world("edge", tmp_path) as opened:
        yield opened


def take(part: Rows, mask: list[bool]) -> Rows:
    return part.take([number for number, chosen in enumerate(mask) if chosen])


def splits(part: Rows, **options: object) -> list[str]:
    projected = project(alignment(**options), part, {})  # type: ignore[arg-type]
    return [payload["split"] for payload in projected.payloads]


@given(st.lists(st.text(), max_size=5), st.sampled_from(MODALITIES))
def test_an_id_is_the_uuid5_of_modality_and_key(keys: list[str], modality: Modality) -> None:
    expected = [str(uuid5(NAMESPACE, f"{modality}\0{key}")) for key in keys]
    assert point_ids(modality, keys) == expected
    assert [point_id(modality, key) for key in keys] == expected


@pytest.mark.parametrize("text", ['{"a": 1}', '  {"a": 1}', '{"a": 1}\n ', '\t{"a": 1}  '])
def test_white_space_around_a_payload_says_nothing(text: str) -> None:
    (part, _) = pairs(2)
    projected = project(alignment(), replace(part, payloads=[text, "{}"]), {})
    assert not projected.refused
    assert [payload.get("a") for payload in projected.payloads] == [1, None]


@pytest.mark.parametrize("text", ['{"a": 1} {}', '{"a": 1},', "[1]", "1", "", '{"a": NaN}', '{"a": 1'])
def test_what_is_no_json_object_is_refused_alone(text: str) -> None:
    (part, _) = pairs(3)
    projected = project(alignment(), replace(part, payloads=["{}", text, "{}"]), {})
    assert {row: refusal.reason for row, refusal in projected.refused.items()} == {1: Reason.PAYLOAD_NOT_JSON}
    assert projected.rows.keys == [part.keys[0], part.keys[2]]


@pytest.mark.slow
@given(st.lists(st.booleans(), min_size=N, max_size=N), st.integers(0, 99), st.sampled_from([0.01, 0.4, 0.9]))
def test_an_item_is_held_out_or_seen_by_its_content_or_new(seen: list[bool], seed: int, share: float) -> None:
    hold_out = HoldOut(share, seed)
    for part in pairs(N):
        held = hold_out.held_out(part.groups).tolist()
        fitted = [was and not out for was, out in zip(seen, held, strict=True)]
        assume(any(fitted))  # there is no fit that saw nothing
        found = splits(part, hold_out=hold_out, seen=[take(part, fitted)])
        expected = ["held-out" if out else "fitted" if was else "new" for out, was in zip(held, fitted, strict=True)]
        assert found == expected


def test_an_alignment_that_does_not_record_what_it_saw_counts_all_but_held_out_items_as_seen() -> None:
    """As releases of the first versions were written: the same push again writes the same payloads."""
    hold_out = HoldOut(0.4, 3)
    for part in pairs(N):
        held = hold_out.held_out(part.groups)
        assert splits(part, hold_out=hold_out) == ["held-out" if out else "fitted" for out in held]
    assert {"held-out", "fitted"} == set(splits(pairs(N)[0], hold_out=hold_out))


def test_items_of_a_modality_that_took_no_part_are_new() -> None:
    image, text = pairs(N)
    hold_out = HoldOut(0.01, 0)
    assert set(splits(text, hold_out=hold_out, seen=[image])) == {"new"}
    assert set(splits(image, hold_out=hold_out, seen=[image])) == {"fitted"}


def test_the_key_and_group_of_an_item_do_not_make_it_seen() -> None:
    """One that is encoded anew with another content is new; one that returns under another name is seen."""
    (image, _), hold_out = pairs(N), HoldOut(0.01, 0)
    again = rows("image", embedded("image", latent(N, seed=8)), keys=image.keys)
    renamed = rows("image", image.vectors, keys=[f"other {key}" for key in image.keys])
    assert set(splits(again, hold_out=hold_out, seen=[image])) == {"new"}
    assert set(splits(renamed, hold_out=hold_out, seen=[image])) == {"fitted"}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, dict[str, Release], dict[str, Release]]]:
    """Releases of one set under every metric, without an offset and with one."""
    parts, hold_out = pairs(N), HoldOut(0.3, 1)
    seen = [take(part, [number % 2 == 0 for number in range(N)]) for part in parts]
    with opened_world("edge", tmp_path_factory.mktemp("world")) as world:
        embedding_set = world.set("s", *parts)
        world.alignment("plain", hold_out=hold_out, seen=seen)
        world.alignment("lowered", hold_out=hold_out, seen=seen, offsets=OFFSETS)
        plain, lowered = (
            {str(release.metric): release for release in of_name.releases}
            for of_name in (
                world.push(embedding_set, name, metrics=EACH_FORM, collection=name) for name in ("plain", "lowered")
            )
        )
        yield world, plain, lowered


@pytest.mark.slow
@pytest.mark.parametrize("metric", EACH_FORM)
def test_points_carry_whether_they_were_seen_where_the_alignment_has_an_offset(
    pushed: tuple[World, dict[str, Release], dict[str, Release]], metric: str
) -> None:
    world, plain, lowered = pushed[0], pushed[1][metric], pushed[2][metric]
    for modality in MODALITIES:
        ours, theirs = (stored(world.store, release.name, modality) for release in (lowered, plain))
        dims = [release.lowerings[modality].dim for release in (plain, lowered)]
        splits = {id_: payload["split"] for id_, (_, payload) in ours.items()}
        assert splits == {id_: payload["split"] for id_, (_, payload) in theirs.items()}
        assert set(splits.values()) == {"held-out", "fitted", "new"}
        for id_, (vector, payload) in ours.items():
            if vector is None:
                continue
            was = payload["split"] == "fitted"
            if lowered.guarantee is Guarantee.EXACT:
                assert ALIGNED not in payload
            else:
                aligned, without = (unpacked([of[id_][1][ALIGNED]])[0] for of in (ours, theirs))
                assert without.shape == (LATENT,)
                np.testing.assert_array_equal(aligned, [*without, float(was)])
            assert dims[1] == dims[0] if metric.startswith("mlp") else dims[1] > dims[0]
            # Beside the equal columns of a query under Dot, those of an item add up to what is taken off.
            assert (abs(vector.values[dims[0] :].sum()) > 1e-3) == (was and dims[1] > dims[0])


def test_both_modalities_have_one_form_where_only_one_has_an_offset(world: World) -> None:
    parts = pairs(N)
    world.alignment("a", seen=parts, offsets={"image": 0.2, "text": 0.0})
    (release,) = world.push(world.set("s", *parts), metrics=["cosine"]).releases
    shapes = {(lowering.distance, lowering.dim) for lowering in release.lowerings.values()}
    assert shapes == {("Dot", LATENT + 16)}
    assert release.row.dim == LATENT + 16
    assert release.row.distance == "Dot"
    assert str(release.metric) == release.row.metric == "cosine"
    assert {m: release.alignment.metric(parse("cosine"), m).offset for m in MODALITIES} == {  # type: ignore[attr-defined]
        "image": 0.2,
        "text": 0.0,
    }
