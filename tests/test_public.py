"""The public names of the package are few, and each is documented."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nvae_jax

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()


def test_the_public_names_are_those_of_the_docs():
    table = re.findall(r"\[`(\w+)`\]\[nvae_jax\.([\w.]+)\]", PAGE)
    assert sorted(name for name, _ in table) == nvae_jax.__all__ == sorted(nvae_jax.__all__)
    assert len(nvae_jax.__all__) == 14  # think twice before adding one: a public name is a promise
    shown = re.findall(r"^::: nvae_jax\.([\w.]+)", PAGE, re.MULTILINE)
    assert shown == [home for _, home in table]
    for name, home in table:
        value = getattr(nvae_jax, name)
        assert f"nvae_jax.{home}" == f"{value.__module__}.{value.__qualname__}"


@pytest.mark.parametrize("name", nvae_jax.__all__)
def test_every_public_name_has_a_docstring(name):
    value = getattr(nvae_jax, name)
    functions = [value]
    if inspect.isclass(value):
        assert len(value.__doc__) > 40, value
        functions = [f for n, f in vars(value).items() if inspect.isfunction(f) and n[0] != "_"]
        functions = [
            f for f in functions if f.__module__ == value.__module__ and needs_docstring(f)
        ]
    for function in functions:
        text = inspect.getdoc(function)
        assert text, function
        if not inspect.isclass(value):
            parameters = inspect.signature(function).parameters
            assert not [p for p in parameters if f"{p}:" not in text], (function, text)


def needs_docstring(function):
    """Whether a function should have a docstring, unlike methods that Flax adds."""
    return function.__name__ not in ("replace", "setup")


def test_importing_the_package_imports_no_jax():
    code = "import nvae_jax, sys; dir(nvae_jax); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_get_config_takes_a_name_and_changes():
    config = nvae_jax.get_config("digits", seed=3, model={"num_groups": 2, "dtype": "bfloat16"})
    assert (config.seed, config.model.num_groups, config.model.dtype) == (3, 2, "bfloat16")
    assert config.model.encoder_width == nvae_jax.get_config("digits").model.encoder_width
    for wrong in ({"modle": {"num_groups": 2}}, {"model": 2}, {"model": {"num_groups": "two"}}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            nvae_jax.get_config("digits", **wrong)
