"""What `status COLLECTION` says of a cluster, from the recorded answers of one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connector.cli.cluster_tables import print_replicas, replicas_document
from connector.errors import StoreUnavailableError
from connector.home import Home
from connector.stores.qdrant import QdrantStore
from connector.stores.replicas import Replicas
from tests.support.cli import done
from tests.support.recorded_cluster import recorded_node


def replicas_in(state: str, *, tells_of_others: bool = True) -> dict[str, Replicas]:
    with recorded_node(state) as node, QdrantStore.connect(node.url) as store:
        node.tells_of_others = tells_of_others
        replicas = store.replicas("c")
    assert replicas is not None
    return {"release": replicas}


def test_replicas_that_differ_are_shown_with_their_points(capsys: pytest.CaptureFixture[str]) -> None:
    releases = replicas_in("replicas differ")
    document = json.loads(json.dumps(replicas_document(releases)))["release"]
    points = [(row["shard"], row["points"], row["state"]) for row in document["replicas"]]
    assert sorted(points) == sorted(
        [(shard, count, "Active") for shard, counts in ((0, (16, 12, 16)), (1, (14, 8, 14))) for count in counts]
    )
    assert (document["away"], document["transfers"]) == ([], [])
    print_replicas(releases)
    shown = capsys.readouterr().out
    for text in (*document["differences"], "searches: possible", "writes: possible", "switches: possible"):
        assert f"release: {text}" in shown


def test_a_replica_that_is_lost_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    (replicas,) = replicas_in("replicas differ").values()
    first, second = replicas.shards
    releases = {"release": replace(replicas, shards=[replace(first, replicas=first.replicas[1:]), second])}
    (lost,) = replicas_document(releases)["release"]["lost"]
    assert "shard 0 has 2 of 3 replicas" in lost
    print_replicas(releases)
    assert f"release: {lost}" in capsys.readouterr().out


@pytest.mark.parametrize("told", [True, False])
def test_what_is_not_known_of_other_nodes_is_said_their_versions_too(
    told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """gRPC tells nothing of them, nor does an older server, or one that is asked with a token of few rights."""
    releases = replicas_in("replicas differ", tells_of_others=told)
    document = replicas_document(releases)["release"]
    print_replicas(releases)
    if told:
        assert document["not_told"] is None
    else:
        assert "versions" in document["not_told"]
        assert f"release: {document['not_told']}" in capsys.readouterr().out


@pytest.mark.parametrize(("state", "away", "switches"), [("a node is away", 1, True), ("no majority", 2, False)])
def test_nodes_that_are_away_and_what_is_possible_without_them(
    state: str, away: int, switches: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = replicas_in(state)
    document = replicas_document(releases)["release"]
    assert len(document["away"]) == away
    assert (document["possible"]["switches"] == "possible") == switches
    assert {row["points"] for row in document["replicas"] if row["node"] == "away"} == {None}
    print_replicas(releases)
    shown = capsys.readouterr().out
    for node in document["away"]:
        assert f"release: away: {node['address']} (peer {node['peer']})" in shown
    for what, answer in document["possible"].items():
        assert f"release: {what}: {answer}" in shown


def test_replicas_are_shown_where_points_cannot_be_counted(unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with two of three nodes away, when they are needed most."""
    replicas = replicas_in("replicas differ")

    def away(*_: Any) -> None:
        raise StoreUnavailableError("two nodes are away")

    monkeypatch.setattr(Home, "stored", away)
    monkeypatch.setattr(Home, "replicas", lambda *_: replicas)
    ended = done("status", "things", "--json", "--home", unbroken)
    assert ended.document["replicas"] == json.loads(json.dumps(replicas_document(replicas)))
    assert "two nodes are away" in ended.err
