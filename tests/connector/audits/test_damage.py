"""One thing at a time is damaged behind modalign's back: each audit names the stage that lost it, or what is broken."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.modality import Modality
from alignment.retrieval.bootstrap import Estimate
from alignment.sets.cards import EncoderCard
from alignment.sets.rows import Rows
from connector.audits.result import Audit
from connector.home import Home
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.provenance.tables import ReleaseRow, RunRow
from connector.releases.points import point_id
from connector.requests import AuditRequest, FitRequest, PushRequest
from connector.search.candidates import CandidateSearch
from connector.settings import Settings
from connector.stores.edge import EdgeStore
from connector.stores.points import Points
from tests.support.cli import modalign
from tests.support.sparse_copy import copy_sparse
from tests.support.world import rows, write_set

N, LATENT = 600, 48
DIMS: dict[Modality, int] = {"image": 192, "text": 160}
COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home like the demo's: real graphs, `plain` over the vectors and `coarse` over binary ones."""
    home = tmp_path_factory.mktemp("healthy")
    settings = Settings.load(home=home)
    upgrade(settings.database_url)
    cards = {m: EncoderCard(f"fake:{m}", "ab" * 32, dim) for m, dim in DIMS.items()}
    for name, seed in (("pairs", 0), ("others", 1)):
        write_set(home / "sets" / name, [embedded(m, seed) for m in DIMS], cards)
    with Home(settings) as opened:
        for name in ("pairs", "others"):
            opened.fit(FitRequest(sets=[name], alignment=f"of-{name}", method="ridge"))
        graph = {"indexing_threshold": 100, "m": 6, "ef_construct": 32}
        opened.push(PushRequest(set="pairs", into="plain", alignment="of-pairs", layout=graph))
        coarse = {"quantization": "binary", "oversampling": 24.0, **graph}
        opened.push(PushRequest(set="pairs", into="coarse", alignment="of-pairs", layout=coarse))
    return home


def embedded(modality: Modality, seed: int) -> Rows:
    """`N` things as one modality shows them: linear in what they are, with noise."""
    things = np.random.default_rng(seed).standard_normal((N, LATENT))
    rng = np.random.default_rng(DIMS[modality])
    shown = things @ rng.standard_normal((LATENT, DIMS[modality]))
    shown += 6.0 * rng.standard_normal(shown.shape)
    return rows(modality, shown, payloads=[{"color": COLORS[number % 3]} for number in range(N)])


