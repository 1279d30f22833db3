"""`python -m bench` measures everything, `python -m bench push search` some of it."""

import importlib
import sys

NAMES = (
    "startup",
    "search",
    "push",
    "peers",
    "ingest",
    "memory",
    "demo",
    "quality",
    "captions",
    "fit",
    "metrics",
    "mol_layout",
    "audit",
    "node_kills",
)

for name in sys.argv[1:] or NAMES:
    if name not in NAMES:
        sys.exit(f"unknown benchmark {name!r}; expected some of {', '.join(NAMES)}")
    print(f"-- {name}", flush=True)
    module = importlib.import_module(f"bench.{name}")
    print(f"   {module.ASKED}", flush=True)
    for figure in module.figures():
        print(figure, flush=True)
