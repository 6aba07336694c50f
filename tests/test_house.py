"""The layout of the project: short modules, few at the root, and imports that point one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.client import ROOT

WINGS = ("api", "cli", "config", "mail", "mongo", "ops")
CARD = {"notifier.py", "handlers.py", "store.py", "mailer.py", "schemas.py", "test_notifier.py"}
MORE = {"conftest.py", "delivery.py", "kinds.py", "settings.py"}
PRODUCTION = sorted(
    path for folder in (".", *WINGS) for path in (ROOT / folder).glob("*.py") if "test" not in path.name
)


def name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name(path): path for path in PRODUCTION}


def imports(path: Path) -> Iterator[str]:
    """Yield the project's modules that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names] + [f"{node.module}"]
        else:
            continue
        yield from (module for module in found if module in MODULES and module not in WINGS)


def test_the_root_has_the_modules_of_the_card_and_few_more() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == CARD | MORE


def test_imports_are_not_circular() -> None:
    graph = {module: set(imports(path)) - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_folders_import_each_other_in_one_direction() -> None:
    graph: dict[str, set[str]] = {wing: set() for wing in WINGS}
    for module, path in MODULES.items():
        wing = module.split(".")[0]
        if wing in WINGS:
            graph[wing] |= {other.split(".")[0] for other in imports(path)} & set(WINGS) - {wing}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", [module for module in MODULES if module.split(".")[0] in WINGS])
def test_no_folder_imports_the_handlers_or_the_entry(module: str) -> None:
    assert not {"handlers", "notifier"} & set(imports(MODULES[module]))


@pytest.mark.parametrize("module", ["kinds", "settings"])
def test_kinds_and_settings_import_only_config(module: str) -> None:
    assert {imported.split(".")[0] for imported in imports(MODULES[module])} <= {"config", "kinds"}


@pytest.mark.parametrize("path", PRODUCTION, ids=name)
def test_no_module_has_more_than_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_names_of_tests_have_at_most_60_characters() -> None:
    paths = [ROOT / "test_notifier.py", *ROOT.glob("tests/*.py")]
    names = [test for path in paths for test in re.findall(r"def (test_\w+)", path.read_text())]
    assert [test for test in names if len(test) > 60] == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/*.py")), ids=name)
def test_no_test_module_is_too_long_or_imports_another(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert not [line for line in path.read_text().splitlines() if line.startswith("from tests.test_")]
