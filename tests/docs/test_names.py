"""The files and the functions (as `module.function`) in the pages exist."""

import re

import pytest

from nvae_jax import schema
from tests.docs.pages import FENCE, PAGES, ROOT, SPAN

FOLDERS = (".ci", "benchmarks", "configs", "examples", "launch", "nvae_jax", "tests")
FILES = {f"/{file.relative_to(ROOT)}" for folder in FOLDERS for file in (ROOT / folder).rglob("*")}
# The changelog has old names; names in upper case stand for the reader's own.
NOW = [page for page in PAGES if page.name != "changelog.md"]
FILE = re.compile(r"[a-z_][a-z_0-9/.-]*\.(?:py|sh|sbatch|yaml)")
ATTRIBUTE = re.compile(r"(?:\w+/)*([a-z_]+)\.(?!n?py$|npz$|csv$|png$|json$|md$)(\w+)")


def spans(page):
    return SPAN.findall(FENCE.sub("", page.read_text()))


def defines(file, name):
    return re.search(rf"^ *(?:def|class) {name}\b|^{name}\b", file.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", NOW, ids=lambda page: page.name)
def test_every_named_file_exists(page):
    named = [span for span in spans(page) if FILE.fullmatch(span)]
    assert not [name for name in named if not any(f.endswith(f"/{name}") for f in FILES)]


@pytest.mark.parametrize("page", NOW, ids=lambda page: page.name)
def test_every_named_function_exists(page):
    found = [ATTRIBUTE.fullmatch(span) for span in spans(page) if span not in schema.DEFAULTS]
    modules = [(ROOT / "nvae_jax" / f"{m[1]}.py", m[2]) for m in found if m]
    missing = [(file, name) for file, name in modules if file.exists() and not defines(file, name)]
    assert not missing


def test_every_included_file_exists():
    lines = [line for page in PAGES for line in page.read_text().splitlines() if "--8" in line]
    files = [re.fullmatch(r'--8<-- "(.+)"', line) for line in lines]
    assert len(files) > 2 and all(file and (ROOT / file[1]).exists() for file in files), lines


def test_every_linked_file_of_the_readme_exists():
    """Links in docs/ are checked when the pages are built."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)|src=\"(.+?)\"", text)
    assert len(links) > 10
    assert not [link for link in map("".join, links) if not (ROOT / link).exists()]


def test_architecture_names_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = [file.name for file in (ROOT / "nvae_jax").glob("*.py")]
    assert len(modules) > 40
    assert not [name for name in modules if not re.search(rf"`(\w+/)*{name}`", text)]
