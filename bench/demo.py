"""Recall@10 of the demo, and how long an audit of it takes."""

import json
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

from bench.figure import Figure
from connector.demo import NAME

# One whose order is Qdrant's own, and the slowest of those that rescore.
AUDITED = ("cosine", "js", "mlp")


def figures() -> list[Figure]:
    """Run the demo in a home of its own."""
    modalign = str(Path(sysconfig.get_path("scripts")) / "modalign")
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run([modalign, "demo", "--home", home, "--json"], check=True, capture_output=True, text=True)
        seconds = {}
        for metric in AUDITED:
            started = time.perf_counter()
            audit = [modalign, "audit", NAME, "--pairs", NAME, "--metric", metric, "--home", home, "--json"]
            subprocess.run(audit, check=True, capture_output=True)
            seconds[metric] = time.perf_counter() - started
    rows = json.loads(done.stdout)["table"]
    (row,) = (r for r in rows if (r["metric"], r["direction"]) == ("cosine", "text-to-image"))
    asked = f"{row['queries']} held-out captions, chance {row['chance@10']}"
    what = f"demo, text-to-image Recall@10 under cosine, {asked}"
    audits = [
        Figure(f"whole audit of the demo under {metric}, 30 s / its time ({took:.1f} s)", 30 / took, 1.0)
        for metric, took in seconds.items()
    ]
    return [Figure(what, row["recall@10"], 0.5), *audits]
