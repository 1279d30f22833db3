"""What holds for all modules at once: names that say one thing each, and tests that share by way of `tests/support`."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLASS = re.compile(r"^ *class ([A-Za-z]\w*)[(:]", flags=re.MULTILINE)
IMPORT_OF_A_TEST = re.compile(
    r"^ *import .*\btest_\w+|^ *from \S*\btest_\w+|^ *from \S+ import (?:\([^)]*|.*)\btest_\w+", flags=re.MULTILINE
)


def modules(*packages: str) -> Iterator[tuple[str, str]]:
    """Path and text of every module of these packages."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def test_a_public_class_has_a_name_of_its_own() -> None:
    defined_in: dict[str, list[str]] = {}
    for path, text in modules("alignment", "connector"):
        for name in CLASS.findall(text):
            defined_in.setdefault(name, []).append(path)
    assert len(defined_in) > 300
    assert {name: paths for name, paths in defined_in.items() if len(paths) > 1} == {}


def test_no_test_module_imports_another_one() -> None:
    module = "tests.connector.test_home"
    for line in (
        f"from {module} import N",
        "    from tests.connector import (\n    a,\n    test_home,\n)",
        f"import re, {module}",
    ):
        assert IMPORT_OF_A_TEST.search(line), line
    imports = {path: IMPORT_OF_A_TEST.findall(text) for path, text in modules("tests")}
    assert {path: found for path, found in imports.items() if found} == {}
