"""No secret of a URL survives redaction, and what is harmless stays."""

import json
import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.safe_text import (
    MAX_TEXT,
    MAX_URL,
    UNREADABLE,
    for_terminal,
    json_for_terminal,
    printable,
    redacted,
    without_secrets,
)

HIDDEN = "https://***@db.example/modalign connection to failed (an unreadable URL)"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:secret@db:5432/modalign", "postgresql://me:***@db:5432/modalign"),
        (
            "postgresql+psycopg://me:secret@db/modalign?sslmode=require",
            "postgresql+psycopg://me:***@db/modalign",
        ),
        ("postgresql://me@db/modalign", "postgresql://me@db/modalign"),
        ("postgresql://db/modalign?password=secret", "postgresql://db/modalign"),
        ("postgresql://db/modalign#secret", "(an unreadable URL)"),
        ("https://qdrant.example:6333", "https://qdrant.example:6333"),
        ("https://:secret@qdrant.example:6333/", "https://***@qdrant.example:6333/"),
        ("https://me:secret@qdrant.example/x", "https://***@qdrant.example/x"),
        ("https://secret@qdrant.example:6333", "https://***@qdrant.example:6333"),
        ("grpcs://secret@qdrant.example", "grpcs://***@qdrant.example"),
        ("https://q/?api_key=secret&timeout=5&token=secret", "https://q/"),
        ("https://q/a;token=secret/x", "(an unreadable URL)"),
        ("https://q:secret", "(an unreadable URL)"),
        ("postgresql://me:12345678", "(an unreadable URL)"),
        ("postgresql://db/x?sslmode=require;password=secret", "postgresql://db/x"),
        ("postgresql://db/x?sslmode=require&sslpassword=secret&passfile=/secret", "postgresql://db/x"),
        ("postgresql://db/x?secret", "postgresql://db/x"),
        (
            "postgresql:///x?host=/run/postgresql&user=me&password=secret",
            "postgresql:///x",
        ),
        ("sqlite:////home/me/x.db?password=secret&mode=ro", "sqlite:////home/me/x.db"),
        ("sqlite://me:secret@/x.db", "sqlite://me:***@/x.db"),
        ("sqlite+pysqlcipher://:secret@/x.db?cipher=aes", "sqlite+pysqlcipher://:***@/x.db"),
        ("https://q:6333?password=x@secret", "(an unreadable URL)"),
        ("https://q?password=x@secret", "(an unreadable URL)"),
        ("http://[::1]:6333", "http://[::1]:6333"),
        ("localhost:6333", "(an unreadable URL)"),
        ("edge:/home/me/.modalign/qdrant", "edge:/home/me/.modalign/qdrant"),
        ("sqlite:////home/me/.modalign/modalign.db", "sqlite:////home/me/.modalign/modalign.db"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(url: str, expected: str) -> None:
    assert redacted(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cr/et@db/x",
        "postgresql://me:s3cr@et@db/x",
        "postgresql://me:s3cr#et@db/x",
        "postgresql://me:s3cr?et@db/x",
        "postgresql://me:s3cr:et@db/x",
        "postgresql://me:s3cr[et@db/x",
        "postgresql://me:s3cr]et@[db/x",
        "postgresql://me:s3cr et@db/x",
        "POSTGRESQL://me:s3cret@db/x",
        "postgresql://m/e:s3cret@db/x",
        "me:s3cret@db/x",
        "host=db password=s3cret",
        "postgresql:me:s3cret@db/x",
    ],
)
def test_no_part_of_an_odd_password_is_shown(url: str) -> None:
    shown = redacted(url)
    assert "s3cr" not in shown
    assert "et@" not in shown


SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6).filter(
    lambda text: not any(text in shown for shown in ("postgresql://me:***@db.example/modalign", HIDDEN))
)


@given(SECRETS)
def test_no_password_is_shown(password: str) -> None:
    for url in (f"postgresql://me:{password}@db.example/modalign", f"https://me:{password}@db.example/modalign"):
        assert password not in redacted(url)
        assert password not in without_secrets(f"connection to {url} failed")


NAMES = [
    "password",
    "PassWord",
    "sslpassword",
    "passwd",
    "passfile",
    "sslkey",
    "api_key",
    "api-key",
    "apikey",
    "API_KEY",
    "x-api-key",
    "token",
    "access_token",
    "auth_token",
    "key",
    "secret",
    "client_secret",
    "sig",
    "X-Amz-Signature",
    "credential",
]
PLACES = [
    "sqlite:////home/me/x.db?{}",
    "sqlite:///?mode=ro&{}",
    "postgresql://me@db.example/x?{}",
    "postgresql+psycopg://db.example/x?sslmode=require&{}&user=me",
    "https://q.example:6333?{}",
    "https://q.example/path?timeout=5&{}#top",
    "grpcs://q.example?{}",
]


