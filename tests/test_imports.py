"""The direction of imports: launch → train, evaluate → build → the rest."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Module or package -> what of this project it must not import.
FORBIDDEN = {
    "nvae_jax/models": ("data", "build", "train", "state", "steps", "likelihoods", "configs"),
    "nvae_jax/ops": ("models", "data", "build"),
    "nvae_jax/distributions": ("models", "data", "build", "likelihoods"),
    "nvae_jax/data": ("models", "build", "train", "state", "steps", "configs", "likelihoods"),
    "nvae_jax/objective.py": ("models", "data", "build"),
    "nvae_jax/regularizers.py": ("models", "data", "build"),
    "nvae_jax/optim.py": ("models", "data", "build"),
    "nvae_jax/steps.py": ("data", "build", "train", "checkpoint", "checkpoint_reader", "configs"),
    "nvae_jax/state.py": ("data", "build", "train", "configs"),
    "nvae_jax/train.py": (
        "models",
        "likelihoods",
        "distributions",
        "ops",
        "data.sources",
        "data.splits",
    ),
    "nvae_jax/build.py": ("train", "evaluate", "cli", "checkpoint", "checkpoint_reader", "loading"),
}


def imported(path):
    """Names of this project's modules that a file imports, without `nvae_jax.`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            base = node.module
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (n.removeprefix("nvae_jax.") for n in names if n.startswith(("nvae", "configs")))


@pytest.mark.parametrize("where", sorted(FORBIDDEN))
def test_imports_point_down(where):
    path = ROOT / where
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files
    for file in files:
        for name in imported(file):
            for forbidden in FORBIDDEN[where]:
                assert not f"{name}.".startswith(f"{forbidden}."), f"{file} imports {name}"


def test_launch_scripts_are_short_and_not_imported():
    for script in (ROOT / "launch").glob("*.py"):
        assert len(script.read_text().splitlines()) <= 70, script
    for file in (ROOT / "nvae_jax").rglob("*.py"):
        assert "launch" not in {name.split(".")[0] for name in imported(file)}


def test_only_sources_names_data_sets():
    names = ("fashion_mnist", "cifar10", "celeba64", "ffhq256", "imagenet32", "omniglot")
    allowed = {"sources.py", "arguments.py"}
    for file in (ROOT / "nvae_jax").rglob("*.py"):
        if file.name not in allowed:
            found = [name for name in names if f'"{name}"' in file.read_text()]
            assert not found, f"{file} names {found}"
