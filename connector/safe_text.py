"""Redaction: URLs and messages without the secrets in them, fit for logs, SQL and metadata.

A text that hides too much does no harm. So of a URL only what is known to be harmless is shown.
"""

import re
from urllib.parse import urlsplit

UNREADABLE = "(an unreadable URL)"
# Where a user is a name. Everywhere else it may be a token: https://TOKEN@host.
DATABASES = ("postgresql", "postgres")
# What a database URL may ask for after its question mark that is no secret.
HARMLESS = frozenset(
    (
        "application_name",
        "cache",
        "channel_binding",
        "check_same_thread",
        "client_encoding",
        "connect_timeout",
        "dbname",
        "gssencmode",
        "host",
        "hostaddr",
        "immutable",
        "isolation_level",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "mode",
        "nolock",
        "port",
        "sslmode",
        "sslrootcert",
        "timeout",
        "target_session_attrs",
        "uri",
        "user",
        "vfs",
    )
)

# Up to the last @: a password may hold a slash or an @. Where a ? or # stands before that, it may as well belong to the
# query, and nothing after it is shown either.
_PASSWORD = re.compile(r"(://[^:/@\s]*):(?:\S*[?#]\S*@\S*|\S*@)")
_USER = re.compile(r"(?i)(?<![\w+.-])((?!postgres)[a-z][a-z0-9+.-]*://)(?:[^/@\s?#]*[?#]\S*@\S*|[^/\s]+@)")
_VALUE = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s&;'"]+)"""
_NAMED = re.compile(
    r"(?i)([\w-]*(?:passw(?:or)?d|passphrase|passfile|pwd|secret|token|api[-_]?key|access[-_]?key|auth|credentials?|"
    rf"sig|signature)|[?&;](?:key|pass))=(?!\*\*\*){_VALUE}"
)
_PLAIN = re.compile(r"(?:[\w./,:+-]|%2[Ff])*")
_HOST = re.compile(r"(?:(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::\d{1,5})?)(?:,[^:\[\]]*(?::\d{1,5})?)*")


def redacted(url: str) -> str:
    """Return `url` without password, tokens, and whatever of its query is not known to be harmless.

    >>> redacted("postgresql://me:secret@db:5432/modalign?sslmode=require&sslpassword=secret")
    'postgresql://me:***@db:5432/modalign?sslmode=require'
    >>> redacted("https://secret@qdrant.example:6333?api-key=secret")
    'https://***@qdrant.example:6333'
    """
    if url.startswith("edge:"):  # a directory, whatever it is called
        return url
    if url.startswith("sqlite:///"):
        place, _, query = url.partition("?")
        return place + _harmless(query)
    try:
        parts = urlsplit(_PASSWORD.sub(r"\1:***@", url))
    except ValueError:
        return UNREADABLE
    user, at, host = parts.netloc.rpartition("@")
    rest = parts.path + parts.query + parts.fragment
    # Where an @ or a = stands that nothing explains, and where no port is, the password may be anything.
    if "@" in rest or ("://" not in url and "=" in rest) or not _HOST.fullmatch(host):
        return UNREADABLE
    is_database = parts.scheme.partition("+")[0] in DATABASES
    name = user.partition(":")[0] + (":***" if ":" in user else "") if is_database else "***" if user else ""
    query = _harmless(parts.query) if is_database else ""  # a server's is none of its address
    # Not urlunsplit, which takes the // away where no host is.
    before = f"{parts.scheme}:" * bool(parts.scheme) + "//" * ("://" in url)
    return _NAMED.sub(r"\1=***", f"{before}{name}{at}{host}{parts.path}{query}")


def without_secrets(text: str) -> str:
    """Return `text` with passwords and tokens blotted out: those in its URLs, and those after names that say so.

    >>> without_secrets("cannot reach http://me:secret@db:6333/?api_key=secret")
    'cannot reach http://***@db:6333/?api_key=***'
    """
    return _NAMED.sub(r"\1=***", _USER.sub(r"\1***@", _PASSWORD.sub(r"\1:***@", text)))


def _harmless(query: str) -> str:
    """Return what may be shown of a query, with its question mark."""
    found = (part.partition("=") for part in query.split("&"))
    kept = [f"{name}={value}" for name, _, value in found if name in HARMLESS and _PLAIN.fullmatch(value)]
    return f"?{'&'.join(kept)}" if kept else ""


def printable(text: str) -> str:
    """Write NUL and what is no Unicode as an escape, so that a reject can be printed and stored."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
