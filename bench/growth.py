"""How cost grows with the points of a release: push, search, audit and verify at 10,000, 100,000 and a million points.

Each step runs in a process of its own, which tells its CPU seconds, without those of its start, and its peak memory.
CPU seconds are those of all its threads: what else the machine does moves them little. The engine runs in the same
process: its threads count, and its maps of files. `python -m bench growth` writes the table of docs/performance.md and
draws docs/growth.svg.
"""

import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from alignment.modality import Modality
from alignment.model.alignment import Alignment
from alignment.model.projections import Projection
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray
from bench.corpus import ENCODERS as LARGE_ENCODERS
from bench.corpus import card
from bench.figure import Figure
from bench.report import write_section
from bench.tables import markdown
from connector.home import Home
from connector.provenance.database import upgrade
from connector.requests import AuditRequest, PushRequest
from connector.settings import Settings

# What both sides of a figure are asked.
ASKED = (
    "The same step with ten times the points: images of dimension 64, the default layout, 2,000 captions. "
    "Searches take the hnsw_ef that the push tuned; audits take 200 queries a direction."
)

SIZES = (10_000, 100_000, 1_000_000)
DIM, SHARD, CAPTIONS, QUERIES, K = 64, 4096, 2_000, 200, 10
DOCS = Path(__file__).parent.parent / "docs"
ENCODERS = {modality: replace(encoder, dim=DIM) for modality, encoder in LARGE_ENCODERS.items()}
NAME = "growth"


def drawn(number: int, count: int = SHARD) -> FloatArray:
    """The vectors of a shard (count, DIM), with a decaying spectrum, as embeddings have."""
    scale = (1.0 / np.sqrt(1.0 + np.arange(DIM))).astype(np.float32)
    vectors: FloatArray = np.random.default_rng(number).standard_normal((count, DIM), np.float32) * scale
    return vectors


def write(home: Path, points: int) -> None:
    """Make a home with a set of so many images, captions of the first ones, and an alignment with dense projections."""
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, DIM)))[0].astype(np.float32)
    projection = Projection(DIM, np.zeros(DIM, np.float32), rotation)
    projections: dict[Modality, Projection] = {"image": projection, "text": projection}
    Alignment(card(encoders=ENCODERS), projections, {}).save(home / "alignments" / NAME)
    with SetWriter(home / "sets" / NAME, corpus="bench", encoders=ENCODERS) as writer:

        def append(modality: Modality, start: int, vectors: FloatArray) -> None:
            keys = [f"item-{row}" for row in range(start, start + len(vectors))]
            payloads = [json.dumps({"image": f"/data/{key}.jpg", "language": "en"}) for key in keys]
            writer.append(Rows(modality, keys, keys, ["0" * 64] * len(keys), payloads, vectors))

        for start in range(0, points, SHARD):
            append("image", start, drawn(start, min(SHARD, points - start)))
        captions = drawn(0)[:CAPTIONS]
        noise = np.random.default_rng(2).standard_normal(captions.shape, np.float32)
        append("text", 0, captions + 0.1 * noise)
        writer.finish()


def opened(directory: Path) -> Home:
    return Home(Settings.load(home=directory, database_url=f"sqlite:///{directory / 'modalign.db'}"))


def push(directory: Path) -> dict[str, float]:
    """Until every point is written, and until its index is built and searches are tuned."""
    upgrade(f"sqlite:///{directory / 'modalign.db'}")
    with opened(directory) as home:
        marks = []
        ready = home.store.ready

        def marked(name: str) -> object:
            marks.append(time.process_time())
            return ready(name)

        home.store.ready = marked  # type: ignore[method-assign,assignment]
        started = time.process_time()
        home.push(PushRequest(set=NAME, into=NAME, alignment=NAME, metrics=["cosine"]))
        return {"push, without its index": marks[0] - started, "push": time.process_time() - started}


