"""What holds for all modules at once: names that say one thing each, and tests that share by way of `tests/support`."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def modules(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    """Path and syntax tree of every module of these packages."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def test_a_public_class_has_a_name_of_its_own() -> None:
    defined_in: dict[str, list[str]] = {}
    for path, tree in modules("alignment", "connector"):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined_in.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in defined_in.items() if len(paths) > 1} == {}


def test_no_test_module_imports_another_one() -> None:
    imports: dict[str, list[str]] = {}
    for path, tree in modules("tests"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            else:
                continue
            if taken := [name for name in names if any(part.startswith("test_") for part in name.split("."))]:
                imports.setdefault(path, []).extend(taken)
    assert imports == {}
