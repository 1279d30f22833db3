"""What runs count, in words: every count says of what it is.

An item is an image or a text. A point is an item in one release: a push into three releases writes three for an item.
A reject is an item, a caption or a payload field that was refused.
"""

from collections.abc import Mapping

from alignment.plurals import counted

# By the name in SQL and in JSON: the noun, and what happened to so many of them.
COUNTS: Mapping[str, tuple[str, str]] = {
    # encode, import, and the first half of ingest
    "encoded": ("item", "encoded"),
    "imported": ("item", "imported"),
    "reused": ("item", "given the vector of an equal one"),
    "already_in_set": ("item", "in the set already"),
    "truncated": ("caption", "longer than the encoder reads"),
    "left_out": ("item", "left out"),
    "passed_over": ("file", "passed over"),
    "no_longer_in_corpus": ("item", "no longer in the corpus"),
    "pruned": ("item", "pruned"),
    "not_pruned": ("item", "not pruned"),
    "prune_refused": ("item", "not pruned, being too many"),
    "rejected": ("reject", "recorded"),
    # push, and the second half of ingest; over all releases
    "written": ("point", "written"),
    "unchanged": ("point", "unchanged"),
    # delete
    "deleted": ("item", "deleted"),
    "points_deleted": ("point", "deleted"),
    "rows_deleted": ("row", "deleted from embedding sets"),
    "unknown": ("key", "of no item"),
    "unknown_groups": ("group", "of no item"),
    # repair
    "repaired": ("point", "repaired"),
    "orphans_deleted": ("orphan", "deleted"),
    "restored": ("setting", "restored"),
    # releases
    "promoted": ("release", "made live"),
    "rolled_back": ("release", "rolled back to"),
    "dropped": ("release", "dropped"),
    "releases": ("release", "merged"),
    # alignments
    "pairs": ("pair", "to fit on"),
    "candidates": ("candidate", "tried"),
    "fits": ("fit", "compared"),
    "rows": ("row", "in the table"),
    "not_run": ("fit", "not run"),
    "groups": ("held-out group", "measured"),
    "graphs": ("graph", "written"),
    # audit
    "queries": ("query", "asked"),
    "failed_requirements": ("requirement", "not met"),
}


def in_words(counts: Mapping[str, int]) -> str:
    """Say what a run counted, in the order of `COUNTS` and without zeros; unknown names stand as they are.

    >>> in_words({"rejected": 1, "encoded": 3402, "reused": 0})
    '3,402 items encoded, 1 reject recorded'
    """
    names = [name for name in COUNTS if name in counts] + [name for name in counts if name not in COUNTS]
    return ", ".join(_in_words(name, counts[name]) for name in names if counts[name])


def _in_words(name: str, number: int) -> str:
    if name not in COUNTS:
        return f"{number:,} {name.replace('_', ' ')}"
    noun, happened = COUNTS[name]
    return f"{counted(number, noun)} {happened}"
