"""Numbers with their nouns."""

from collections.abc import Sized


def counted(number: int | Sized, noun: str) -> str:
    """Return how many there are, in words.

    Args:
        number: of them; or the collection that holds them.
        noun: what one of them is called; the word that takes the plural comes last.

    >>> counted(1, "item"), counted(3402, "held-out query"), counted(["a", "b"], "batch")
    ('1 item', '3,402 held-out queries', '2 batches')
    """
    number = len(number) if isinstance(number, Sized) else number
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the plural of a noun.

    >>> [plural(noun) for noun in ("key", "query", "index", "fit")]
    ['keys', 'queries', 'indexes', 'fits']
    """
    if noun.endswith("y") and noun[-2] not in "aeou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