def search(directory: Path) -> dict[str, float]:
    """The median of searches for a ready vector."""
    with opened(directory) as home:
        retriever, seconds = home.retriever(NAME), []
        for query in drawn(-1 % 2**32, 2 * QUERIES):  # the first half warms up
            started = time.process_time()
            retriever.search_embeddings("text", query[None], K, encoder=ENCODERS["text"].fingerprint)
            seconds.append(time.process_time() - started)
    return {"search": statistics.median(seconds[QUERIES:])}


def audit(directory: Path) -> dict[str, float]:
    with opened(directory) as home:
        started = time.process_time()
        home.audit(AuditRequest(collection=NAME, pairs=NAME, queries="all", gallery="all", sample=QUERIES))
        return {"audit": time.process_time() - started}


def verify(directory: Path) -> dict[str, float]:
    with opened(directory) as home:
        started = time.process_time()
        (report,) = home.verify(NAME, seed=0)
        seconds = time.process_time() - started
    if not report.consistent:
        raise RuntimeError(f"what was pushed is not what is there: {report}")
    return {"verify": seconds}


def read(directory: Path) -> dict[str, float]:
    """Every image, with its vector and payload, once."""
    with opened(directory) as home:
        (release,) = home.provenance.releases.find(collection=NAME)
        started = time.process_time()
        for _ in home.store.scroll(release.physical_name, vector_name="image"):
            pass
        return {"reading every point once": time.process_time() - started}


STEPS: Mapping[str, Callable[[Path], dict[str, float]]] = {
    step.__name__: step for step in (push, search, audit, verify, read)
}


def in_child(step: str, directory: Path) -> tuple[dict[str, float], float]:
    """CPU seconds by name, and the peak memory in MiB, of a step in a process of its own."""
    seconds, peak = json.loads(_child(step, directory).splitlines()[-1])
    return seconds, peak


def _child(*arguments: object) -> str:
    """Run this module with `arguments`. A child inherits the peak memory of its parent, so this one stays small."""
    command = [sys.executable, "-m", "bench.growth", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def figures() -> Iterator[Figure]:
    """Measure, write the table, draw the picture; how each cost grows from the smallest size to the largest."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    for points in SIZES:
        with tempfile.TemporaryDirectory() as name:
            _child("write", name, points)
            for step in STEPS:
                taken, peak = in_child(step, Path(name))
                peaks.setdefault(step, []).append(peak)
                for what, value in taken.items():
                    seconds.setdefault(what, []).append(value)
    write_section(DOCS / "performance.md", "growth", table(seconds, peaks))
    picture(seconds, DOCS / "growth.svg")
    for what, values in seconds.items():
        yield Figure(f"{what}, exponent of growth", exponent(values), 1.1, at_most=True)


def exponent(seconds: Sequence[float]) -> float:
    """With which power of the number of points a cost grows, from the smallest size to the largest."""
    return math.log(seconds[-1] / seconds[0]) / math.log(SIZES[-1] / SIZES[0])


def table(seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, Sequence[float]]) -> str:
    """Lay out in Markdown what each step takes at each size."""
    lines = [["", *(f"{points:,} points" for points in SIZES), "grows with the power"]]
    lines += [[what, *map(duration, values), f"{exponent(values):.2f}"] for what, values in seconds.items()]
    lines += [[f"{step}, peak memory", *(f"{peak:,.0f} MiB" for peak in values), ""] for step, values in peaks.items()]
    return markdown(lines)


def duration(seconds: float) -> str:
    """Print seconds, or milliseconds where they are few."""
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def picture(seconds: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw each cost against the number of points, on logarithmic axes, with its exponent."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Picture

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "modalign"}):
        figure = Picture(figsize=(7, 5), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel="points", ylabel="CPU seconds")
        for what, values in seconds.items():
            axes.plot(SIZES, values, marker="o", label=f"{what}: points^{exponent(values):.2f}")
        axes.set_xticks(SIZES, [f"{points:,}" for points in SIZES])
        axes.grid(visible=True, alpha=0.3)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]))
        sys.exit()
    took = STEPS[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps([took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
