"""Which columns of a manifest hold keys, images, captions and groups: those of these names, or those that are named."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.names import did_you_mean
from connector.corpora.picture_files import is_image_name
from connector.corpora.row_checks import ROLES, without_collisions
from connector.errors import CorpusError, SettingsError
from connector.safe_text import printable


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a manifest by what they hold.

    Attributes:
        key, image, group: one column each. Several of these may be one column: the key may be the path of the image.
        caption: columns with a caption each, or with a list of them.
        named: the options that named a column, such as `--key`; the other columns have their usual names.
    """

    key: str = "key"
    image: str = "image"
    caption: tuple[str, ...] = ("caption",)
    group: str = "group"
    named: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, key: str | None = None, image: str | None = None, caption: Sequence[str] = (), group: str | None = None
    ) -> "Columns":
        """Return the columns that were named, and the usual ones for the rest.

        Raises:
            SettingsError: a column is named twice for captions, or holds captions and keys or images at once.
        """
        given = {"key": key, "image": image, "caption": tuple(caption) or None, "group": group}
        named = {role: value for role, value in given.items() if value is not None}
        columns = cls(**named, named=tuple(f"--{role}" for role in named))  # type: ignore[arg-type]
        if repeated := [name for name in columns.caption if columns.caption.count(name) > 1]:
            raise SettingsError(f"--caption names the column {printable(repr(repeated[0]))} twice; name it once")
        for role, name in (("key", columns.key), ("image", columns.image)):
            if name in columns.caption:
                raise SettingsError(
                    f"the column {printable(repr(name))} cannot hold the captions and the {role}s: name another one "
                    f"with --caption or --{role}"
                )
        return columns

    @property
    def captions_in_words(self) -> str:
        """The columns of captions, for messages."""
        return " or ".join(map(repr, self.caption))

    def key_in_words(self, key: str) -> str:
        """A key with the column that holds it, for messages.

        >>> Columns(key="sku").key_in_words("1"), Columns().key_in_words("1")
        ("key '1' (column 'sku')", "key '1'")
        """
        return f"key {key!r}" if self.key == "key" else f"key {key!r} (column {self.key!r})"

    def check(self, path: Path, names: Sequence[str]) -> None:
        """Raise a `CorpusError` if columns are missing from the `names` of a file, are misspelt, or are there twice."""
        if not names:
            raise CorpusError(f"manifest {path} is empty: expected columns; a CSV names them in its first line")
        shown = printable(", ".join(name if name == name.strip() else repr(name) for name in names))
        for option, columns in (
            ("--key", (self.key,)),
            ("--image", (self.image,)),
            ("--caption", self.caption),
            ("--group", (self.group,)),
        ):
            if option in self.named and (missing := [name for name in columns if name not in names]):
                raise CorpusError(
                    f"manifest {path}: {option} names the column {printable(repr(missing[0]))}, which is not there"
                    f"{did_you_mean(missing[0], names)}; its columns: {shown}{_without_header(names)}"
                )
        if self.key not in names or not self._holds_items(names):
            raise CorpusError(
                f"manifest {path}: expected {self._needed_in_words} ({self.group} is optional), got {shown}; name "
                "yours with --key, --image, --caption and --group; the column of images may hold the keys too"
                f"{_without_header(names)}"
            )
        if wrong := self.misspelt(names):
            raise CorpusError(f"manifest {path}: column {printable(wrong)}")
        if duplicates := {name for name in names if names.count(name) > 1}:
            twice = printable(", ".join(map(repr, sorted(duplicates))))
            raise CorpusError(
                f"manifest {path}: expected each column once, got {twice} more than once; rename the others"
            )

    def fit(self, names: Sequence[str]) -> bool:
        """Whether all columns that are needed or named are among the `names` of a file."""
        named = {"--key": [self.key], "--image": [self.image], "--caption": self.caption, "--group": [self.group]}
        needed = {self.key, *(name for option in self.named for name in named[option])}
        return needed <= set(names) and self._holds_items(names)

    @property
    def _needed_in_words(self) -> str:
        if self.key == self.image:
            return f"the column {self.key} of images, which gives the keys too"
        return f"the column {self.key} and at least one of {', '.join((self.image, *self.caption))}"

    def _holds_items(self, names: Sequence[str]) -> bool:
        return not {self.image, *self.caption}.isdisjoint(names)

    def misspelt(self, names: Iterable[str]) -> str:
        """Say which name is one of ours but for its case or spaces around it; empty if none is.

        It would pass for payload, and an image or a caption would be lost without a word. A `Group` may well be
        payload, and so may any name where another column was named.
        """
        given = set(names)
        for name in sorted(given):
            own = name.strip().lower()
            if own in ROLES - {"group"} and own not in given and f"--{own}" not in self.named:
                return (
                    f"{name!r} is not read as {own}: name it with --{own} {name!r}, write {own!r}, or rename it if it "
                    "is payload"
                )
        return ""

    def fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a row under our own names, captions as a list. All other columns are payload.

        A column of payload whose name modalign uses itself is renamed: `split` becomes `corpus_split`.
        """
        used = {self.key, self.image, self.group, *self.caption}
        captions: list[Any] = []
        for name in self.caption:
            value = record.get(name)
            captions += value if isinstance(value, list) else [] if value is None else [value]
        fields = without_collisions({name: value for name, value in record.items() if name not in used})
        roles = {"key": record.get(self.key), "image": record.get(self.image), "group": record.get(self.group)}
        return {**fields, **{name: value for name, value in roles.items() if value is not None}, "caption": captions}


def _without_header(names: Sequence[str]) -> str:
    """Say that a file may have no header; empty unless one of its columns is called like a picture."""
    if not (pictures := [name for name in names if is_image_name(name)]):
        return ""
    return (
        f". The header may be missing, because {printable(repr(pictures[0]))} looks like a picture: put a first line "
        "with the names of the columns above the rows"
    )
