"""The files for GitHub, pre-commit and citation tools."""

import re

import pytest
import yaml

import nvae_jax
from tests.docs.pages import ROOT

FILES = sorted([*ROOT.glob(".github/**/*.yml"), *ROOT.glob("*.cff"), *ROOT.glob(".pre-commit*")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_yaml_files_are_valid_and_run_existing_scripts(file):
    assert isinstance(yaml.safe_load(file.read_text()), dict)
    scripts = re.findall(r"\bbash ([.\w/]+)", file.read_text())
    assert not [script for script in scripts if not (ROOT / script).exists()]


def test_the_citation_has_the_version_and_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == nvae_jax.__version__
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_docker_image_installs_existing_extras():
    extras = re.findall(r"EXTRAS=([\w,]+)", (ROOT / "Dockerfile").read_text())
    listed = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert len(extras) == 2 and set(",".join(extras).split(",")) <= listed
