"""The selection of `launch/test.sh --quick` covers every package and test folder."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SELECTED = (ROOT / "tests" / "quick.txt").read_text().split()
FILES = {ROOT / name.partition("::")[0] for name in SELECTED}


def imported(file):
    """The dotted names of a file's imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}." for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (f"{alias.name}." for alias in node.names)


def test_the_selection_covers_every_package():
    names = {name for file in FILES for name in imported(file)}
    packages = {path.parent.relative_to(ROOT) for path in (ROOT / "nvae_jax").rglob("__init__.py")}
    dotted = {".".join(package.parts) + "." for package in packages}
    assert len(dotted) > 5
    assert not {package for package in dotted if not any(n.startswith(package) for n in names)}


def test_the_selection_covers_every_test_folder():
    folders = {file.parent for file in (ROOT / "tests").rglob("test_*.py")}
    assert not folders - {file.parent for file in FILES} - FILES


def test_the_selected_tests_exist():
    for name in SELECTED:
        file, _, test = name.partition("::")
        assert (ROOT / file).exists(), name
        assert f"def {test.partition('[')[0]}" in (ROOT / file).read_text() if test else True, name
