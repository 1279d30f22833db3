"""The demo's corpus is ingested by this process and by a cluster of two machines on this one, and both are compared.

modalign demo --home demo-home
python -m bench.two_nodes demo-home
"""

import sys
import time
from pathlib import Path

import click
import pytest

from alignment.modality import MODALITIES
from bench.cluster_kills import differing
from connector.home import Home
from connector.requests import IngestRequest
from connector.settings import Settings
from tests.support.ray_clusters import ray_cluster

CORPUS = Path("corpora/emoji/emoji.jsonl")


def points_of(home: Path, collection: str) -> dict[str, object]:
    """The points of the live release of a collection, by id: payload and vectors."""
    with Home(Settings.load(home=home)) as opened:
        (row,) = opened.provenance.releases.find(collection=collection)
        return {
            record.id: (record.payload, record.vector.tobytes())
            for modality in MODALITIES
            for page in opened.store.scroll(row.physical_name, vector_name=modality)
            for record in page
            if record.vector is not None
        }


def ingest(home: Path, corpus: Path, collection: str, on: str) -> float:
    """Seconds to ingest into a collection of its own."""
    started = time.monotonic()
    with Home(Settings.load(home=home)) as opened:
        opened.ingest(IngestRequest(corpus=corpus, into=collection, alignment="emoji", metrics=("cosine",), on=on))
    return time.monotonic() - started


@click.command(help=__doc__)
@click.argument("home", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--rows", type=click.IntRange(1), help="Ingest the first rows alone.")
def main(home: Path, rows: int | None) -> None:
    corpus = home / CORPUS
    if rows:
        lines = corpus.read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
        corpus = corpus.with_name(f"emoji-{rows}.jsonl")
        corpus.write_text("".join(lines), encoding="utf-8")
    alone = ingest(home, corpus, "one-process", "local")
    with ray_cluster(machines=2) as cluster, pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ADDRESS", cluster.machines.address)
        together = ingest(home, corpus, "two-machines", "auto")
    one, other = (points_of(home, collection) for collection in ("one-process", "two-machines"))
    differ = differing(one, other)
    click.echo(f"{len(one):,} points by one process in {alone:.0f} s")
    click.echo(f"{len(other):,} points by two machines in {together:.0f} s, {differ:,} of them differ")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main(prog_name="python -m bench.two_nodes")
