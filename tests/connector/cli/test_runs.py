"""The command `rejects`."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.support.cli import done, modalign
from tests.support.fakes import fake_pairs, write_manifest


class TestRejectsCommand:
    @pytest.fixture
    def refused(self, home: Path, tmp_path: Path) -> tuple[Path, int]:
        """A home with an ingest that refused two images, and the number of that run."""
        rows = [{"key": f"x{number}", "image": f"none-{number}.png"} for number in range(2)]
        manifest = write_manifest(tmp_path / "m.jsonl", fake_pairs(tmp_path, 4, seed=1), *rows)
        ended = modalign("ingest", manifest, "--into", "new", "--alignment", "a", "--json", "--home", home)
        assert ended.code == 4
        return home, ended.document["run"]

    def test_counted_by_reason(self, refused: tuple[Path, int]) -> None:
        home, run = refused
        document = done("rejects", run, "--by-reason", "--json", "--home", home).document
        assert document == {"run": run, "by_reason": [{"stage": "read", "reason": "image-missing", "count": 2}]}
        assert "image-missing" in done("rejects", "--by-reason", "--home", home).out

    def test_exported(self, refused: tuple[Path, int], tmp_path: Path) -> None:
        home, run = refused
        done("rejects", run, "--export", tmp_path / "r.jsonl", "--home", home)
        printed = done("rejects", run, "--export", "-", "--home", home).out
        assert (tmp_path / "r.jsonl").read_text() == printed
        lines = [json.loads(line) for line in printed.splitlines()]
        assert [(line["run"], line["key"], line["position"]) for line in lines] == [(run, "x0", 5), (run, "x1", 6)]

    def test_tried_again(self, refused: tuple[Path, int], tmp_path: Path) -> None:
        home, run = refused
        Image.new("RGB", (8, 8), "red").save(tmp_path / "none-0.png")
        ended = modalign("rejects", run, "--retry", "--json", "--home", home)
        counts = ended.document["counts"]
        assert (ended.code, counts["encoded"], counts["rejected"]) == (4, 1, 1)
        Image.new("RGB", (8, 8), "blue").save(tmp_path / "none-1.png")
        assert done("rejects", run, "--retry", "--home", home)
        assert done("status", "--json", "--home", home).document["releases"][-1]["points"] == 10

    def test_a_run_that_cannot_be_tried_again(self, home: Path) -> None:
        runs = done("status", "-n", 1000, "--json", "--home", home).document["runs"]
        fit = next(run["run"] for run in runs if run["command"] == "fit")
        ended = modalign("rejects", fit, "--retry", "--home", home)
        assert (ended.code, "is of `modalign fit`" in ended.err) == (2, True)

    def test_one_thing_at_a_time(self, unbroken: Path) -> None:
        assert "exclude each other" in modalign("rejects", "--retry", "--by-reason", "--home", unbroken).error