@pytest.fixture
def home(healthy: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage. Nothing in it says where it is, so a copy is as good as the original."""
    return copy_sparse(healthy, tmp_path / "home")


def audited(home: Path, collection: str = "plain", **options: Any) -> Audit:
    with Home(Settings.load(home=home)) as opened:
        (found,) = opened.audit(AuditRequest(collection=collection, pairs="pairs", **options)).value
    return found


def blamed(found: Audit) -> set[str]:
    assert found.verdict == "measured"
    return {stage.name for stage in found.blamed}


@contextmanager
def collection_of(home: Path, collection: str = "plain") -> Iterator[tuple[EdgeStore, str]]:
    """The store, and the physical name of a collection."""
    with EdgeStore(home / "qdrant") as store:
        (name,) = [name for name in store.collections() if name.startswith(collection)]
        yield store, name


def change_settings(home: Path, collection: str, **settings: Any) -> None:
    """Change what SQL says that a release is searched with."""
    with (
        Provenance.open(f"sqlite:///{home / 'modalign.db'}", home=home) as provenance,
        provenance.database.session() as session,
    ):
        row = session.query(ReleaseRow).filter_by(collection=collection).one()
        tuning = {name: settings.pop(name) for name in ("hnsw_ef", "hnsw_recall") if name in settings}
        for name, value in tuning.items():
            setattr(row, name, value)
        row.settings = {**row.settings, **settings}
        session.commit()


@pytest.mark.slow
def test_a_healthy_release_is_not_blamed(home: Path) -> None:
    for collection in ("plain", "coarse"):
        found = audited(home, collection)
        assert blamed(found) == set()
        assert "No stage of the search loses more than it may." in found.in_words


@pytest.mark.slow
def test_a_tenth_of_the_vectors_shuffled(home: Path) -> None:
    with collection_of(home) as (store, name):
        records = [r for page in store.scroll(name, vector_name="image") for r in page if r.vector is not None]
        chosen = np.random.default_rng(0).permutation(len(records))[: len(records) // 10]
        vectors = np.stack([records[row].vector for row in np.roll(chosen, 1)])
        its = [records[row] for row in chosen]
        store.upsert(name, Points("image", [r.id for r in its], vectors, [r.payload for r in its]))
        store.flush(name)
    found = audited(home)
    assert found.verdict == "broken"
    assert found.measures == []
    assert "vector" in str(found.broken)


def test_points_deleted(home: Path) -> None:
    with collection_of(home) as (store, name):
        store.delete(name, [record.id for page in store.scroll(name) for record in page][:3])
    found = audited(home)
    assert found.verdict == "broken"
    assert f"holds {2 * N - 3:,} points, the ledger says {2 * N:,}" in str(found.broken)


def test_an_alignment_directory_swapped(home: Path) -> None:
    shutil.rmtree(home / "alignments" / "of-pairs")
    shutil.copytree(home / "alignments" / "of-others", home / "alignments" / "of-pairs")
    found = audited(home)
    assert found.verdict == "broken"
    assert "alignment" in str(found.broken)


def test_an_alignment_directory_gone(home: Path) -> None:
    shutil.rmtree(home / "alignments" / "of-pairs")
    assert audited(home).verdict == "broken"


def test_a_collection_gone(home: Path) -> None:
    with collection_of(home) as (store, name):
        store.drop(name)
    assert audited(home).verdict == "broken"


@pytest.mark.slow
def test_a_wrong_ef(home: Path) -> None:
    change_settings(home, "plain", hnsw_ef=1)
    found = audited(home)
    assert blamed(found) == {"index"}
    assert any("when hnsw_ef was chosen" in sentence for sentence in found.in_words)


def test_binary_quantization_without_rescoring(home: Path) -> None:
    change_settings(home, "coarse", rescore=False)
    found = audited(home, "coarse")
    assert blamed(found) == {"quantization"}
    assert "Quantization binary without rescoring: quantized vectors alone decide what is found." in found.in_words


@pytest.mark.slow
def test_a_filter_whose_field_is_not_indexed(home: Path) -> None:
    condition = json.dumps({"must": [{"key": "color", "match": {"value": "red"}}]})
    found = audited(home, filters={"red": condition})
    assert "filter:red: payload field color is not indexed, so every filtered search reads payloads." in found.in_words
    stages = [stage for stage in found.stages if stage.name == "filter:red" and not stage.kind]
    assert len(stages) == 2
    for stage in stages:
        assert stage.queries + stage.without_relevant == found.queries_of(stage.direction)


@pytest.mark.slow
def test_an_embedding_set_that_changed_since_it_was_pushed(home: Path) -> None:
    """It is no damage of the release: what cannot be compared is said, and a drop is not blamed on the release."""
    before = audited(home)
    assert audited(home, baseline="last").drifts
    cards = {m: EncoderCard(f"fake:{m}", "ab" * 32, dim) for m, dim in DIMS.items()}
    parts = [embedded(m, 0) for m in DIMS]
    asked = set(before.per_query["text-to-image"].keys)
    late = [row for row, key in enumerate(parts[1].keys) if row >= 512 and key in asked]
    parts[1].vectors[late] = np.roll(parts[1].vectors[late], 1, axis=0)  # other captions under the same keys
    for row in late:
        parts[1].content_sha256[row] = f"{row:064x}"
    write_set(home / "sets" / "pairs", parts, cards)
    found = audited(home, baseline="last")
    assert blamed(found) == set()
    (outdated,) = [says for says in found.in_words if "pairs has changed since it was pushed" in says]
    assert "1 of 4" in outdated
    (left_out,) = [says for says in found.in_words if f"{len(late):,} of {len(asked):,} queries" in says]
    assert left_out.startswith("text-to-image: ")
    assert "audit 2" in left_out
    assert found.measure("text-to-image", "recall@10").value < before.measure("text-to-image", "recall@10").value
    for drift in (drift for drift in found.drifts if not drift.part):
        assert drift.change.difference == Estimate(0.0, 0.0, 0.0)
        assert drift.change.queries == len(asked) - (len(late) if drift.direction == "text-to-image" else 0)
    with Home(Settings.load(home=home)) as opened:
        opened.push(PushRequest(set="pairs", into="plain", alignment="of-pairs"))
    assert not any("changed since it was pushed" in says for says in audited(home).in_words)


@pytest.mark.slow
def test_a_longer_list_hides_no_wrong_ef(home: Path) -> None:
    """Each list is as long as production asks for: a search for 200 walks as far as 200."""
    change_settings(home, "plain", hnsw_ef=1)
    found = audited(home, ks=(10, 200))
    assert blamed(found) == {"index"}
    with Home(Settings.load(home=home)) as opened:
        release = opened.retriever("plain").release
        finder = CandidateSearch(release, opened.store)
        texts = opened.embedding_set("pairs").load("text")
        held = np.flatnonzero(release.alignment.card.hold_out.held_out(texts.groups))
        aligned = release.alignment.project("text", texts.vectors[held])
        asked = [finder.search("image", aligned, 10, exact=exact) for exact in (True, False)]
    pairs = zip(*asked, strict=True)
    real = np.mean([len({h.id for h in a.hits} & {h.id for h in b.hits}) / 10 for a, b in pairs])
    assert found.measure("text-to-image", "fidelity@10", "index").value == pytest.approx(real, abs=1e-6)


@pytest.mark.slow
def test_quantization_is_measured_as_far_as_production_oversamples(home: Path) -> None:
    change_settings(home, "coarse", oversampling=1.0)
    longer, one = (audited(home, "coarse", ks=ks, sample=60) for ks in ((1, 100), (1,)))
    for direction in ("text-to-image", "image-to-text"):
        place = (direction, "fidelity@1", "quantization")
        assert longer.measure(*place).value == one.measure(*place).value < 0.9


@pytest.mark.slow
def test_a_small_edit_of_a_small_set(tmp_path: Path) -> None:
    """One row of the one batch that there is has changed: all others are compared, and damage to those is found."""
    home = tmp_path / "home"
    upgrade(Settings.load(home=home).database_url)
    cards = {m: EncoderCard(f"fake:{m}", "ab" * 32, dim) for m, dim in DIMS.items()}
    parts = [embedded(m, 0).take(range(200)) for m in DIMS]
    write_set(home / "sets" / "pairs", parts, cards)
    with Home(Settings.load(home=home)) as opened:
        opened.fit(FitRequest(sets=["pairs"], alignment="of-pairs", method="ridge"))
        opened.push(PushRequest(set="pairs", into="plain", alignment="of-pairs"))
    for part in parts:
        part.content_sha256[3] = f"{3:064x}"
        part.vectors[3] *= -1
    write_set(home / "sets" / "pairs", parts, cards)
    found = audited(home)
    assert found.verdict == "measured"
    assert 100 < found.verified < 2 * 64 + 1
    assert any("Embedding set pairs " in says and "2 of 2" in says for says in found.in_words)
    with collection_of(home) as (store, name):
        records = [r for page in store.scroll(name, vector_name="image") for r in page if r.vector is not None]
        vectors = np.stack([record.vector for record in records if record.vector is not None])
        ids, payloads = [record.id for record in records], [record.payload for record in records]
        store.upsert(name, Points("image", ids, np.roll(vectors, 1, axis=0), payloads))
    assert "holds something else than image:" in str(audited(home).broken)


def test_a_set_that_has_lost_all_its_rows(home: Path) -> None:
    """Nothing of it can be compared, and that is said; what is asked with is another one."""
    cards = {m: EncoderCard(f"fake:{m}", "ab" * 32, dim) for m, dim in DIMS.items()}
    more = [embedded(m, 1).take(range(50)) for m in DIMS]
    for part in more:
        part.keys[:] = [f"more-{key}" for key in part.keys]
    write_set(home / "sets" / "more", more, cards)
    with Home(Settings.load(home=home)) as opened:
        opened.push(PushRequest(set="more", into="plain", alignment="of-pairs"))
    write_set(home / "sets" / "more", [], cards)
    found = audited(home)
    assert found.verdict == "measured"
    assert any("Embedding set more " in says and "2 of 2" in says for says in found.in_words)


def test_a_set_that_is_being_encoded(home: Path) -> None:
    cards = {m: EncoderCard(f"fake:{m}", "ab" * 32, dim) for m, dim in DIMS.items()}
    more = [embedded(m, 1).take(range(50)) for m in DIMS]
    for part in more:
        part.keys[:] = [f"more-{key}" for key in part.keys]
    write_set(home / "sets" / "more", more, cards)
    with Home(Settings.load(home=home)) as opened:
        opened.push(PushRequest(set="more", into="plain", alignment="of-pairs"))
    card = home / "sets" / "more" / "card.json"
    card.write_text(card.read_text().replace('"complete": true', '"complete": false'))
    found = audited(home)
    assert found.verdict == "measured"
    says = "Embedding set more is being encoded, or its encode was interrupted: its points were not compared."
    assert says in found.in_words


@pytest.mark.parametrize(("into", "counted"), [("plain", False), ("elsewhere", True)])
def test_a_push_that_has_not_ended(home: Path, into: str, counted: bool) -> None:
    """Of a host that beats its heart: it is named, and of other collections it is nothing."""
    with (
        Provenance.open(f"sqlite:///{home / 'modalign.db'}", home=home) as provenance,
        provenance.database.session() as session,
    ):
        session.add(
            RunRow(
                command="push",
                parameters={"into": into},
                outcome="running",
                counts={},
                host="pod-7f6d",
                pid=1,
                version="0",
                started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
                heartbeat_at=datetime.now(UTC),
            )
        )
        session.commit()
    says = audited(home).in_words
    said = [each for each in says if each.startswith("Its points were not counted")]
    assert len(said) == (not counted)
    if said:
        assert "`modalign push` on host pod-7f6d, writes since 2026-01-02 03:04:05 UTC and has not ended." in said[0]


@pytest.mark.slow
def test_settings_that_the_collection_does_not_have(home: Path) -> None:
    change_settings(home, "plain", m=4, quantization="binary", datatype="uint8")
    found = audited(home)
    assert [says for says in found.in_words if says.startswith("Something else changed")] == [
        "Something else changed the collection: m is 6, SQL recorded 4.",
        "Something else changed the collection: quantization is nothing, SQL recorded binary.",
        "Something else changed the collection: compression is nothing, SQL recorded one_bit.",
        "Something else changed the collection: datatype is float32, SQL recorded uint8.",
    ]
    with collection_of(home) as (store, name):  # and what its vectors may differ by is the collection's own
        records = [r for page in store.scroll(name, vector_name="image") for r in page if r.vector is not None]
        vectors = np.stack([record.vector for record in records if record.vector is not None])
        noise = np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32)
        moved = vectors + 0.05 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        store.upsert(name, Points("image", [r.id for r in records], moved, [r.payload for r in records]))
    assert audited(home).verdict == "broken"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"hnsw_ef": "far"}, "hnsw_ef: expected a whole number from 1 to 2147483647, got 'far'"),
        ({"hnsw_ef": 0}, "got 0"),
        ({"hnsw_ef": 2**31}, "got 2147483648"),
        ({"hnsw_ef": None}, "hnsw_ef and hnsw_recall: expected both or neither, got None and "),
        ({"hnsw_recall": 2}, "hnsw_recall: expected a share from 0 to 1, got 2.0"),
        ({"oversampling": "much"}, "oversampling: "),
        ({"rescore": "yes"}, "rescore: "),
        ({"datatype": "float8"}, "datatype: "),
        ({"payload_indexes": ["color"]}, "payload_indexes: "),
        ({"payload_indexes": {"color": "colour"}}, "payload_indexes.color: "),
        ({"colour": "blue"}, "unknown setting colour"),
    ],
)
def test_settings_that_cannot_be_meant(home: Path, settings: dict[str, Any], why: str) -> None:
    change_settings(home, "plain", **settings)
    found = audited(home)
    assert found.verdict == "broken"
    assert "SQL holds settings of release plain.cosine." in str(found.broken)
    assert why in str(found.broken)
    assert modalign("search", "plain", "--help").code == 0
    pushed = modalign("push", "pairs", "--into", "plain", "--alignment", "of-pairs", "--home", home)
    assert pushed.code == 1
    assert why in " ".join(pushed.err.split())


@pytest.mark.parametrize("text", ["{hnsw_ef: 128", "", "[1]", '"far"', "7"])
@pytest.mark.parametrize("command", [["audit", "plain", "--pairs", "pairs"], ["status"]])
def test_settings_that_are_no_json_object(home: Path, text: str, command: list[str]) -> None:
    with closing(sqlite3.connect(home / "modalign.db")) as connection, connection:
        connection.execute("UPDATE release SET settings = ?", (text,))
    ended = modalign(*command, "--home", home)
    assert ended.code == 1
    assert "restore it from a backup [provenance]" in " ".join(ended.err.split())
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("payload", [{"group": None}, {"group": 7}, {"group": ["1"]}])
def test_a_point_that_has_no_group(home: Path, payload: dict[str, Any]) -> None:
    """One in 1,200, which the sample that is compared may not hold, but every query may find."""
    with collection_of(home) as (store, name):
        (record,) = store.retrieve(name, [point_id("image", f"{N - 1}")], vector_name="image")
        assert record.vector is not None
        store.upsert(name, Points("image", [record.id], record.vector[None], [{**record.payload, **payload}]))
        store.flush(name)
    for seed in range(4):
        found = audited(home, seed=seed)
        assert found.verdict == "broken"
        assert found.measures == []
        assert record.id in str(found.broken) or f"image:{N - 1}" in str(found.broken)


@pytest.mark.slow
@pytest.mark.parametrize("carried", [None, 7, "", "no base64!", "AAAA"])
def test_a_point_without_its_aligned_vector(home: Path, carried: object) -> None:
    with Home(Settings.load(home=home)) as opened:
        opened.push(PushRequest(set="pairs", into="divergence", alignment="of-pairs", metrics=["chi2"]))
    with collection_of(home, "divergence") as (store, name):
        (record,) = store.retrieve(name, [point_id("image", f"{N - 1}")], vector_name="image")
        assert record.vector is not None
        payload = {**record.payload, "aligned": carried}
        store.upsert(name, Points("image", [record.id], record.vector[None], [payload]))
        store.flush(name)
    for seed in range(2):
        found = audited(home, "divergence", seed=seed)
        assert found.verdict == "broken"
        assert record.id in str(found.broken) or f"image:{N - 1}" in str(found.broken)


@pytest.mark.slow
def test_each_ends_with_its_exit_code(home: Path) -> None:
    """Broken and failed end with 3 and say why in a line; measured does not."""
    change_settings(home, "plain", hnsw_ef=1)
    asked = ("audit", "plain", "--pairs", "pairs", "--home", home)
    assert modalign(*asked).code == 0
    failed = modalign(*asked, "--require", "index:fidelity@10>=0.999")
    assert failed.code == 3
    assert "not met: index:fidelity@10>=0.999: text-to-image index fidelity@10 is 0." in failed.err
    with collection_of(home) as (store, name):
        store.delete(name, [next(store.scroll(name))[0].id])
    broken = modalign(*asked)
    assert broken.code == 3
    assert f"broken: collection {name} holds {2 * N - 1:,} points, the ledger says {2 * N:,}" in broken.err
