"""The failure table of docs/operations.md: each row is shown by a test."""

import ast
import stat
from pathlib import Path

from connector.home import Home
from connector.provenance.database import upgrade
from connector.settings import Settings

ROOT = Path(__file__).parent.parent
# What happens, as the table says it, and the test that shows it.
SHOWN_BY = {
    "Ctrl-C": ("cli/test_exit_codes.py", "test_interrupted"),
    "the server dies during a write": ("push/test_several.py", "test_a_server_that_is_killed_in_a_write"),
    "three requests of ten fail": ("push/test_faults.py", "test_an_ingest_from_the_corpus_on_ends_complete"),
    "the server refuses a point": ("push/test_faults.py", "test_points_at_fault_are_named_and_the_others_written"),
    "a wrong API key": ("push/test_faults.py", "test_a_wrong_key_is_refused_at_once"),
    "a key without the right": (
        "../support/rights_contract.py",
        "test_a_command_needs_the_right_of_the_table_and_no_more",
    ),
    "the server dies while it switches aliases": (
        "releases/test_half_switched.py",
        "test_a_store_that_dies_in_a_switch",
    ),
    "two pushes into one new collection": (
        "push/test_open_releases.py",
        "test_pushes_at_once_into_a_new_collection_of_a_server_all_succeed",
    ),
    "an untrusted certificate": ("push/test_faults.py", "test_a_certificate_that_is_not_trusted_is_refused_at_once"),
    "PostgreSQL is killed": ("push/test_several.py", "test_postgresql_is_killed_under_an_ingest"),
    "connections to PostgreSQL are cut": ("push/test_several.py", "test_its_connections_are_cut"),
    "the disk is full": ("cli/test_databases.py", "test_a_disk_that_is_full"),
    "rows cannot be read": ("cli/test_exit_codes.py", "test_rejected"),
    "rows cannot be read, with `--prune`": ("push/test_pruning.py", "test_rows_that_cannot_be_read_keep_everything"),
    "more than a quarter left the corpus, with `--prune`": (
        "cli/test_deleting.py",
        "test_many_that_left_are_kept_unless_the_bound_says_so",
    ),
    "no audit, a failed one, or one before the last write": (
        "releases/test_promotion.py",
        "test_refused_unless_forced",
    ),
    "points vanish or change outside modalign": (
        "releases/test_reconcile.py",
        "test_what_differs_is_counted_named_and_repaired",
    ),
    "a release does not hold what it should": ("audits/test_damage.py", "test_each_ends_with_its_exit_code"),
    "a strict server refuses exact search": (
        "audits/test_stages.py",
        "test_the_audit_goes_on_and_compares_with_the_reference",
    ),
    "a release's alignment or embedding set is gone": (
        "cli/test_releases.py",
        "test_what_is_broken_keeps_nobody_from_verifying_and_mending_the_others",
    ),
    "a promotion during another one": (
        "releases/test_promotion_lock.py",
        "test_two_promotions_come_one_after_the_other",
    ),
    "an endless line in a manifest": (
        "corpora/test_bounded_lines.py",
        "test_a_line_without_end_is_a_reject_and_never_in_memory",
    ),
    "another encoder, alignment, metric, lowering or store": ("releases/test_chain.py", "test_a_mismatch_is_refused"),
}


def test_every_row_is_shown_by_a_test() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("## When it fails")[2].splitlines() if line.startswith("|")][2:]
    assert {row.split(" | ")[0].removeprefix("| ") for row in rows} == SHOWN_BY.keys()
    for file, name in SHOWN_BY.values():
        tree = ast.parse((ROOT / "tests" / "connector" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (file, name)


def test_a_new_home_is_its_owners_alone(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path / 'new' / 'modalign.db'}")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    settings = Settings.load(home=tmp_path / "other", database_url=f"sqlite:///{tmp_path / 'new' / 'modalign.db'}")
    with Home(settings) as home:
        assert home.provenance.runs.newest(1) == []
        assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o700
