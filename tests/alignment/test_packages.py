"""What is missing is named with a command that installs it, wherever modalign came from."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from alignment.packages import DISTRIBUTIONS, EXTRAS, how_to_install, missing_package

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


BROUGHT_BY = {"pandas": "ray"}  # by an extra of Ray


def names(requirements: Iterable[str]) -> set[str]:
    """The distributions that requirements name, in one spelling."""
    return {re.split(r"[\[<>=~; ]", text)[0].lower().replace("_", "-") for text in requirements}


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "module"), [(extra, module) for extra, held in EXTRAS.items() for module in held])
def test_a_module_is_of_the_extra_that_is_named(extra: str, module: str) -> None:
    distributions = {name.lower().replace("_", "-") for name in packages_distributions()[module]}
    distributions = {BROUGHT_BY.get(name, name) for name in distributions}
    assert distributions & names(PROJECT["optional-dependencies"][extra])
    assert how_to_install(module) == f"`pip install 'modalign[{extra}]'`"


@pytest.mark.slow
def test_a_dependency_is_installed_by_its_own_name() -> None:
    for module, distribution in DISTRIBUTIONS.items():
        assert how_to_install(module) == f"`pip install {distribution}`"
        assert names([distribution]) <= names(packages_distributions()[module])
    assert names(DISTRIBUTIONS.values()) | {"torch"} == names(PROJECT["dependencies"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("my_encoders", ["module my_encoders", "PYTHONPATH"]),
        ("pk.nosub", ["pk has no module nosub"]),
        ("pk.sub.deep", ["pk.sub has no module deep"]),
        ("encs.py", ["encs has no module py", "leave .py out"]),
    ],
)
def test_what_may_be_a_file_of_yours_is_not_to_be_fetched_from_pypi(name: str, parts: Sequence[str]) -> None:
    said = str(missing_package(ModuleNotFoundError(name=name), "this"))
    assert [part for part in parts if part not in said] == []
    assert "pip" not in said


@pytest.mark.slow
def test_every_extra_is_installed_from_anywhere(tmp_path: Path) -> None:
    """Nothing but the name is given, no directory of the sources; what is there already is not fetched again."""
    hints = [shlex.split((how_to_install(modules[0]) or "").strip("`")) for modules in EXTRAS.values()]
    assert [hint[:2] for hint in hints] == [["pip", "install"]] * len(EXTRAS)
    command = [sys.executable, "-m", "pip", "install", *(name for hint in hints for name in hint[2:])]
    subprocess.run([*command, "--dry-run", "--no-index", "--quiet"], cwd=tmp_path, check=True, timeout=120)


def test_torch_is_named_with_torchvision_and_with_the_build_for_cpus() -> None:
    for module in ("torch", "torchvision"):
        said = str(missing_package(ModuleNotFoundError(name=f"{module}.nn"), "this"))
        assert [word for word in ("pip install torch torchvision", "--torch-backend cpu") if word not in said] == []


def test_a_package_that_is_damaged_is_not_called_missing() -> None:
    said = str(missing_package(ImportError("libcudart.so.13: cannot open shared object file"), "this"))
    assert "libcudart.so.13" in said
    assert "not installed" not in said
