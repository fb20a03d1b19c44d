"""The Python blocks of README.md, CONTRIBUTING.md and docs/ run, page by page, on a tiny run."""

import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from tests.docs.pages import PAGES
from tests.tools.conftest import make_run, tiny_run_config  # noqa: F401

DOCUMENTS = {
    page.name: Document.parse(str(page), PythonCodeBlockParser(), SkipParser()) for page in PAGES
}
WITH_PYTHON = [name for name, page in DOCUMENTS.items() if list(page.examples())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_run):  # noqa: F811
    """A folder with the run directory runs/digits of the pages."""
    folder = tmp_path_factory.mktemp("pages")
    # Four groups like two scales of two, but with fewer programs to compile.
    make_run(folder / "runs" / "digits", model={"num_scales": 1, "num_groups": 4})
    return folder


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_blocks_of_a_page_run(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for example in DOCUMENTS[page].examples():
        example.evaluate()
