"""Corpora on the command line: every format, and broken ones."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alignment.sets.embedding_set import EmbeddingSet
from tests.support.cli import SPECS, done, modalign
from tests.support.fakes import NAN_WORD, FakeImageEncoder, FakeTextEncoder, fake_pairs, write_manifest
from tests.support.sparse_copy import copy_sparse
from tests.support.world import pairs, write_set


class TestBadCorpora:
    """Rows and files that cannot be used are named rejects; the rest is encoded."""

    def rejected(self, home: Path, manifest: Path) -> list[tuple[str, str | None]]:
        ended = modalign("encode", manifest, "--set", "bad", *SPECS, "--json", "--home", home)
        assert ended.code == 4, ended.err
        assert f"`modalign rejects {ended.document['run']}`" in ended.err.splitlines()[-1]
        found = done("rejects", ended.document["run"], "--json", "--home", home).document["rejects"]
        assert EmbeddingSet.open(home / "sets" / "bad").card.counts["image"] >= 3
        return [(reject["reason"], reject["key"]) for reject in found]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"key": "x"}, "row-without-image-or-caption"),
            ({"key": "x", "image": "", "caption": " "}, "row-without-image-or-caption"),
            ({"caption": "red"}, "key-missing"),
            ({"key": "s1-00001", "caption": "red"}, "key-duplicate"),
            ({"key": "x", "image": "images/none.png"}, "image-missing"),
            ({"key": "x", "image": "images"}, "image-not-a-file"),
            ({"key": "x", "image": "text.png"}, "image-unidentified"),
            ({"key": "x", "image": "truncated.png"}, "image-broken"),
            ({"key": "x", "image": "empty.png"}, "image-empty"),
            ({"key": "x", "image": "black.png"}, "vector-zero"),
            ({"key": "x", "image": "thread.png"}, "image-too-elongated"),
            ({"key": "x", "caption": f"a {NAN_WORD}"}, "vector-not-finite"),
            ({"key": "x", "caption": 3}, "caption-not-text"),
            ({"key": "x", "caption": "red", "year": float("nan")}, "payload-not-json"),
            ({"key": "x", "caption": ["red", None]}, "caption-not-text"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_one_bad_row(self, unbroken: Path, tmp_path: Path, row: dict[str, Any], reason: str) -> None:
        manifest = write_manifest(tmp_path / "m.jsonl", [*fake_pairs(tmp_path, 4, seed=1)], row)
        (tmp_path / "text.png").write_text("no picture")
        (tmp_path / "empty.png").touch()
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "whole.png")
        (tmp_path / "truncated.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
        Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
        Image.new("RGB", (257, 1), "red").save(tmp_path / "thread.png")
        ((found, key),) = self.rejected(unbroken, manifest)
        assert found == reason
        assert key is None or key.startswith(str(row.get("key")))

    @pytest.mark.slow
    def test_ingest_takes_them_the_same_way(self, home: Path, tmp_path: Path) -> None:
        manifest = write_manifest(
            tmp_path / "m.jsonl", fake_pairs(tmp_path, 4, seed=1), {"key": "x", "image": "none.png"}
        )
        arguments = ("ingest", manifest, "--into", "new", "--alignment", "a", "--json", "--home", home)
        ended = modalign(*arguments)
        assert (ended.code, ended.document["counts"]["rejected"], ended.document["counts"]["written"]) == (4, 1, 8)
        assert modalign(*arguments, "--max-rejects", 1).code == 0

    def test_ingest_reads_the_texts_of_a_csv_as_the_kinds_of_their_indexes(self, home: Path, tmp_path: Path) -> None:
        lines = ["red,1999,0.5,true", "lime,2007,1e2,false", "navy,MMXX,1,true", "blue,2020,,no", "green,2021,7,true"]
        records = [f"k{number},{line}\n" for number, line in enumerate(lines)]
        (tmp_path / "m.csv").write_text("key,caption,year,price,sold\n" + "".join(records))
        indexes = [f"--payload-index={name}" for name in ("year=integer", "price=float", "sold=bool")]
        arguments = ("ingest", tmp_path / "m.csv", "--into", "new", "--alignment", "a", "--json", "--home", home)
        ended = modalign(*arguments, *indexes)
        assert (ended.code, ended.document["counts"]["rejected"], ended.document["counts"]["written"]) == (4, 2, 5)
        refused = done("rejects", ended.document["run"], "--json", "--home", home).document["rejects"]
        assert [(reject["reason"], reject["key"], reject["detail"]) for reject in refused] == [
            ("payload-not-integer", "k2#0", "year is indexed as integer, got the text 'MMXX'"),
            ("payload-not-bool", "k3#0", "sold is indexed as bool, got the text 'no'"),
        ]
        for condition, expected in (
            ('{"key": "year", "range": {"gte": 2000}}', {"k1#0": 2007, "k3#0": 2020, "k4#0": 2021}),
            ('{"key": "price", "range": {"lt": 50}}', {"k0#0": 1999, "k2#0": None, "k4#0": 2021}),
            ('{"key": "sold", "match": {"value": false}}', {"k1#0": 2007}),
        ):
            options = ("--target", "text", "--filter", f'{{"must": [{condition}]}}', "--json", "--home", home)
            found = done("search", "new", "red", *options).document["found"]
            assert {item["key"]: item["payload"].get("year") for item in found} == expected

    def test_bad_vectors_of_a_set_are_rejected_by_push(self, home: Path) -> None:
        image, text = pairs(10)
        image.vectors[2], text.vectors[5] = np.nan, 0.0
        write_set(home / "sets" / "made", [image, text])
        arguments = ("push", "made", "--into", "new", "--alignment", "a", "--json", "--home", home)
        for _ in range(2):
            ended = modalign(*arguments)
            assert (ended.code, ended.document["counts"]["rejected"]) == (4, 2)
            found = done("rejects", "--json", "--home", home).document["rejects"]
            assert [(r["modality"], r["key"], r["reason"]) for r in found] == [
                ("image", "2", "vector-not-finite"),
                ("text", "5", "vector-zero"),
            ]
            assert [r["points"] for r in ended.document["releases"]] == [18]
        refused = modalign("fit", "made", "--alignment", "b", "--home", home)
        assert "1 image vector cannot be used, the first is key '2': vector-not-finite" in refused.error


class TestOwnColumns:
    """A catalogue with names of its own is encoded, ingested and tried again without renaming anything."""

    COLUMNS = ("--key", "sku", "--image", "photo", "--caption", "title", "--caption", "blurb", "--group", "brand")

    def catalogue(self, directory: Path, count: int = 4) -> Path:
        pairs = fake_pairs(directory, count, seed=7)
        rows = [f"{n};{p.image.name};{p.captions[0]};small, {p.captions[0]};acme{n % 2}" for n, p in enumerate(pairs)]
        (directory / "catalogue.csv").write_text("\n".join(["sku;photo;title;blurb;brand", *rows]))
        return directory / "catalogue.csv"

    def test_encode_and_ingest_take_its_columns(self, home: Path, tmp_path: Path) -> None:
        path = self.catalogue(tmp_path)
        options = (*self.COLUMNS, "--images", tmp_path / "images", "--json", "--home", home)
        document = done("encode", path, "--set", "own", *SPECS, *options).document
        assert (document["image"], document["text"]) == (4, 8)
        document = done("ingest", path, "--set", "own", "--into", "new", "--alignment", "a", *options).document
        assert (document["counts"]["already_in_set"], document["counts"]["written"]) == (12, 12)
        rows = EmbeddingSet.open(home / "sets" / "own").load("text")
        assert rows.keys[:3] == ["0#0", "0#1", "1#0"]
        assert set(rows.groups) == {"acme0", "acme1"}

    def test_a_retry_reads_the_same_columns(self, home: Path, tmp_path: Path) -> None:
        path = self.catalogue(tmp_path)
        (tmp_path / "images" / "s7-00002.png").rename(tmp_path / "away.png")
        options = (*self.COLUMNS, "--images", tmp_path / "images", "--json", "--home", home)
        ended = modalign("encode", path, "--set", "own", *SPECS, *options)
        assert (ended.code, ended.document["image"]) == (4, 3)
        (tmp_path / "away.png").rename(tmp_path / "images" / "s7-00002.png")
        document = done("rejects", ended.document["run"], "--retry", "--json", "--home", home).document
        assert (document["counts"]["encoded"], document["counts"]["already_in_set"]) == (1, 11)

    @pytest.mark.parametrize(
        ("options", "code", "values"),
        [
            (("--key", "no"), 1, ["--key", "'no'", "sku, photo, title"]),
            (("--key", "sku", "--caption", "sku"), 2, ["'sku'", "--caption", "--key"]),
            ((), 1, ["--key", "--caption", "sku, photo, title"]),
            (("--key", "sku", "--caption", "title", "--set", "a/b"), 2, ["a/b"]),
        ],
    )
    def test_wrong_columns_and_names_are_known_before_a_model_is_loaded(
        self,
        options: tuple[str, ...],
        code: int,
        values: list[str],
        unbroken: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        loaded: list[str] = []
        monkeypatch.setattr(FakeImageEncoder, "__init__", lambda self, name, device: loaded.append(name))
        name = () if "--set" in options else ("--set", "own")
        ended = modalign("encode", self.catalogue(tmp_path), *SPECS, *options, *name, "--home", unbroken)
        assert (ended.code, loaded) == (code, [])
        assert [value for value in values if value not in ended.error] == []

    @pytest.mark.parametrize(
        "options",
        [
            ("--fresh-layout", "--m", "7"),
            ("--m", "7"),
        ],
    )
    def test_another_layout_is_refused_before_a_model_is_loaded(
        self, options: tuple[str, ...], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[str] = []
        monkeypatch.setattr(FakeImageEncoder, "__init__", lambda self, name, device: loaded.append(name))
        monkeypatch.setattr(FakeTextEncoder, "__init__", lambda self, name, device: loaded.append(name))
        ingest = ("ingest", self.catalogue(tmp_path), *self.COLUMNS, "--set", "own", "--into", "things")
        ended = modalign(*ingest, "--alignment", "a", *options, "--home", unbroken)
        assert (ended.code, loaded) == (1, [])
        assert [word for word in ("things", "created with", "new collection") if word not in ended.error] == []

    @pytest.mark.parametrize("on", ["local", "local:2"])
    def test_keys_of_another_set_are_refused_before_a_model_is_loaded_and_leave_nothing(
        self, on: str, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[str] = []
        monkeypatch.setattr(FakeImageEncoder, "__init__", lambda self, name, device: loaded.append(name))
        corpus = write_manifest(tmp_path / "m.jsonl", fake_pairs(tmp_path, 2))
        words = ("--into", "things", "--alignment", "a", "--set", "own", "--on", on, "--home", unbroken)
        ended = modalign("ingest", corpus, *words)
        assert (ended.code, ended.error_code, loaded) == (1, "sets-share-keys", [])
        assert "pairs" in ended.error
        assert sorted(path.name for path in (unbroken / "sets").iterdir() if path.is_dir()) == ["pairs"]

    def test_so_they_are_where_the_set_is_there_already_and_it_stays_as_it_was(
        self, home: Path, tmp_path: Path
    ) -> None:
        of_pairs, own, new = fake_pairs(tmp_path, 1)[0], *fake_pairs(tmp_path, 2, seed=1)
        words = ("--into", "things", "--alignment", "a", "--set", "own", "--home", home)
        rows = [{"key": "own", "image": str(own.image), "caption": "own"}]
        told = done("ingest", write_manifest(tmp_path / "1.jsonl", [], *rows), *words).err
        assert "own" in told
        assert "pairs" in told
        rows = [{"key": of_pairs.key, "image": str(of_pairs.image)}, {"key": "own", "caption": "another caption"}]
        before = done("sets", "--json", "--home", home).document
        refused = modalign("ingest", write_manifest(tmp_path / "2.jsonl", [], *rows), *words)
        assert (refused.code, refused.error_code) == (1, "sets-share-keys")
        assert done("sets", "--json", "--home", home).document == before
        assert done("verify", "--home", home).code == 0
        rows = [{"key": "new", "image": str(new.image)}]
        ended = done("ingest", write_manifest(tmp_path / "3.jsonl", [], *rows), *words, "--json")
        assert ended.document["counts"]["written"] == 1
        assert "is new" not in ended.err

    def test_an_image_that_is_refused_shares_no_key(self, home: Path, tmp_path: Path) -> None:
        sound, broken = fake_pairs(tmp_path, 2, seed=1)
        broken.image.write_bytes(b"no picture")
        rows = [
            {"key": "new", "image": str(sound.image)},
            {"key": fake_pairs(tmp_path, 1)[0].key, "image": str(broken.image)},
        ]
        corpus = write_manifest(tmp_path / "m.jsonl", [], *rows)
        ended = modalign(
            "ingest", corpus, "--into", "things", "--alignment", "a", "--set", "own", "--json", "--home", home
        )
        counts = {name: count for name, count in ended.document["counts"].items() if count}
        assert (ended.code, counts) == (4, {"encoded": 1, "rejected": 1, "written": 1})

    def test_a_field_that_is_left_out_does_not_keep_items_from_pruning(self, home: Path, tmp_path: Path) -> None:
        row = {"key": "x", "caption": "red", "year": float("nan")}
        manifest = write_manifest(tmp_path / "m.jsonl", pairs := fake_pairs(tmp_path, 12, seed=1), row)
        arguments = ("ingest", manifest, "--into", "new", "--alignment", "a", "--json", "--home", home)
        assert modalign(*arguments).document["counts"]["rejected"] == 1
        write_manifest(manifest, pairs[1:], row)
        ended = modalign(*arguments, "--prune", "--yes")
        assert (ended.code, ended.document["counts"]["pruned"], ended.document["counts"]["rejected"]) == (4, 2, 1)


class TestFormats:
    """Corpora that are no manifest, and vectors."""

    def archive(self, directory: Path, count: int) -> Path:
        path = directory / "shard-00.tar"
        with tarfile.open(path, "w") as tar:
            for pair in fake_pairs(directory, count, seed=2):
                tar.add(pair.image, f"{pair.key}.png")
                (directory / "caption").write_text(pair.captions[0])
                tar.add(directory / "caption", f"{pair.key}.txt")
            tar.add(pair.image, "../outside.png")
        return path

    def test_an_archive_is_encoded_and_ingested(self, home: Path, tmp_path: Path) -> None:
        self.archive(tmp_path, 5)
        pattern = tmp_path / "shard-{00..00}.tar"
        ended = modalign("encode", pattern, "--set", "tar", *SPECS, "--json", "--home", home)
        assert (ended.code, ended.document["counts"]["encoded"], ended.document["image"]) == (4, 10, 5)
        (refused,) = done("rejects", "--json", "--home", home).document["rejects"]
        assert (refused["reason"], refused["source"]) == ("member-unsafe-name", str(tmp_path / "shard-00.tar"))
        options = ("--set", "tar", "--into", "new", "--alignment", "a", "--format", "webdataset", "--json")
        ended = modalign("ingest", tmp_path / "shard-00.tar", *options, "--max-rejects", 1, "--home", home)
        assert (ended.code, ended.document["counts"]["already_in_set"], ended.document["counts"]["written"]) == (
            0,
            10,
            10,
        )

    @pytest.mark.slow
    @pytest.mark.parametrize(("suffix", "code", "rejected"), [("bak", 1, 0), ("heic", 1, 2)])
    def test_pictures_under_other_names_are_shown_and_not_pruned(
        self, home: Path, tmp_path: Path, suffix: str, code: int, rejected: int
    ) -> None:
        fake_pairs(tmp_path, 6, seed=4)
        (tmp_path / "images" / "read.me").write_text("x")
        arguments = ("ingest", tmp_path / "images", "--into", "new", "--alignment", "a", "--json", "--home", home)
        ended = done(*arguments)
        assert ended.document["counts"]["passed_over"] == 1
        assert "passed over 1 file: 1 .me" in ended.err
        for number in (1, 3):
            path = tmp_path / "images" / f"s4-{number:05d}.png"
            path.rename(f"{path}.{suffix}")
        ended = modalign(*arguments, "--prune", "--yes")
        assert (ended.code, "2 items" in ended.err) == (code, True)
        assert EmbeddingSet.open(home / "sets" / "new").card.counts["image"] == 6
        counts = done("status", "-n", 1, "--json", "--home", home).document["runs"][0]["counts"]
        assert (counts["not_pruned"], counts.get("rejected", 0)) == (2, 2 if rejected else 0)

    def test_a_quote_that_swallows_rows_deletes_none_of_them(self, home: Path, tmp_path: Path) -> None:
        pairs = fake_pairs(tmp_path, 8, seed=5)
        lines = [f"{pair.key},images/{pair.key}.png,{pair.captions[0]}\n" for pair in pairs]
        manifest = tmp_path / "m.csv"
        manifest.write_text("key,image,caption\n" + "".join(lines))
        arguments = ("ingest", manifest, "--into", "new", "--alignment", "a", "--json", "--home", home)
        assert done(*arguments).document["counts"]["written"] == 16
        lines[2] = f'{pairs[2].key},images/{pairs[2].key}.png,"welcome mat\n'
        manifest.write_text("key,image,caption\n" + "".join(lines))
        ended = modalign(*arguments, "--prune", "--yes")
        assert ended.code == 1
        counts = done("status", "-n", 1, "--json", "--home", home).document["runs"][0]["counts"]
        assert (counts["rejected"], counts["not_pruned"]) == (6, 12)
        assert EmbeddingSet.open(home / "sets" / "new").card.counts == {"image": 8, "text": 8}

    def test_names_with_dots_are_read_by_the_last(self, home: Path, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for pair in fake_pairs(tmp_path, 3, seed=6):
                tar.add(pair.image, f"trip.{pair.key}.png")
        arguments = ("encode", tmp_path / "x.tar", "--set", "dots", *SPECS, "--json", "--home", home)
        assert modalign(*arguments).document["counts"]["rejected"] == 3
        assert done(*arguments, "--key-rule", "last-dot").document["image"] == 3

    def test_annotations_with_their_images_elsewhere(self, home: Path, tmp_path: Path) -> None:
        pairs = fake_pairs(tmp_path / "far", 4, seed=3)
        lines = [f"{pair.image.name}#0\t{pair.captions[0]}\n" for pair in pairs]
        (tmp_path / "x.token").write_text("".join(lines) + "gone.png#0\tred\n")
        arguments = ("encode", tmp_path / "x.token", "--set", "token", *SPECS, "--json", "--home", home)
        assert "name their folder with --images" in modalign(*arguments).error
        ended = modalign(*arguments, "--images", tmp_path / "far")
        assert (ended.code, ended.document["image"], ended.document["text"]) == (4, 4, 5)
        (refused,) = done("rejects", "--json", "--home", home).document["rejects"]
        assert (refused["reason"], refused["key"]) == ("image-missing", "gone.png")

    def test_vectors_are_imported(self, home: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", np.array([[1.0, 2], [0, 0], [3, 4]], np.float16))
        pq.write_table(pa.table({"key": ["a", "b", "c"]}), tmp_path / "v.parquet")
        arguments = ("import", tmp_path / "v.npy", "--set", "v", "--image-encoder", "mine", "--json", "--home", home)
        ended = modalign(*arguments)
        assert (ended.code, ended.document["counts"]["imported"], ended.document["image"]) == (4, 2, 2)
        assert modalign(*arguments, "--max-rejects", 1).document["counts"]["already_in_set"] == 2
        (refused,) = done("rejects", "--json", "--home", home).document["rejects"]
        assert (refused["reason"], refused["key"], refused["position"]) == ("vector-zero", "b", 2)
        assert EmbeddingSet.open(home / "sets" / "v").card.encoders["image"].spec == "imported:mine"


@pytest.mark.slow
@pytest.mark.parametrize("by_environment", [False, True])
def test_large_pictures_are_allowed_by_max_pixels(
    shared: Path, tmp_path: Path, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = copy_sparse(shared, tmp_path / "home")
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "page.png"
    Image.new("1", (10_500, 16_000), 1).save(picture)
    encode = ("encode", tmp_path / "pictures", "--set", "pages", *SPECS[:2], "--json", "--home", home)
    refused = modalign(*encode)
    assert (refused.code, refused.document["counts"].get("encoded", 0)) == (4, 0)
    (reject,) = done("rejects", "--json", "--home", home).document["rejects"]
    assert reject["reason"] == "image-too-large"
    assert "--max-pixels" in reject["detail"]
    if by_environment:
        monkeypatch.setenv("MODALIGN_MAX_PIXELS", "200000000")
    option = () if by_environment else ("--max-pixels", 200_000_000)
    assert done(*encode, *option).document["counts"]["encoded"] == 1
    assert done("search", "things", picture, *option, "--json", "--home", home).document["found"]
