"""Releases that nobody asked for by name are announced: each costs as much as the first."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from alignment.model.alignment import Alignment
from connector.push.session import metrics_to_push
from connector.requests import PushRequest
from tests.support.cli import done, modalign
from tests.support.world import alignment


def fitted_for(*metrics: str) -> Alignment:
    made = alignment()
    return replace(made, card=replace(made.card, metrics=list(metrics)))


def asking_for(*metrics: str, alignment: str = "a") -> PushRequest:
    return PushRequest(set="s", into="c", alignment=alignment, metrics=metrics)


@pytest.mark.parametrize("requested", [["dot"], ["dot", "euclid", "dot"]])
def test_what_is_requested_is_pushed_without_a_word(requested: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        metrics = metrics_to_push(asking_for(*requested), fitted_for("cosine", "js"))
    assert [str(metric) for metric in metrics] == list(dict.fromkeys(requested))
    assert caplog.messages == []


def test_the_only_metric_of_an_alignment_needs_no_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert [str(metric) for metric in metrics_to_push(asking_for(), fitted_for("js"))] == ["js(map=split)"]
    assert caplog.messages == []


def test_all_metrics_of_an_alignment_are_named_with_the_way_to_choose(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert len(metrics_to_push(asking_for(alignment="many"), fitted_for("cosine", "dot", "js"))) == 3
    (line,) = caplog.messages
    assert all(word in line for word in ("many", "3 metrics", "cosine, dot, js(map=split)", "--metric"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["push pairs", "ingest CORPUS"])
def test_both_commands_say_so_before_they_write(home: Path, corpus: Path, command: str) -> None:
    done(
        "fit",
        "pairs",
        "--alignment",
        "two",
        "--method",
        "ridge",
        "--metric",
        "cosine",
        "--metric",
        "dot",
        "--home",
        home,
    )
    words = [str(corpus) if word == "CORPUS" else word for word in command.split()]
    ended = modalign(*words, "--into", "new", "--alignment", "two", "--json", "--home", home)
    assert {release["metric"] for release in ended.document["releases"]} == {"cosine", "dot"}
    lines = ended.err.splitlines()
    (announced,) = [place for place, line in enumerate(lines) if "--metric" in line]
    (written,) = [place for place, line in enumerate(lines) if " rows in " in line]
    assert announced < written
