"""Two embedding sets with the same keys in one collection: refused before a point is replaced."""

from connector.errors import MismatchError
from tests.support.errors import raises
from tests.support.world import KINDS, World, pairs, world_over

world = world_over(*KINDS)


def test_a_set_with_the_keys_of_another_is_refused_and_changes_nothing(world: World) -> None:
    first = world.set("first", *pairs(5))
    world.push(first)
    before = world.snapshot()
    with raises(MismatchError, "first", "second", code="sets-share-keys"):
        world.push(world.set("second", *pairs(6, seed=1)))
    assert world.snapshot() == before
    assert world.push(first).counts == {"unchanged": 10}


def test_sets_of_other_keys_share_a_collection(world: World) -> None:
    world.push(world.set("first", *pairs(5)))
    second = world.set("second", *pairs(5, prefix="more-"))
    assert world.push(second).counts == {"written": 10}
    assert world.push(second).counts == {"unchanged": 10}
