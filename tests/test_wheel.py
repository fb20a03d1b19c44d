"""The built wheel, installed in a new environment and used in the folder of another project."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.test_extras import OPTIONAL
from tests.test_flags import TINY

ROOT = Path(__file__).parents[1]
SOURCES = ("configs", "launch", "models", "nvae_jax", "pyproject.toml", "setup.py", "MANIFEST.in")
SOURCES += ("README.md", "LICENSE")
BUILD = "from setuptools import build_meta; print(build_meta.build_{}({!r}))"


def run(*command, cwd, **variables):
    """Runs a program that must end well; returns the last line of its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, "JAX_PLATFORMS": "cpu", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ["", *done.stdout.splitlines()][-1]


def build(source, kind, folder):
    """Builds an "sdist" or a "wheel" of the project in `source`: its path."""
    return folder / run(sys.executable, "-c", BUILD.format(kind, str(folder)), cwd=source)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel that is built from the sdist, wheel that is built from the checkout)."""
    root = tmp_path_factory.mktemp("built")
    source, unpacked = root / "source", root / "unpacked"
    for name in SOURCES:
        path = ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        options = {"symlinks": True, "ignore": shutil.ignore_patterns("__pycache__")}
        copy(path, source / name, **(options if path.is_dir() else {}))
    sdist = build(source, "sdist", root)
    unpacked.mkdir()
    run("tar", "-xf", sdist, cwd=unpacked)
    (project,) = unpacked.iterdir()
    for folder in ("by_sdist", "direct"):
        (root / folder).mkdir()
    return (
        sdist,
        build(project, "wheel", root / "by_sdist"),
        build(source, "wheel", root / "direct"),
    )


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_one_package_with_all_its_files(built):
    files = contents(built[1])
    assert {name.split("/")[0].split("-")[0] for name in files} == {"nvae_jax"}
    for folder, name in (("launch", "commands"), ("configs", "configs")):
        for path in (ROOT / folder).glob("*.py"):
            assert files[f"nvae_jax/{name}/{path.name}"] == path.read_bytes()
    for path in (ROOT / "models").rglob("*.*"):
        if path.is_file():
            name = path.relative_to(ROOT / "models")
            assert files[f"nvae_jax/pretrained/{name}"] == path.read_bytes()
    for pattern in (
        "data/*.npz",
        "explore/page.*",
        "ops/cpu/native/*.cc",
        "ops/cpu/native/*.h",
        "models/*.py",
    ):
        paths = list((ROOT / "nvae_jax").glob(pattern))
        assert paths and all(f"nvae_jax/{p.relative_to(ROOT / 'nvae_jax')}" in files for p in paths)
    direct = contents(built[2])
    assert {n: c for n, c in direct.items() if "RECORD" not in n} == {
        n: c for n, c in files.items() if "RECORD" not in n
    }


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    """A new environment with the wheel and without extras. It uses the dependencies that are
    installed here, but not this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    pip = ("-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check")
    run(sys.executable, *pip, "install", "--no-deps", "--no-index", built[1], cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    (site / "without.pth").write_text(f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))")
    return folder / "bin"


def test_an_installed_command_works_in_the_folder_of_another_project(environment, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise RuntimeError('of another project')")
    place = run(
        environment / "python", "-c", "import nvae_jax as n; print(n.__file__)", cwd=tmp_path
    )
    assert Path(place).is_relative_to(environment.parent)
    command = environment / "nvae-jax"
    assert run(command, "--help", cwd=tmp_path) == "nvae-jax COMMAND --help explains a command."
    run(command, "train", "--config=digits", "--workdir=run", *TINY.split(), cwd=tmp_path)
    sampling = ("--num=3", "--batch_size=2", "--temperature=0.7", "--passes=1", "--out=samples")
    run(command, "sample", "--workdir=run", *sampling, cwd=tmp_path)
    images = np.load(tmp_path / "samples" / "samples.npz")["images"]
    assert images.shape == (3, 16, 16, 1)
