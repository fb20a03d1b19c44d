"""The base installation is enough for training; a missing extra is a one-line error."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from nvae_jax import analyze, detection, export, extras, loggers
from nvae_jax.data import lmdb_folder, tfds_set, tfrecords
from nvae_jax.explore import explorer
from nvae_jax.hub import locations, model_folder
from nvae_jax.interop import torch_file
from nvae_jax.metrics.features import Inception

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Modules of packages that the tests need but the base installation lacks.
OPTIONAL = [
    *("sklearn", "matplotlib", "einops", "lmdb", "flatbuffers", "torch", "tensorboard", "wandb"),
    *("safetensors", "huggingface_hub", "gcsfs", "s3fs", "starlette", "uvicorn"),
    "torch_fidelity",
    *("tensorflow", "tensorflow_datasets", "nvae_jax.data.example_proto"),
]
TRAINING = """
import sys

sys.modules.update(dict.fromkeys(sys.argv[1:]))
import nvae_jax.commands.train
from nvae_jax import api, checkpoint, evaluate, reporting, sample
from nvae_jax.data import digits

print(digits.read_images("train").shape)
"""


def test_training_evaluation_and_sampling_need_no_extra():
    command = [sys.executable, "-c", TRAINING, *OPTIONAL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("(1500, 16, 16, 1)\n", 0), done.stderr


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("lmdb", "lmdb", lambda path: lmdb_folder._environment(str(path))),
        ("tensorflow_datasets", "tfds", tfds_set.Tfds("celeb_a_hq/256", ("train",)).builder),
        (
            "nvae_jax.data.example_proto",
            "tfrecords",
            lambda path: tfrecords._parse(b"", "record 0"),
        ),
        ("nvae_jax.latent_charts", "plots", lambda path: analyze.analyze_run(None, path)),
        ("sklearn.metrics", "scores", lambda path: detection.measure([0.0], [1.0], "elbo")),
        (
            "torch_fidelity.feature_extractor_inceptionv3",
            "metrics",
            lambda path: Inception("absent.pth"),
        ),
        ("flatbuffers", "export", lambda path: export._check(1, ("cpu",))),
        ("torch", "torch", torch_file.read),
        ("safetensors", "hub", lambda path: model_folder.safetensors()),
        ("huggingface_hub", "hub", lambda path: locations.publish(path, "hf://a/b")),
        ("nvae_jax.explore.server", "explore", lambda path: explorer.explore_run(0, workdir=path)),
        ("wandb", "wandb", lambda path: loggers.by_name(["wandb"])),
    ],
)
def test_a_missing_extra_is_a_one_line_error_that_names_it(
    module, extra, use, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError) as error:
        use(tmp_path / "absent")
    message = str(error.value)
    assert message.endswith(f" needs {module}: pip install 'nvae_jax[{extra}]'")
    assert "\n" not in message and extra in PROJECT["optional-dependencies"]


def test_a_missing_dependency_of_an_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="^it needs no_such_package: pip install 'nvae_jax.x.'$"):
        extras.load("needs_more", "x", "it")


def test_the_documentation_has_every_extra():
    page = (ROOT / "docs" / "getting-started.md").read_text()
    table = "".join(line for line in page.splitlines() if line.startswith("| `"))
    assert not [name for name in PROJECT["optional-dependencies"] if f"`{name}`" not in table]


def distribution(text):
    """The normalised name of a dependency or package."""
    return re.sub("[-_.]+", "-", re.match(r"[\w.-]+", text)[0]).lower()


def imported(file):
    """The top-level names that a file imports, without the standard library and this package."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from {name.split(".")[0] for name in names} - {*sys.stdlib_module_names, "nvae_jax"}


def test_every_imported_package_is_a_declared_dependency():
    """A dependency of a dependency is not enough, since it could change. Files that need an extra
    are exempt."""
    known = {distribution(text) for text in PROJECT["dependencies"]}
    installed = metadata.packages_distributions()
    folders = [ROOT / name for name in ("nvae_jax", "launch", "configs")]
    found = {
        (file.name, name)
        for folder in folders
        for file in folder.rglob("*.py")
        for name in imported(file)
        if not known & {distribution(text) for text in installed.get(name, ())}
    }
    assert found == {
        ("buckets.py", "fsspec"),  # of gcsfs and s3fs
        ("example_proto.py", "google"),
        ("latent_charts.py", "matplotlib"),
        ("score_charts.py", "matplotlib"),
        ("server.py", "starlette"),
        ("server.py", "uvicorn"),
    }


def test_a_package_can_be_hidden_and_is_available_again_afterwards(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with extras.hidden("wave"), pytest.raises(ImportError):
        import wave
    import wave  # noqa: F811

    with extras.hidden("wave"):
        import wave as again
    assert again is wave
