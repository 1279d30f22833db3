"""The address of a Qdrant server: judged before anything is sent, and by how TLS and protocols fail there."""

from urllib.parse import urlsplit

from connector.errors import SettingsError
from connector.safe_text import redacted

FORMS = "http(s)://HOST:PORT or grpc(s)://HOST:PORT"
# How TLS and the protocols fail at an address that is not what its scheme says, over REST and gRPC, most specific
# first; and what is wrong then. A server that is away, or cuts connections, fails with none of these words.
FAILURES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hostname mismatch", "IP address mismatch", "Hostname Verification Check failed"),
        "has a certificate for another name than {host}; write a name that the certificate holds into "
        "MODALIGN_QDRANT_URL, or give the server a certificate for this one",
    ),
    (("certificate has expired",), "has a certificate that has expired; renew it on the server"),
    (("certificate is not yet valid",), "has a certificate that is not valid yet; compare the clocks of both machines"),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        "has a certificate that is not trusted; name the file of the authority that signed it by "
        "MODALIGN_QDRANT_CA_FILE",
    ),
    (
        ("WRONG_VERSION_NUMBER", "wrong version number", "record layer failure"),
        "speaks no TLS at this port; write {plain}:// into MODALIGN_QDRANT_URL, or the port that speaks TLS",
    ),
    (
        ("no application protocol", "NO_APPLICATION_PROTOCOL"),
        "speaks gRPC at this port, not HTTP; write grpcs:// into MODALIGN_QDRANT_URL, or the port of HTTP, 6333 "
        "unless it was changed",
    ),
    (
        ("Received http2 header with status", "Failed parsing HTTP/2"),
        "speaks HTTP at this port, not gRPC; write {http}:// into MODALIGN_QDRANT_URL, or the port of gRPC, 6334 "
        "unless it was changed",
    ),
    (
        ("illegal request line", "illegal status line"),
        "speaks no plain HTTP at this port, but perhaps TLS or gRPC; write https:// or grpc:// into "
        "MODALIGN_QDRANT_URL, or the port of HTTP, 6333 unless it was changed",
    ),
)


SCHEMES = ("http", "https", "grpc", "grpcs")


def check_address(url: str) -> None:
    """Judge the URL of a server.

    Raises:
        SettingsError: it is invalid, or says what would be passed over in silence. No secret is in the message.
    """
    what = f"store {redacted(url)!r}"
    try:
        if any(character.isspace() for character in url):
            raise ValueError("it has no spaces")
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if parts.scheme not in SCHEMES or not host:
            raise ValueError("another scheme, or no host")
        host.encode("idna")
    except ValueError:  # its text may hold the URL with the password in it
        each = ", for each of several addresses" if "," in url else ""
        raise SettingsError(f"{what}: expected {FORMS}{each}") from None
    if port == 0:
        raise SettingsError(f"{what}: expected a port from 1 to 65535, got 0")
    if parts.query or parts.fragment:
        raise SettingsError(
            f"{what}: expected {FORMS}, got something after it, from {'?' if parts.query else '#'} on; a key goes into "
            "MODALIGN_QDRANT_API_KEY"
        )
    if parts.scheme.startswith("grpc") and parts.path.strip("/"):
        raise SettingsError(f"{what}: expected grpc(s)://HOST:PORT, got a path after it, which gRPC does not have")
    if parts.scheme.startswith("grpc") and "@" in parts.netloc:
        raise SettingsError(f"{what}: gRPC takes no user and password; a key goes into MODALIGN_QDRANT_API_KEY")


def wrong_address(url: str, why: str) -> str | None:
    """Say what is wrong with the address `url`, where requests fail as `why` says; None: it may be right.

    >>> (wrong_address("grpcs://db", "... Hostname Verification Check failed.") or "").partition(";")[0]
    'has a certificate for another name than db'
    """
    for words, sentence in FAILURES:
        if any(each in why for each in words):
            parts = urlsplit(url)
            http = "https" if parts.scheme.endswith("s") else "http"
            return sentence.format(host=parts.hostname, plain=parts.scheme.removesuffix("s"), http=http)
    return None
