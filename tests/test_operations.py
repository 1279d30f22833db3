"""The failure table of docs/operations.md names a test a row, and each of them is there."""

import ast
import re
import stat
from pathlib import Path

from connector.home import Home
from connector.provenance.database import upgrade
from connector.settings import Settings

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_row_names_a_test_that_there_is() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("## When it fails")[2].splitlines() if line.startswith("|")][2:]
    assert len(rows) > 10
    for row in rows:
        (named,) = NAMED.findall(row)
        file, name = named
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, row


def test_a_new_home_is_its_owners_alone(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path / 'new' / 'modalign.db'}")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    settings = Settings.load(home=tmp_path / "other", database_url=f"sqlite:///{tmp_path / 'new' / 'modalign.db'}")
    with Home(settings):
        assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o700
