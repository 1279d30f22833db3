"""What the replicas of a collection allow, in words."""

import pytest

from connector.stores.replicas import Node, Replica, Replicas, Shard, Transfer

HERE, THERE, AWAY, GONE, QUIET = (
    Node(1, "http://one/", away=False),
    Node(2, "http://two/", away=False),
    Node(3, "http://three/", away=True),
    Node(4, "http://four/", away=True),
    Node(5),
)


def collection(*replicas: Replica, factor: int = 1, nodes: tuple[Node, ...] = (HERE, THERE, AWAY)) -> Replicas:
    return Replicas({node.peer: node for node in nodes}, [Shard(0, replicas)], (), factor)


class TestDifferences:
    @pytest.mark.parametrize(
        ("points", "expected"),
        [
            ((471, 383), "471, 383"),
            ((471, 471, 383), "471, 471, 383"),
            ((0, 1), "0, 1"),
            ((5, 5), None),
            ((5, None), None),  # one that nobody can count
            ((5, None, 6), "5, 6"),
        ],
    )
    def test_numbers_of_points_that_differ_are_named(
        self, points: tuple[int | None, ...], expected: str | None
    ) -> None:
        replicas = [Replica(node, "Active", count) for node, count in zip((HERE, THERE, AWAY), points, strict=False)]
        differences = collection(*replicas).differences
        assert bool(differences) == (expected is not None)
        for difference in differences:
            assert f"replicas of shard 0 differ: {expected} (" in difference
            assert f"{points[0]} points on {HERE}" in difference

    @pytest.mark.parametrize("state", ["Partial", "Dead", "Recovery", "Initializing", "Listener"])
    def test_a_replica_that_is_not_searched_may_lack_points(self, state: str) -> None:
        assert collection(Replica(HERE, "Active", 9), Replica(THERE, state, 3)).differences == []


class TestLost:
    def of(self, *nodes: Node, factor: int = 3) -> Replicas:
        shards = [Shard(0, [Replica(node, "Active") for node in nodes])]
        known = {node.peer: node for node in (HERE, THERE, AWAY)}
        return Replicas(known, shards, (), 3, factor)

    def test_a_shard_with_fewer_replicas_than_it_should_have_is_named_and_where_one_may_be_made(self) -> None:
        (lost,) = self.of(HERE, AWAY).lost
        assert "shard 0 has 2 of 3 replicas" in lost
        assert f"on {THERE}, by" in lost
        assert "replicate_shard" in lost

    def test_none_can_be_made_on_a_node_that_is_away(self) -> None:
        (lost,) = self.of(HERE, THERE).lost
        assert "once a node answers that holds none" in lost
        assert str(AWAY) not in lost

    def test_a_replica_is_not_lost_because_its_node_is_away_nor_where_there_are_too_few_nodes(self) -> None:
        assert self.of(HERE, THERE, AWAY).lost == []
        assert self.of(HERE, THERE, AWAY, factor=5).lost == []
        assert self.of(HERE, factor=1).lost == []


class TestPossible:
    @pytest.mark.parametrize(
        ("replicas", "factor", "searches", "writes"),
        [
            ([(HERE, "Active"), (THERE, "Active")], 2, True, True),
            ([(HERE, "Active"), (AWAY, "Active")], 1, True, True),
            ([(HERE, "Active"), (AWAY, "Active")], 2, True, False),
            ([(HERE, "Active"), (AWAY, "Dead")], 2, True, True),  # it takes all points when it is back
            ([(HERE, "Active"), (THERE, "Active"), (AWAY, "Active")], 2, True, True),
            ([(HERE, "Active"), (THERE, "Active"), (AWAY, "Active")], 3, True, False),
            ([(HERE, "Active"), (THERE, "Active"), (AWAY, "Active")], 9, True, False),
            ([(AWAY, "Active")], 1, False, False),
            ([(HERE, "Dead"), (AWAY, "Active")], 1, False, False),
            ([(HERE, "Partial"), (AWAY, "Active")], 1, False, False),
            ([(HERE, "Partial"), (THERE, "Active")], 2, True, True),
        ],
    )
    def test_searches_and_writes(
        self, replicas: list[tuple[Node, str]], factor: int, searches: bool, writes: bool
    ) -> None:
        possible = collection(*(Replica(node, state) for node, state in replicas), factor=factor).possible
        assert (possible["searches"] == "possible", possible["writes"] == "possible") == (searches, writes)
        assert possible["switches"] == "possible"

    def test_without_a_majority_aliases_stay_and_no_replica_is_given_up(self) -> None:
        possible = collection(Replica(HERE, "Active"), Replica(AWAY, "Active"), nodes=(HERE, AWAY, GONE)).possible
        assert possible["searches"] == "possible"
        assert "1 of 3" in possible["switches"]
        assert possible["writes"] != "possible"

    def test_a_half_is_no_majority(self) -> None:
        assert not collection(Replica(HERE, "Active"), nodes=(HERE, THERE, AWAY, GONE)).has_majority

    def test_what_is_not_told_is_not_claimed(self) -> None:
        possible = collection(Replica(QUIET, "Active"), nodes=(QUIET,)).possible
        assert "possible" not in possible.values()


def test_a_transfer_names_both_nodes() -> None:
    assert str(Transfer(3, HERE, AWAY)) == f"shard 3 from {HERE} to {AWAY}"
