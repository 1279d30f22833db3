"""The wheel, beside an application that has packages of its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

ROOT = Path(__file__).parent.parent
TABLES = {"alembic_version", "encoder", "release", "run"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the wheel, as pip installs them."""
    pytest.importorskip("hatchling", reason="builds the wheel")
    directory = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", *build, "--wheel-dir", directory, ROOT], check=True)
    (built,) = directory.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(directory / "installed")
    return directory / "installed"


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """An application with migrations of its own, which would say so if they ran."""
    for package in ("migrations", "migrations/versions"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "migrations" / "env.py").write_text("raise SystemExit('the migrations of the application ran')")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("installed", ["wheel", "editable"])
def test_db_upgrade_runs_its_own_migrations_beside_those_of_an_application(
    installed: str, application: Path, request: pytest.FixtureRequest
) -> None:
    code = request.getfixturevalue("wheel") if installed == "wheel" else ROOT
    script = "import migrations, sys; from connector.cli.main import main; print(main.__code__.co_filename); main()"
    ended = subprocess.run(
        [sys.executable, "-c", script, "db", "upgrade", "--home", "home"],
        cwd=application,
        env=os.environ | {"PYTHONPATH": f"{application}{os.pathsep}{code}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, f"{code / 'connector/cli/main.py'}\n"), ended.stderr
    engine = create_engine(f"sqlite:///{application / 'home' / 'modalign.db'}")
    assert set(inspect(engine).get_table_names()) > TABLES
    engine.dispose()


def test_the_wheel_adds_only_its_own_packages(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {"alignment", "connector"}
    for name in ("connector/py.typed", "connector/reports/templates/page.html", "connector/migrations/env.py"):
        assert (wheel / name).is_file()
