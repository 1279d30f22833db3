"""Which columns of a manifest hold keys, images, captions and groups: those of these names, or those that are named."""

import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alignment.modality import Modality
from alignment.names import did_you_mean
from connector.corpora.items import NOUNS
from connector.corpora.picture_files import is_image_name
from connector.corpora.row_checks import ROLES, without_collisions
from connector.errors import CorpusError, SettingsError
from connector.safe_text import printable

_log = logging.getLogger(__name__)

NAMES_PROBED = 10_000  # of a file whose rows have names of their own
_OPTIONS: dict[Modality, str] = {"image": "--image", "text": "--caption"}
# What names of columns end with that are likely to hold captions, images or groups.
_CAPTION_WORDS = frozenset(
    ("alt", "caption", "comment", "description", "headline", "prompt", "sentence", "text", "title")
)
_IMAGE_WORDS = frozenset(("file", "filename", "filepath", "image", "img", "path", "photo", "picture"))
_GROUP_WORDS = frozenset(("group", "item", "product"))
_LIKELY: dict[Modality, frozenset[str]] = {"image": _IMAGE_WORDS, "text": _CAPTION_WORDS}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a manifest by what they hold.

    Attributes:
        key, image, group: one column each. Several of these may be one column: the key may be the path of the image.
            No image: the manifest has none.
        caption: columns with a caption each, or with a list of them; empty: the manifest has none.
        named: the options that named a column, such as `--key`; the other columns have their usual names.
    """

    key: str = "key"
    image: str | None = "image"
    caption: tuple[str, ...] = ("caption",)
    group: str = "group"
    named: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, key: str | None = None, image: str | None = None, caption: Sequence[str] = (), group: str | None = None
    ) -> "Columns":
        """Return the columns that were named, and the usual ones for the rest. An empty name means that there is none.

        Raises:
            SettingsError: a column is named twice for captions, or holds captions and keys or images at once; or
                nothing is left to read.
        """
        given: dict[str, Any] = {"key": key, "image": image, "caption": tuple(caption) or None, "group": group}
        named = {role: value for role, value in given.items() if value is not None}
        if image == "":
            named["image"] = None
        if "" in caption:
            named["caption"] = tuple(filter(None, caption))
        columns = cls(**named, named=tuple(f"--{role}" for role in named))
        if columns.image is None and not columns.caption:
            raise SettingsError("--image and --caption are both empty: nothing is left to read; name a column")
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
        return " or ".join(map(repr, self.caption)) or "a column that --caption names"

    @property
    def items_in_words(self) -> str:
        """What a row holds at least, for messages."""
        if self.image is None:
            return f"a caption in {self.captions_in_words}"
        image = f"an image in {self.image!r}"
        return f"{image}, a caption in {self.captions_in_words}, or both" if self.caption else image

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
        shown = _in_words(names)
        for option, columns in self._by_option.items():
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
        needed = {self.key, *(name for option in self.named for name in self._by_option[option])}
        return needed <= set(names) and self._holds_items(names)

    def check_encoders(
        self, path: Path, names: Iterator[str], encoders: Mapping[Modality, str], *, chosen: bool
    ) -> None:
        """Look for a column for each encoder, and say it if none is there: everything of its kind would be missing.

        Args:
            path: of the manifest, for messages.
            names: of its columns, as they are met; they are read on until one of each kind is met.
            encoders: specs by modality.
            chosen: whether they were chosen for this manifest, so that one without a column is a mistake. Otherwise it
                is one if another column may well be what is missing.

        Raises:
            CorpusError: an encoder has no column.
        """
        seen = dict.fromkeys(islice(names, NAMES_PROBED))
        for modality, spec in encoders.items():
            column = {self.image} if modality == "image" else set(self.caption)
            while column.isdisjoint(seen) and (name := next(names, None)) is not None:
                seen.setdefault(name)
            if column.isdisjoint(seen):
                self._lack(path, list(seen), modality, spec, chosen=chosen)
        if self.group not in seen and (likely := self._likely(seen, _GROUP_WORDS)):
            _log.info(
                "manifest %s: each key is a group of its own; if %s says which rows show the same thing, name it with "
                "--group",
                *(path, likely[0]),
            )

    def _lack(self, path: Path, names: Sequence[str], modality: Modality, spec: str, *, chosen: bool) -> None:
        """Say that no column holds images or captions, or raise it."""
        option, noun = _OPTIONS[modality], f"{NOUNS[modality]}s"
        columns = f"its columns: {_in_words(names)}"
        lacks = f"manifest {path} has no column of {noun} for the {modality} encoder {spec}; {columns}"
        likely = self._likely(names, _LIKELY[modality])
        such = f", such as {option} {likely[0]}," if likely else ""
        if chosen:
            raise CorpusError(f"{lacks}. Name one with {option}{such} or leave --{modality}-encoder out")
        if option in self.named:
            return
        if likely:
            raise CorpusError(f"{lacks}. Name one with {option}{such} or say with {option} '' that it has none")
        if not set(names) <= self._used:
            _log.info("%s. If one holds %s, name it with %s", lacks, noun, option)

    def _likely(self, names: Iterable[str], words: Set[str]) -> list[str]:
        """Return the columns of payload whose names end with one of these words, for messages."""
        return [shlex.quote(printable(name)) for name in names if name not in self._used and _last_word(name) in words]

    @property
    def _by_option(self) -> dict[str, tuple[str, ...]]:
        image = () if self.image is None else (self.image,)
        return {"--key": (self.key,), "--image": image, "--caption": self.caption, "--group": (self.group,)}

    @property
    def _used(self) -> Set[str | None]:
        """The columns that are no payload."""
        return {self.key, self.image, self.group, *self.caption}

    @property
    def _needed_in_words(self) -> str:
        if self.key == self.image:
            return f"the column {self.key} of images, which gives the keys too"
        return f"the column {self.key} and at least one of {', '.join(filter(None, (self.image, *self.caption)))}"

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
        captions: list[Any] = []
        for name in self.caption:
            value = record.get(name)
            captions += value if isinstance(value, list) else [] if value is None else [value]
        fields = without_collisions({name: value for name, value in record.items() if name not in self._used})
        image = None if self.image is None else record.get(self.image)
        roles = {"key": record.get(self.key), "image": image, "group": record.get(self.group)}
        return {**fields, **{name: value for name, value in roles.items() if value is not None}, "caption": captions}


def _in_words(names: Iterable[str]) -> str:
    return printable(", ".join(name if name == name.strip() else repr(name) for name in names))


def _last_word(name: str) -> str:
    """Return the word of a name that says what it names, in lower case and without a plural.

    >>> [_last_word(name) for name in ("title_en", "imagePath", "file_name", "Captions", "caption_2", "text_length")]
    ['title', 'path', 'file', 'caption', 'caption', 'length']
    """
    words = [word.lower().removesuffix("s") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    while len(words) > 1 and (len(words[-1]) <= 2 or words[-1] == "name"):  # a language, or `id`
        words.pop()
    return words[-1] if words else ""


def _without_header(names: Sequence[str]) -> str:
    """Say that a file may have no header; empty unless one of its columns is called like a picture."""
    if not (pictures := [name for name in names if is_image_name(name)]):
        return ""
    return (
        f". The header may be missing, because {printable(repr(pictures[0]))} looks like a picture: put a first line "
        "with the names of the columns above the rows"
    )
