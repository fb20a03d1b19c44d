"""The files, and the functions written as `module.function`, that the pages name are there."""

import re

import pytest

from nvae_jax import schema
from tests.docs.pages import FENCE, PAGES, ROOT, SPAN

PLACES = (ROOT, ROOT / "nvae_jax")
# The changelog tells of names that are no more; upper case stands for the reader's own.
NOW = [page for page in PAGES if page.name != "changelog.md"]
FILE = re.compile(r"[a-z_][a-z_0-9/.-]*\.(?:py|sh|sbatch|yaml|txt)")
ATTRIBUTE = re.compile(r"(?:\w+/)*([a-z_]+)\.(\w+)")


def spans(page):
    return SPAN.findall(FENCE.sub("", page.read_text()))


def defines(file, name):
    return re.search(rf"^ *(?:def|class) {name}\b|^{name}\b", file.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", NOW, ids=lambda page: page.name)
def test_named_files_exist(page):
    files = [span for span in spans(page) if FILE.fullmatch(span)]
    assert not [f for f in files if not any((place / f).exists() for place in PLACES)]


@pytest.mark.parametrize("page", NOW, ids=lambda page: page.name)
def test_named_functions_exist(page):
    found = [ATTRIBUTE.fullmatch(span) for span in spans(page) if span not in schema.DEFAULTS]
    modules = [(ROOT / "nvae_jax" / f"{m[1]}.py", m[2]) for m in found if m]
    missing = [(file, name) for file, name in modules if file.exists() and not defines(file, name)]
    assert not missing