@given(SECRETS.filter(lambda text: text not in "".join(PLACES)), st.sampled_from(NAMES), st.sampled_from(PLACES))
def test_nothing_of_a_query_is_shown_that_may_be_a_secret(secret: str, name: str, place: str) -> None:
    url = place.format(f"{name}={secret}")
    assert secret not in redacted(url)


TOKENS = st.from_regex(r"[A-Za-z0-9_.~%!$*+-]{8,40}", fullmatch=True).filter(lambda text: text not in HIDDEN)


@given(TOKENS, st.sampled_from(["http", "https", "grpc", "grpcs", "ftp"]), st.sampled_from(["", ":", ":x-oauth-basic"]))
def test_a_token_in_place_of_a_user_is_not_shown(token: str, scheme: str, password: str) -> None:
    url = f"{scheme}://{token}{password}@q.example:6333/a"
    assert redacted(url) == f"{scheme}://***@q.example:6333/a"
    assert without_secrets(f"cannot reach {url}: refused") == f"cannot reach {scheme}://***@q.example:6333/a: refused"


@given(
    TOKENS, st.sampled_from(sorted({*NAMES} - {"sslkey"})), st.sampled_from(["?{}={}", "x?a=b&{}={}; why", "?{}='{}'"])
)
def test_a_message_keeps_no_secret_that_is_named(token: str, name: str, place: str) -> None:
    assert token not in without_secrets(f"cannot reach https://q.example/{place.format(name, token)}")


NAME = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True)
HOST = st.one_of(st.from_regex(r"[a-z][a-z0-9.-]{0,20}(:[1-9][0-9]{0,3})?", fullmatch=True), st.just("[::1]:6333"))


@given(NAME, HOST, NAME)
def test_a_harmless_url_stays_as_it_is(user: str, host: str, name: str) -> None:
    for url in (
        f"postgresql://{user}@{host}/{name}",
        f"postgresql+psycopg://{host}/{name}",
        f"http://{host}",
        f"https://{host}/{name}",
        f"grpc://{host}",
        f"edge:/home/{user}/{name}",
        f"edge:{name}?token=x",
        f"sqlite:////home/{user}/{name}.db",
        "sqlite://",
    ):
        assert redacted(url) == url


@given(NAME, HOST, NAME)
def test_a_message_without_secrets_stays_as_it_is(user: str, host: str, name: str) -> None:
    for text in (
        f"connection to postgresql+psycopg://{user}@{host}/{name} failed: Key ({name})=(3) already exists",
        f"cannot reach https://{host}/{name}: timed out; mail {user}@example.org",
        f"filter {{'key': '{name}'}}; key={name}",
    ):
        assert without_secrets(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "https://q:6333?password=x@secret",
        "https://q?password=x@secret",
        "https://sec?ret@q",
        "https://sec@ret@q",
        "https://q/x?password=x@secret",
        "postgresql://me@db/x?password=x@secret",
        "postgresql://me:x?y@secret@db/x",
        "https://me:secret@q/x?token=x@secret",
    ],
)
def test_an_at_sign_in_a_secret_brings_nothing_to_light(text: str) -> None:
    assert not re.search("sec|ret", without_secrets(f"cannot reach {text} now"))
    assert not re.search("sec|ret", redacted(text))


def test_a_connection_string_of_libpq_shows_no_password() -> None:
    text = "invalid dsn: host=db password='a b\\'c' sslpassword=x%y user=me"
    assert without_secrets(text) == "invalid dsn: host=db password=*** sslpassword=*** user=me"


@pytest.mark.parametrize(
    "text",
    [
        'answered {"api_key": "hunter2"}',
        "answered {'password': 'hunter2'}",
        'token="a\\"hunter2"',
        "password = hunter2",
        "pwd=hunter2;host=x",
        "AWS_SECRET_ACCESS_KEY=hunter2",
        "Authorization: Bearer hunter2hunter2",
        "got http://HOST:PORT@me:hunter2@db",
    ],
)
def test_secrets_of_json_variables_and_headers_are_not_shown(text: str) -> None:
    assert "hunter2" not in without_secrets(text)


