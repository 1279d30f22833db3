"""The rows of `bench.verify` at a million points: a turn takes minutes, so they run by name only, with few turns.

python -m bench million --turns 3 --write docs/performance.md
"""

from dataclasses import replace

from bench import verify

ROWS = tuple(replace(row, size=1_000_000) for row in verify.ROWS)
