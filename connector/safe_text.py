"""Text for logs, SQL and metadata: URLs without secrets, and only characters that can be stored.

SQLAlchemy and yarl parse URLs and hide passwords. Anything that they do not cover is removed: queries, fragments, and
texts that are no URL.
"""

import json
import re

UNREADABLE = "(an unreadable URL)"
DATABASES = ("postgresql", "postgres", "sqlite")

# Patterns take time in proportion to the text, whatever is in it: a scheme is looked for at the start of a run of its
# characters alone. The placeholder http://HOST:PORT is of our own messages.
_URL = re.compile(
    r"(?<![A-Za-z0-9+.-])([0-9+.-]*+)"
    r"([A-Za-z][A-Za-z0-9+.-]*+://(?!HOST:PORT[.,:;'\")]?(?:\s|\Z))\S*[^\s.,:;'\")\]}>`])"
)
# Connection strings of libpq, variables, JSON and parameters in messages: password='a b', "api_key": "xyz". A quote
# that nothing closes, because the message was cut, hides all that follows.
_NAMED = re.compile(
    r"(?i)((?:passw(?:or)?d|pwd|passfile|secret|token|api[-_]?key|access[-_]?key)"
    r"(?:\s{0,3}=\s{0,3}|['\"]\s{0,3}:\s{0,3}))"
    r"(?:'(?:[^'\\]|\\.)*+(?:'|\\?\Z)|\"(?:[^\"\\]|\\.)*+(?:\"|\\?\Z)|[^\s&;]+)",
    re.DOTALL,
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s{1,3}[\w.~+/=-]{8,}")  # of a header; shorter words are words
MAX_URL, MAX_TEXT = 8192, 65536  # characters


def redacted(url: str) -> str:
    """Return `url` without password, token, query and fragment, or a note that it cannot be read or is too long.

    >>> redacted("postgresql://me:secret@db:5432/modalign?sslpassword=secret")
    'postgresql://me:***@db:5432/modalign'
    >>> redacted("https://secret@qdrant.example:6333?api-key=secret")
    'https://***@qdrant.example:6333'
    >>> redacted("http://a:6333,http://token@b:6333")
    'http://a:6333,http://***@b:6333'
    """
    if len(urls := split_urls(url)) > 1:
        return ",".join(map(redacted, urls))
    scheme = url.partition(":")[0].lower()
    if scheme == "edge":  # a directory
        return url
    if len(url) > MAX_URL:  # a picture as a data: URL
        return UNREADABLE
    try:
        return _database(url) if scheme.partition("+")[0] in DATABASES else _server(url)
    except ValueError:
        return UNREADABLE


def split_urls(urls: str) -> list[str]:
    """Return the URLs between commas; a comma within one does not divide it, and one before or after all is none.

    >>> split_urls(", http://a:6333, grpc://b:6334,")
    ['http://a:6333', 'grpc://b:6334']
    """
    return re.split(r"\s*,\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)", urls.strip(", \t\r\n")) if "," in urls else [urls]


def without_secrets(text: str) -> str:
    """Return the message `text` with every URL redacted, and the values of passwords and tokens hidden.

    A text beyond `MAX_TEXT` characters is cut before a word: half a word may hide what makes it a secret.

    >>> without_secrets("cannot reach http://me:secret@db:6333/?api_key=secret: refused")
    'cannot reach http://***@db:6333/: refused'
    >>> without_secrets("run `modalign db merge-stores http://token@db:6333`")
    'run `modalign db merge-stores http://***@db:6333`'
    """
    if len(text) > MAX_TEXT:
        text = " ".join([*text[:MAX_TEXT].rsplit(maxsplit=1)[:-1], "(cut)"])
    text = _URL.sub(lambda match: match[1] + redacted(match[2]), text)
    return _BEARER.sub(r"\1 ***", _NAMED.sub(r"\1***", text))


# What a terminal obeys instead of showing it: controls of C0, DEL and C1, controls and marks of the bidirectional
# algorithm, line ends that are not \n, and surrogates, which cannot be printed. In JSON \t and \n are layout.
_OBEYED = "\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
# Format characters that nobody sees, which make two names look alike, or hide a text within another one. The joiners
# U+200C and U+200D stay, which Persian and emoji are written with, and so do marks of category Cf that are drawn.
_INVISIBLE = (
    "\xad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
_CONTROLS = re.compile(f"[{_OBEYED}{_INVISIBLE}]")
_IN_A_LINE = re.compile(f"[\t\n]|{_CONTROLS.pattern}")
_NAMED_ESCAPES = {"\t": "\\t", "\n": "\\n"}


def for_terminal(line: str) -> str:
    """Return one line: what a terminal would obey, or not show, becomes an escape, `\\x1b`, `\\u202e` or `\\n`.

    A text that came from a file could else move the cursor, or forge a line of its own.

    >>> print(for_terminal("caf\\xe9 \\x1b[31m\\x9b2J \\u202egnp.exe\\nmodalign: all is well"))
    café \\x1b[31m\\x9b2J \\u202egnp.exe\\nmodalign: all is well
    """

    def escaped(control: re.Match[str]) -> str:
        code = ord(control[0])
        escape = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
        return _NAMED_ESCAPES.get(control[0], escape)

    return _IN_A_LINE.sub(escaped, line)


def json_for_terminal(document: str) -> str:
    """Return the same JSON: what a terminal would obey, or not show, becomes an escape of JSON.

    >>> print(json_for_terminal('["\\x9b2J \\u202egnp.exe"]'))
    ["\\u009b2J \\u202egnp.exe"]
    """
    return _CONTROLS.sub(lambda found: json.dumps(found[0])[1:-1], document)


def printable(text: str) -> str:
    """Escape NUL and invalid Unicode, so that the text can be printed and stored."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _database(url: str) -> str:
    from sqlalchemy.engine import make_url  # takes longer to import than all of `--help`
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(UNREADABLE) from error
    where = parsed.host or ""
    if parsed.get_backend_name() != "sqlite":
        where += parsed.database or ""
    # A stray @, an invalid port or a fragment may be part of a password.
    if "@" in where or "#" in where or (parsed.port or 0) > 65535:
        raise ValueError(UNREADABLE)
    return parsed.set(query={}).render_as_string(hide_password=True)


def _server(url: str) -> str:
    from yarl import URL  # a fifth of the time of `--help`, which shows no URL

    parsed = URL(url, encoded=True)
    rest = parsed.raw_path + parsed.raw_query_string + parsed.raw_fragment
    if not parsed.scheme or not parsed.host_subcomponent or "@" in rest or "=" in parsed.raw_path:
        raise ValueError(UNREADABLE)
    # The user in the URL of a server may be a token: https://TOKEN@host.
    user = "***@" if "@" in parsed.raw_authority else ""
    port = "" if parsed.explicit_port is None else f":{parsed.explicit_port}"
    path = parsed.raw_path if url.partition("://")[2].partition("?")[0].partition("#")[0].count("/") else ""
    return f"{parsed.scheme}://{user}{parsed.host_subcomponent}{port}{path}"