def test_prose_about_secrets_is_shown_as_it_is() -> None:
    for text in (
        "expected http(s)://HOST:PORT or grpc(s)://HOST:PORT, got x",
        "token: expected a text",
        "a basic rule of bearer tokens",
        "the secret is out",
        "no password given",
    ):
        assert without_secrets(text) == text


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_quoted_secret_of_a_message_that_was_cut_is_not_shown(quote: str) -> None:
    assert without_secrets(f"invalid dsn: user=me password={quote}a se cret") == "invalid dsn: user=me password=***"


def test_a_url_behind_other_characters_of_a_scheme_is_redacted() -> None:
    assert without_secrets("1http://me:secret@q ...http://me:secret@q") == "1http://***@q ...http://***@q"


# What the patterns look for, and what they look at on the way.
PIECES = [
    "a",
    "-",
    "_",
    "1",
    ".",
    "+",
    "://",
    "//",
    ":",
    "@",
    "=",
    "'",
    '"',
    "\\",
    "token=",
    "token='",
    'secret="',
    " ",
]
PIECES += ["http", "http://", "postgresql://", "sqlite:", "data:image/png;base64,", "?", "#", "[", "%", ",", "key", "é"]


@given(st.lists(st.sampled_from(PIECES), max_size=3), st.lists(st.sampled_from(PIECES), min_size=1, max_size=4))
def test_the_time_for_a_text_grows_with_its_length_alone(start: list[str], repeated: list[str]) -> None:
    text = "".join(start) + "".join(repeated) * (32_768 // len("".join(repeated)))
    started = time.process_time()
    for show in (without_secrets, redacted, printable):
        show(text)
    assert time.process_time() - started < 2  # CPU seconds; a pattern that goes back for each character takes many


@pytest.mark.parametrize("gap", ["", " "])
def test_a_text_that_is_too_long_shows_no_half_of_a_secret(gap: str) -> None:
    for cut in range(30):
        filler = ("x" * 9 + gap) * (MAX_TEXT // 10 + 1)
        shown = without_secrets(f"failed: {filler[: MAX_TEXT - cut - 8]}{gap}https://s3cret@q.example/x failed")
        assert "s3c" not in shown
        assert shown.startswith("failed: ")


def test_a_picture_as_a_url_is_not_shown() -> None:
    picture = "data:image/png;base64," + "A" * 4_000_000
    assert redacted(picture) == redacted("https://q/" + "x" * MAX_URL) == UNREADABLE
    assert len(without_secrets(f"cannot fetch {picture}: timed out")) < MAX_TEXT


# What reaches a terminal

OBEYED = [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *map(chr, range(0x2028, 0x202F))]
OBEYED = [character for character in OBEYED if character not in "\t\n"] + [*map(chr, range(0x2066, 0x206A)), "\ud800"]


@given(st.text(), st.sampled_from(OBEYED))
def test_nothing_that_a_terminal_obeys_reaches_it(text: str, character: str) -> None:
    for shown in (for_terminal(text + character + text), json_for_terminal(json.dumps([text + character]))):
        assert not set(shown) & set(OBEYED)


# Drawn, each before what it marks; and the joiners, which are part of how words and emoji are written.
SHOWN = {*range(0x0600, 0x0606), 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
SHOWN |= {0x200C, 0x200D}
TAGS = range(0xE0000, 0xE0080)
INVISIBLE = sorted(
    {chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf"} - {*map(chr, SHOWN)}
)


@pytest.mark.parametrize("invisible", ["".join(INVISIBLE), "".join(map(chr, TAGS)), "\ufeff"])
def test_format_characters_that_nobody_sees_are_shown(invisible: str) -> None:
    shown = for_terminal(f"a{invisible}b")
    assert not set(shown) & set(invisible)
    assert shown.encode().decode("unicode-escape") == f"a{invisible}b", "an escape says which character it was"
    document = json_for_terminal(json.dumps([invisible], ensure_ascii=False))
    assert not set(document) & set(invisible)
    assert json.loads(document) == [invisible]


def test_format_characters_that_are_drawn_or_join_are_left_alone() -> None:
    text = "".join(map(chr, sorted(SHOWN))) + "\ufe0f"
    assert for_terminal(text) == text


@given(
    st.recursive(st.text(st.characters(codec="utf-8") | st.sampled_from([*OBEYED, *INVISIBLE])), st.lists, max_leaves=5)
)
def test_json_for_a_terminal_says_the_same(document: object) -> None:
    assert json.loads(json_for_terminal(json.dumps(document, ensure_ascii=False))) == document


@pytest.mark.parametrize("text", ["a dog", "ein Fluß", "שלום", "سلام می‌کند", "👩‍👩‍👧", "\\x1b", "日本語"])
def test_text_that_people_read_is_shown_as_it_is(text: str) -> None:
    assert for_terminal(text) == text
