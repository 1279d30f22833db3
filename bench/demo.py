"""Recall@10 of the demo."""

import json
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from bench.figure import Figure

# What both sides of a figure are asked.
ASKED = "One side alone: the demo as it is, against a bound."


def figures() -> list[Figure]:
    """Run the demo in a home of its own."""
    modalign = str(Path(sysconfig.get_path("scripts")) / "modalign")
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run([modalign, "demo", "--home", home, "--json"], check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout)["table"]
    (row,) = (r for r in rows if (r["metric"], r["direction"]) == ("cosine", "text-to-image"))
    asked = f"{row['queries']} held-out captions, chance {row['chance@10']}"
    what = f"demo, text-to-image Recall@10 under cosine, {asked}"
    return [Figure(what, row["recall@10"], 0.5)]
