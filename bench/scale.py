"""What jobs of a million to a billion items need, and what failures cost them: computed from rates measured here.

`python -m bench scale` measures this machine and writes the tables of docs/scale.md. `python -m bench.scale` prints
them for rates that you know of yours.
"""

import json
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from alignment.retrieval.kinds import HELD_OUT
from alignment.sets.writer import SetWriter
from bench.corpus import ENCODERS, write_set
from bench.figure import Figure
from bench.ingest import encoded
from bench.job_simulation import Failures, Job, Outcome, simulate
from bench.push import push_to_server
from bench.report import PROSE_WIDTH, machine, write_section
from bench.row import LeftOut
from bench.sizing import GIB, Layout, Rates, size
from bench.tables import markdown

# What both sides of a figure are asked.
ASKED = (
    "A job of 1B items in 10,000 units, whose workers die at 1% a unit-hour and whose driver dies as often, beside the "
    "same job without a death. Computed from rates that are measured here; seed 0."
)

DOCS = Path(__file__).parent.parent / "docs" / "scale.md"
MEASURED = 20_000  # items
SIZES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
UNITS = 10_000
FAILURES = Failures(worker_per_hour=0.01, driver_per_hour=0.01, noticed=15, worker_start=60, driver_start=120)


def measured() -> Rates:
    """Measure what a driver does on this machine.

    Raises:
        LeftOut: there is no server.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        taken = encoded(directory, MEASURED, 0.0)
        passed = encoded(directory, MEASURED, 0.0)  # all is in the set
        write_set(directory / "images", MEASURED)
        with SetWriter(directory / "images", corpus="bench", encoders=ENCODERS) as writer:
            (_, table), *_ = writer.identities("image")
    own = {"modality": "image", "split": HELD_OUT}
    payloads = [
        len(json.dumps({**json.loads(row.pop("payload")), **row, **own})) for row in table.slice(0, 100).to_pylist()
    ]
    return Rates(
        taken_per_second=MEASURED / taken,
        pushed_per_second=MEASURED / push_to_server(MEASURED),
        passed_per_second=MEASURED / passed,
        payload_bytes=sum(payloads) / len(payloads),
    )


def job(items: int, workers: int, rates: Rates) -> Job:
    """A job of `items` in `UNITS` units."""
    return Job(
        units=UNITS,
        items=items // UNITS,
        workers=workers,
        encoded_per_second=rates.encoded_per_second,
        taken_per_second=rates.driver_per_second,
        passed_per_second=rates.passed_per_second,
    )


def figures() -> Iterator[Figure]:
    """Measure, write the tables, and say what failures cost the largest job."""
    try:
        rates = measured()
    except LeftOut as reason:
        print(f"left out: {reason}")
        return
    write_section(DOCS, "sizing", sizing(rates, Layout()))
    write_section(DOCS, "simulation", simulation(rates))
    largest = job(SIZES[-1], size(SIZES[-1], rates, Layout()).gpus, rates)
    with_deaths, without = simulate(largest, FAILURES, 0), simulate(largest, Failures(), 0)
    work = largest.units * largest.items / largest.encoded_per_second
    yield Figure("1B items, time with deaths / without", with_deaths.seconds / without.seconds, 1.05, at_most=True)
    yield Figure("1B items, repeated work / work", with_deaths.repeated / work, 0.01, at_most=True)


def sizing(rates: Rates, layout: Layout) -> str:
    """Lay out in Markdown what each number of items needs, and what it was computed from."""
    lines = [["", *(_count(items) for items in SIZES)]]
    sizes = [size(items, rates, layout) for items in SIZES]
    rows = {
        "units of 100,000 items": lambda found: f"{found.units:,}",
        "GPUs that keep the driver busy": lambda found: f"{found.gpus}",
        "time with these": lambda found: _hours(found.hours),
        "vectors in storage": lambda found: _bytes(found.set_bytes),
        "requests to storage": lambda found: _count(found.reads + found.writes),
        "requests to Qdrant": lambda found: _count(found.upserts),
        "memory of Qdrant": lambda found: _bytes(found.memory_bytes),
        "disk of Qdrant": lambda found: _bytes(found.disk_bytes),
        "nodes of 64 GiB": lambda found: f"{found.nodes:,}",
        "shards of the collection": lambda found: f"{2 * found.nodes:,}",
    }
    lines += [[what, *map(shown, sizes)] for what, shown in rows.items()]
    return f"{assumptions(rates, layout)}\n\n{markdown(lines)}"


def assumptions(rates: Rates, layout: Layout) -> str:
    """Say which numbers are measured, and which are assumed."""
    paragraphs = [
        f"Measured on {machine()}, with a Qdrant server on the same cores: a driver takes "
        f"{rates.taken_per_second:,.0f} items/s into an embedding set, writes {rates.pushed_per_second:,.0f} points/s "
        f"of 256 dimensions into the server, and does one after the other, {rates.driver_per_second:,.0f} items/s. One "
        f"that begins again reads and passes over {rates.passed_per_second:,.0f} items/s that the set holds. A payload "
        f"has {rates.payload_bytes:.0f} bytes.",
        f"Assumed: a worker with a GPU reads and encodes {rates.encoded_per_second:,.0f} items/s. An item is one point "
        f"of {layout.dim} dimensions; pictures with one caption each are two. Embedding sets store float16. Qdrant "
        f"keeps {layout.replicas} replicas, int8 vectors in memory and float32 ones on disk.",
        "Computed: memory by Qdrant's rule, 1.5 times the vectors; a node uses three quarters of its memory.",
    ]
    return "\n\n".join(textwrap.fill(paragraph, PROSE_WIDTH, break_on_hyphens=False) for paragraph in paragraphs)


def simulation(rates: Rates) -> str:
    """Lay out in Markdown what simulated jobs take."""
    head = ["items", "workers", "hours", "without deaths", "deaths of workers, drivers", "work repeated", "requests"]
    lines = [head]
    for items in SIZES[-2:]:
        enough = size(items, rates, Layout()).gpus
        for workers in sorted({max(1, enough // 4), enough, 4 * enough}):
            of_job = job(items, workers, rates)
            lines.append(_line(items, of_job, simulate(of_job, FAILURES, 0), simulate(of_job, Failures(), 0)))
    return markdown(lines)


def _line(items: int, of_job: Job, found: Outcome, without: Outcome) -> list[str]:
    work = of_job.units * of_job.items / of_job.encoded_per_second
    shards = items // Layout().shard_rows
    return [
        _count(items),
        f"{of_job.workers}",
        f"{found.seconds / 3600:,.1f}",
        f"{without.seconds / 3600:,.1f}",
        f"{found.worker_deaths}, {found.driver_deaths}",
        f"{found.repeated / work:.2%}",
        _count(found.attempts + 2 * of_job.units + 3 * shards),
    ]


def _count(number: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    return f"{number / GIB:,.1f} GiB" if number < 1024 * GIB else f"{number / GIB / 1024:,.1f} TiB"


def _hours(hours: float) -> str:
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:,.1f} h"


@click.command(help=__doc__)
@click.option("--taken", type=float, required=True, help="Items that a driver takes into a set, a second.")
@click.option("--pushed", type=float, required=True, help="Points that a driver writes into your server, a second.")
@click.option("--encoded", "per_worker", type=float, required=True, help="Items that a worker encodes, a second.")
@click.option("--passed", type=float, default=8_000, show_default=True, help="Items a second that the set holds.")
@click.option("--payload", type=float, default=250, show_default=True, help="Bytes of a payload.")
@click.option("--dim", type=click.IntRange(1), default=512, show_default=True)
@click.option("--replicas", type=click.IntRange(1), default=2, show_default=True)
@click.option("--float32", is_flag=True, help="Keep float32 vectors in memory, not int8.")
def main(
    taken: float,
    pushed: float,
    per_worker: float,
    passed: float,
    payload: float,
    dim: int,
    replicas: int,
    float32: bool,
) -> None:
    rates = Rates(
        taken_per_second=taken,
        pushed_per_second=pushed,
        passed_per_second=passed,
        payload_bytes=payload,
        encoded_per_second=per_worker,
    )
    layout = replace(Layout(), dim=dim, replicas=replicas, quantized=not float32)
    for found in (size(items, rates, layout) for items in SIZES):
        click.echo(found)
    click.echo(simulation(rates))


if __name__ == "__main__":
    main(prog_name="python -m bench.scale")
