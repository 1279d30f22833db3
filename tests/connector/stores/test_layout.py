"""Layouts of collections: from flags, from a TOML file, and as the embedded engine has them."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from alignment.errors import VectorError
from alignment.metrics import Distance
from alignment.vectors import FloatArray
from connector.cli import group as cli
from connector.cli import main  # noqa: F401  adds every command
from connector.cli.push_options import layout_options
from connector.errors import MismatchError, PointsRefusedError, SettingsError
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.edge import EdgeStore
from connector.stores.layout import BOUNDS, COMPRESSIONS, FIELDS, Layout, checked_layout, read_layout
from connector.stores.points import Points
from tests.support.errors import raises
from tests.support.world import World, opened_world, pairs

N, DIM, K = 800, 64, 10
WHOLE = """
m = 32
ef_construct = 200
indexing_threshold = 5000
quantization = "binary"
compression = "two_bits"
oversampling = 3
rescore = false
datatype = "float16"
vectors_on_disk = true
hnsw_on_disk = true
payload_on_disk = false
shards = 3
replication_factor = 2
write_consistency_factor = 2
caption_payload = false

[payload_indexes]
language = "keyword"
year = "integer"
"""


class TestReading:
    def test_every_setting_can_stand_in_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "l.toml").write_text(WHOLE)
        read = read_layout(tmp_path / "l.toml")
        assert set(read) == set(FIELDS)
        layout = Layout(**read)
        assert (layout.m, layout.compression, layout.rescore, layout.shards) == (32, "two_bits", False, 3)
        assert layout.payload_indexes == {"language": "keyword", "year": "integer"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("hnsw_m = 3", r"l\.toml: unknown setting hnsw_m; known are payload_indexes, m, ef_construct"),
            ("[hnsw]\nm = 3", "unknown setting hnsw; known are"),
            ("m = 'many'", "m: .*valid integer"),
            ("m = true", "m: .*valid integer"),
            ("m = 2.5", "m: .*integer"),
            ("m = 1979-05-27", "m: .*valid integer"),
            ("m = 1", "m: expected 2 to 1024, got 1"),
            ("oversampling = 0.5", "oversampling: expected 1 to 1000, got 0.5"),
            ("oversampling = nan", "oversampling: expected 1 to 1000, got nan"),
            ("oversampling = inf", "oversampling: expected 1 to 1000, got inf"),
            ("oversampling = 1e308", r"oversampling: expected 1 to 1000, got 1e\+308"),
            ("oversampling = -1", "oversampling: expected 1 to 1000, got -1"),
            ("m = 1e20", "m: .*integer"),
            ("m = 100000000000000000000", "m: expected 2 to 1024, got 100000000000000000000"),
            (f"m = {'9' * 5000}", "cannot be read as TOML"),
            ("ef_construct = -1", "ef_construct: expected 4 to 100000, got -1"),
            ("shards = 4294967297", "shards: expected 1 to 10000, got 4294967297"),
            ("quantization = 'octonary'", "quantization: .*'scalar', 'binary', 'product' or 'turbo'"),
            ("compression = 'x8'", "compression: expected none with quantization None, got x8"),
            ("quantization = 'scalar'\ncompression = 'x8'", "expected none with quantization scalar"),
            ("quantization = 'turbo'\ncompression = 'x8'", "expected bits4 or bits1 or .* turbo, got x8"),
            ("write_consistency_factor = 2", "expected at most the replication_factor, 1, got 2"),
            ("payload_indexes = {a = 'date'}", "payload_indexes.a: .*'keyword'"),
            ("payload_indexes = {'my year' = 'integer'}", r'payload_indexes: .*"my year"'),
            ("payload_indexes = {'a..b' = 'integer'}", "payload_indexes: 'a..b' is no path"),
            ("payload_indexes = {a.b = 'integer'}", "payload_indexes.a: "),
            ("payload_indexes = {'a.b' = 'bool', 'a.\"b\"' = 'uuid'}", "field a.b, got bool and uuid"),
            ("payload_indexes = {key = 'integer'}", "field key is written by modalign .* got integer"),
            ("m = ", "cannot be read as TOML"),
        ],
    )
    def test_what_cannot_be_meant(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "l.toml").write_text(text)
        with pytest.raises(SettingsError, match=message):
            read_layout(tmp_path / "l.toml")

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with raises(SettingsError, "no.toml"):
            read_layout(tmp_path / "no.toml")

    @pytest.mark.parametrize("kind", COMPRESSIONS)
    def test_every_compression_is_possible(self, kind: Any) -> None:
        for compression in COMPRESSIONS[kind]:
            options = {"quantization": kind, "compression": compression}
            assert checked_layout(options) == options


class TestFlags:
    """The options of `push` and `ingest`, without the commands behind them."""

    def given(self, *arguments: str) -> dict[str, Any]:
        @click.command()
        @layout_options
        def command(layout: dict[str, Any]) -> None:
            click.echo(json.dumps(layout))

        result = CliRunner().invoke(command, arguments)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        read: dict[str, Any] = json.loads(result.output)
        return read

    def test_none(self) -> None:
        assert self.given() == {"payload_indexes": {}}

    def test_all_of_them_say_what_the_file_says(self, tmp_path: Path) -> None:
        (tmp_path / "l.toml").write_text(WHOLE)
        flags = (
            "--m 32 --ef-construct 200 --indexing-threshold 5000 --quantization binary --compression two_bits "
            "--oversampling 3 --no-rescore --datatype float16 --vectors-on-disk --hnsw-on-disk --payload-in-memory "
            "--shards 3 --replication-factor 2 --write-consistency-factor 2 --payload-index language=keyword "
            "--payload-index year=integer --no-caption-payload"
        )
        assert self.given(*flags.split()) == self.given("--layout", str(tmp_path / "l.toml"))

    def test_flags_go_before_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "l.toml").write_text("m = 32\noversampling = 2\n[payload_indexes]\na = 'keyword'\nb = 'bool'\n")
        flags = ("--layout", str(tmp_path / "l.toml"), "--m", "8", "--payload-index", "a=integer")
        assert self.given(*flags) == {"m": 8, "oversampling": 2, "payload_indexes": {"a": "integer", "b": "bool"}}

    def test_together_they_have_to_make_sense(self, tmp_path: Path) -> None:
        (tmp_path / "l.toml").write_text("quantization = 'product'\ncompression = 'x8'\n")
        with raises(SettingsError, "compression", "bits4"):
            self.given("--layout", str(tmp_path / "l.toml"), "--quantization", "turbo")

    @pytest.mark.parametrize("name", BOUNDS)
    @pytest.mark.parametrize(
        "value", ["nan", "inf", "-inf", "1e308", "1e20", "-1", "0.5", "0", "1" + "0" * 20, "9" * 5000, "", "ten"]
    )
    def test_a_number_that_cannot_be_meant(self, name: str, value: str) -> None:
        option, (least, most) = "--" + name.replace("_", "-"), BOUNDS[name]
        result = CliRunner().invoke(cli.cli, ["push", "s", "--into", "c", "--alignment", "a", option, value])
        assert result.exit_code == 2
        last = result.output.splitlines()[-1]
        assert option in last
        assert value in last
        assert f"{least}<=x<={most}" in last

    @pytest.mark.parametrize("value", ["nan", "0", "1", "-1", "inf", "half"])
    def test_a_share_that_cannot_be_meant(self, value: str) -> None:
        result = CliRunner().invoke(cli.cli, ["fit", "s", "--alignment", "a", "--holdout", value])
        assert result.exit_code == 2
        assert f"expected a number in the range 0<x<1, got '{value}'" in result.output

    @pytest.mark.parametrize("name", BOUNDS)
    def test_the_bounds_themselves_can_be_meant(self, name: str) -> None:
        least, most = BOUNDS[name]
        others: dict[str, Any] = {"replication_factor": most} if name == "write_consistency_factor" else {}
        for meant in (least, most):
            Layout(**{**others, name: meant})
        for value in (least - 1, most + 1, float("nan"), float("inf"), -float("inf")):
            with raises(SettingsError, name, least, most, value):
                Layout(**{**others, name: value})

    def test_nothing_is_created_for_what_cannot_be_meant(self, tmp_path: Path) -> None:
        with opened_world("edge", tmp_path) as world:
            world.alignment()
            embedding_set = world.set("s", *pairs(6))
            wrong: list[dict[str, Any]] = [
                {"oversampling": float("nan")},
                {"m": 10**20},
                {"ef_construct": -1},
                {"shards": 0},
            ]
            for options in wrong:
                with raises(SettingsError):
                    world.push(embedding_set, **options)
            assert world.store.collections() == []
            assert world.provenance.releases.find() == []

    @pytest.mark.parametrize("command", ["push", "ingest"])
    def test_both_commands_have_them(self, command: str) -> None:
        names = {parameter.name for parameter in cli.cli.commands[command].params}
        assert names >= {*FIELDS, "layout_file"}


@pytest.fixture
def vectors(rng: np.random.Generator) -> FloatArray:
    return rng.standard_normal((N, DIM)).astype(np.float32)


def batch(vectors: FloatArray) -> Points:
    ids = [f"00000000-0000-0000-0000-{i:012d}" for i in range(len(vectors))]
    return Points("v", ids, vectors, [{"number": i} for i in range(len(vectors))])


def filled(store: EdgeStore, vectors: FloatArray, distance: Distance = Distance.COSINE, **layout: Any) -> None:
    config = CollectionConfig({"v": VectorConfig(vectors.shape[1], distance)}, **{"indexing_threshold": 10, **layout})
    store.create("c", config)
    store.upsert("c", batch(vectors))
    store.ready("c")


class TestOnEdge:
    @pytest.mark.parametrize(
        ("kind", "compression"),
        [(kind, how) for kind, hows in COMPRESSIONS.items() for how in hows or (None,)],
    )
    def test_quantized_search_finds_enough_when_it_takes_more_and_rescores(
        self, tmp_path: Path, vectors: FloatArray, kind: Any, compression: str | None
    ) -> None:
        """Pitfall 10: oversampling and rescoring belong together; both ways are asked for, and differ."""
        with EdgeStore(tmp_path) as store:
            filled(store, vectors, quantization=kind, compression=compression)
            queries = vectors[:20] + 0.1
            exact = store.search("c", "v", queries, K, exact=True)
            found = {
                (oversampling, rescore): store.search(
                    "c", "v", queries, K, ef=512, oversampling=oversampling, rescore=rescore
                )
                for oversampling in (1.0, 30.0)
                for rescore in (True, False)
            }
        bars = [{hit.id for hit in hits} for hits in exact]
        recall = {
            how: np.mean([len({hit.id for hit in hits} & bar) / K for hits, bar in zip(answer, bars, strict=True)])
            for how, answer in found.items()
        }
        assert recall[30.0, True] > 0.85
        assert recall[30.0, True] >= recall[1.0, True]
        assert recall[30.0, True] >= recall[30.0, False]
        native = {hit.id: hit.raw_score for hit in exact[0]}
        for hit in found[30.0, True][0]:  # the vectors' own scores
            assert hit.raw_score == pytest.approx(native.get(hit.id, hit.raw_score), abs=1e-5)
        quantized = [hit.raw_score for hit in found[30.0, False][0]]
        assert quantized != pytest.approx([native.get(hit.id, 9.0) for hit in found[30.0, False][0]], abs=1e-6)

    @pytest.mark.parametrize("field", ["vectors_on_disk", "hnsw_on_disk", "payload_on_disk"])
    @pytest.mark.parametrize("value", [True, False])
    def test_where_it_is_read_from_changes_no_answer(
        self, tmp_path: Path, vectors: FloatArray, field: str, value: bool
    ) -> None:
        with EdgeStore(tmp_path) as store:
            filled(store, vectors[:400], Distance.COSINE, **{field: value})
            assert store.describe("c").indexed == 400
        with EdgeStore(tmp_path) as store:
            [hits] = store.search("c", "v", vectors[7:8], 1)
            assert hits[0].payload == {"number": 7}

    def test_float16_rounds_and_refuses_what_it_cannot_hold(self, tmp_path: Path, vectors: FloatArray) -> None:
        with EdgeStore(tmp_path) as store:
            filled(store, vectors, Distance.EUCLID, datatype="float16")
            [record] = store.retrieve("c", batch(vectors).ids[:1], vector_name="v")
            assert record.vector is not None
            np.testing.assert_array_equal(record.vector, vectors[0].astype(np.float16).astype(np.float32))
            changed = vectors[:5].copy() + 1
            changed[1, 5] = 70_000
            changed[2] *= 1e-9
            changed[3, 1:] = 1e-9  # of which nothing is seen
            with pytest.raises(PointsRefusedError) as caught:
                store.upsert("c", batch(changed))
            refused = {row: str(reason) for row, (reason, _) in caught.value.refused.items()}
            assert refused == {1: "vector-overflow", 2: "vector-underflow"}
            assert "70000" in caught.value.refused[1].detail
            written = store.retrieve("c", batch(vectors).ids[:5], vector_name="v")
            by_id = {record.id: record.vector for record in written if record.vector is not None}
            for row, expected in enumerate([changed[0], vectors[1], vectors[2], changed[3], changed[4]]):
                np.testing.assert_allclose(by_id[batch(vectors).ids[row]], expected, rtol=1e-3, atol=1e-7)

    def test_float16_holds_every_vector_under_cosine_which_is_normalised_first(
        self, tmp_path: Path, vectors: FloatArray
    ) -> None:
        with EdgeStore(tmp_path) as store:
            scaled = vectors * np.geomspace(1e-2, 1e5, len(vectors), dtype=np.float32)[:, None]
            filled(store, scaled, Distance.COSINE, datatype="float16")
            hits = store.search("c", "v", vectors[:50], 1, exact=True)
            assert [hit.payload["number"] for (hit,) in hits] == list(range(50))

    def test_uint8_holds_whole_numbers_and_nothing_else(self, tmp_path: Path, rng: np.random.Generator) -> None:
        whole = rng.integers(0, 256, (50, DIM)).astype(np.float32)
        with EdgeStore(tmp_path) as store:
            filled(store, whole, Distance.EUCLID, datatype="uint8")
            [record] = store.retrieve("c", batch(whole).ids[:1], vector_name="v")
            assert record.vector is not None
            np.testing.assert_array_equal(record.vector, whole[0])
            for wrong in (0.5, -1.0, 256.0):
                bad = whole[:2].copy()
                bad[1, 0] = wrong
                with pytest.raises(
                    VectorError, match=f"uint8, which holds whole numbers from 0 to 255; .* has {wrong}"
                ):
                    store.upsert("c", batch(bad))

    @pytest.mark.parametrize("options", [{"shards": 2}, {"replication_factor": 2}])
    def test_what_takes_several_machines_is_refused_with_the_reason(self, tmp_path: Path, options: Any) -> None:
        (name,) = options
        with EdgeStore(tmp_path) as store:
            with raises(SettingsError, f"{name} 2"):
                store.create("c", CollectionConfig({"v": VectorConfig(2, Distance.DOT)}, **options))
            assert store.collections() == []


class TestPushing:
    def test_it_is_recorded_and_searched_by(self, world: World) -> None:
        options: dict[str, Any] = {"quantization": "binary", "oversampling": 7.0, "m": 8, "indexing_threshold": 1}
        (release,) = world.push(world.set("s", *pairs(300)), **options).releases
        assert options.items() <= release.row.settings.items()
        assert set(FIELDS) <= set(release.row.settings)
        assert release.quantized_search == {"oversampling": 7.0, "rescore": True}

    def test_nothing_is_left_of_a_push_that_asks_for_what_the_store_has_not(self, world: World) -> None:
        embedding_set = world.set("s", *pairs(5))
        with raises(SettingsError):
            world.push(embedding_set, shards=3)
        assert (world.store.collections(), world.states()) == ([], {})

    def test_a_release_from_before_there_were_such_settings_has_the_defaults(self, world: World) -> None:
        embedding_set = world.set("s", *pairs(5))
        (release,) = world.push(embedding_set).releases
        old = ("payload_indexes", "m", "ef_construct", "indexing_threshold")
        release.row.settings = {name: release.row.settings[name] for name in old}
        world.provenance.releases.save(release.row)
        world.push(embedding_set, oversampling=4.0, datatype="float32")
        with raises(MismatchError, "datatype", "float32", "float16"):
            world.push(embedding_set, datatype="float16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "payload-not-finite"),
        ([1.0, float("inf")], "payload-not-finite"),
        ({"deep": [1 << 63]}, "payload-integer-too-large"),
        (-(1 << 63) - 1, "payload-integer-too-large"),
        ("half a pair: \ud83d", "payload-not-unicode"),
        ({"\ud83d": 1}, "payload-not-unicode"),
    ],
)
@pytest.mark.parametrize("kind", ["edge", "memory"])
@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
def test_payloads_that_no_store_can_hold(tmp_path: Path, kind: str, value: Any, reason: str) -> None:
    """Pitfall 1: refused by name before anything is written; the other points are."""
    with opened_world(kind, tmp_path) as world:
        world.store.create("c", CollectionConfig({"v": VectorConfig(2, Distance.DOT)}))
        points = batch(np.ones((3, 2), np.float32))
        points.payloads[1]["extra"] = value
        with pytest.raises(PointsRefusedError, match="1 point refused, the first is row 1") as raised:
            world.store.upsert("c", points)
        assert [refusal.reason for refusal in raised.value.refused.values()] == [reason]
        assert world.store.count("c") == 2
        points.payloads[1]["extra"] = [1 << 62, -(1 << 63), 1e308, "Ümläut", None, True]
        world.store.upsert("c", points)
        assert world.store.count("c") == 3


def test_a_row_whose_payload_no_store_can_hold_becomes_a_reject(world: World) -> None:
    image, text = pairs(4)
    image.payloads[2] = '{"far": 1e999}'
    pushed = world.push(world.set("s", image, text))
    assert pushed.counts == {"written": 7, "rejected": 1}
    assert world.reasons(pushed.run) == [("image", image.keys[2], "payload-not-finite")]
    assert world.push(world.set("s", image, text)).counts["rejected"] == 1
