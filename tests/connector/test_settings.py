from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.errors import ConnectorError, SettingsError
from connector.settings import Settings, checked_name
from tests.support.errors import raises

VARIABLES = {
    "MODALIGN_HOME": "/env/home",
    "MODALIGN_QDRANT_URL": "https://env:6333",
    "MODALIGN_DATABASE_URL": "postgresql://env/db",
    "MODALIGN_DEVICE": "cuda:1",
    "MODALIGN_QDRANT_API_KEY": "env-secret",
    "MODALIGN_QDRANT_CA_FILE": "/env/ca.pem",
    "MODALIGN_QDRANT_TIMEOUT": "7",
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_everything_has_a_default_under_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/me")
    monkeypatch.setenv("USERPROFILE", "/people/me")
    assert Settings.load() == Settings(
        home=Path("/people/me/.modalign"),
        store_url="edge:/people/me/.modalign/qdrant",
        database_url="sqlite:////people/me/.modalign/modalign.db",
        device="auto",
        api_key=None,
        ca_file=None,
        timeout=60,
    )


def test_databases_move_with_the_home(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path)
    assert settings.store_url == f"edge:{tmp_path}/qdrant"
    assert settings.database_url == f"sqlite:///{tmp_path}/modalign.db"


def test_the_environment_comes_before_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == Settings(
        Path("/env/home"), "https://env:6333", "postgresql://env/db", "cuda:1", "env-secret", Path("/env/ca.pem"), 7
    )


def test_options_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    loaded = Settings.load(home="/o", qdrant_url="http://o:1", database_url="sqlite:///o.db", device="cpu")
    assert loaded == Settings(Path("/o"), "http://o:1", "sqlite:///o.db", "cpu", "env-secret", Path("/env/ca.pem"), 7)


@pytest.mark.parametrize("text", ["soon", "0", "-3", "2.5", "1000000"])
def test_a_timeout_that_is_invalid(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALIGN_QDRANT_TIMEOUT", text)
    with raises(SettingsError, "MODALIGN_QDRANT_TIMEOUT", text):
        Settings.load()


PLACES = ["home", "qdrant_url", "database_url"]


@pytest.mark.parametrize("name", PLACES)
def test_an_empty_place_is_refused_by_name_instead_of_writing_elsewhere(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"MODALIGN_{name.upper()}"
    empty: dict[str, Any] = {name: ""}
    with raises(SettingsError, variable):
        Settings.load(**empty)
    monkeypatch.setenv(variable, "")
    with raises(SettingsError, variable):
        Settings.load()
    full: dict[str, Any] = {name: VARIABLES[variable]}
    Settings.load(**full)


@pytest.mark.parametrize("name", sorted(VARIABLES.keys() - {f"MODALIGN_{name.upper()}" for name in PLACES}))
def test_an_empty_variable_is_an_unset_one(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = Settings.load()
    monkeypatch.setenv(name, "")
    assert Settings.load() == expected


def test_the_home_is_absolute_and_knows_the_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Settings.load(home="~/x").home == tmp_path / "x"
    assert Settings.load(home="y").home == tmp_path / "y"


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("http://h:6333 \n", "http://h:6333"),
        (" http://a:1 ,\thttp://b:2", "http://a:1,http://b:2"),
        (",http://h:6333", "http://h:6333"),
        ("http://h:6333,", "http://h:6333"),
        ("edge:/a place ", "edge:/a place "),
        (" , ", " , "),
    ],
)
def test_white_space_around_addresses_is_not_of_them(url: str, taken: str) -> None:
    assert Settings.load(home="/h", qdrant_url=url).store_url == taken


def test_the_key_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALIGN_QDRANT_API_KEY", "top-secret")
    settings = Settings.load(home="/h")
    assert settings.api_key == "top-secret"
    assert "top-secret" not in f"{settings!r} {settings}"


def test_no_secret_of_a_url_is_printed() -> None:
    settings = Settings.load(home="/h", qdrant_url="https://t0p@q:6333", database_url="postgresql://me:s3cr@db/x")
    assert repr(settings) == (
        "Settings(home=PosixPath('/h'), store_url='https://***@q:6333', database_url='postgresql://me:***@db/x', "
        "device='auto', ca_file=None, timeout=60, max_pixels=100000000)"
    )


def test_settings_are_a_value() -> None:
    settings = Settings.load(home="/h")
    with pytest.raises(FrozenInstanceError):
        settings.device = "cpu"  # type: ignore[misc]
    assert settings == Settings.load(home="/h")


def test_sets_and_alignments_are_directories_of_the_home() -> None:
    settings = Settings.load(home="/h")
    assert settings.set_path("emoji") == Path("/h/sets/emoji")
    assert settings.alignment_path("emoji.v2") == Path("/h/alignments/emoji.v2")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-x", "_x", "a/b", "../a", "a\\b", "a b", "a\n", "a\x00", "ä", "a:b", "x" * 129, "a*"],
)
def test_a_name_that_is_no_file_name_everywhere_is_refused(name: str) -> None:
    for make in (Settings.load(home="/h").set_path, Settings.load(home="/h").alignment_path):
        with raises(SettingsError, repr(name)):
            make(name)
    with pytest.raises(SettingsError) as caught:
        checked_name(name, "release")
    assert str(caught.value).startswith(f"release name {name!r}:")
    assert isinstance(caught.value, ConnectorError)
    assert isinstance(caught.value, ValueError)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True))
def test_a_good_name_is_returned_and_stays_within_the_home(name: str) -> None:
    assert checked_name(name, "set") == name
    assert Settings.load(home="/h").set_path(name).resolve().parent == Path("/h/sets").resolve()


@pytest.mark.parametrize("name", ["home", "qdrant_ca_file"])
def test_the_home_of_an_unknown_user_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"MODALIGN_{name.upper()}", "~nobody-of-this-name/x")
    with raises(SettingsError, f"MODALIGN_{name.upper()}", "~nobody-of-this-name"):
        Settings.load()
