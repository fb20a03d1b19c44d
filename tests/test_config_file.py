"""Config files are loaded, or are a one-line error that names the file."""

import os
import sys

import pytest

from nvae_jax import config_file
from nvae_jax.configs import digits

BASE = "from configs import base\nconfig = base.get_config()\ndef get_config():\n    "


def test_a_config_file_is_loaded_whole_and_locked(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{BASE}config.train.num_steps = 7\n    return config")
    config = config_file.load(path)
    assert config.train.num_steps == 7 and config.is_locked
    path.write_text(
        "from ml_collections import *\nfrom configs import digits\n"
        "def get_config(): return FrozenConfigDict(digits.get_config())"
    )
    config = config_file.load(path)
    assert config.to_dict() == digits.get_config().to_dict()
    config.train.num_steps = 9  # no longer frozen


def test_a_changed_config_file_is_read_again_and_no_bytecode_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "mine.py"
    for steps in (7, 8):
        path.write_text(f"{BASE}config.train.num_steps = {steps}\n    return config")
        os.utime(path, (0, 0))  # changed within the resolution of file times
        assert config_file.load(path).train.num_steps == steps
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has no function get_config"),
        ("get_config = 3", "it has no function get_config"),
        ("def get_config(:", "raises SyntaxError: invalid syntax"),
        ("\0", "null bytes"),
        ("import no_such_module", "raises ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config(): pass", "returns None, not a ConfigDict"),
        ("def get_config(): return {}", "returns a dict, not a ConfigDict"),
        ("def get_config(x): pass", "raises TypeError: get_config.. missing 1 required"),
        ("def get_config(): raise ValueError('bad\\nluck')", ": bad$"),
        ("def get_config(): raise KeyError", "raises KeyError: no message"),
        ("def get_config(): raise BaseException('worse')", "raises BaseException: worse"),
        ("def get_config(): raise SystemExit(0)", "raises SystemExit: 0"),
        ("import sys; sys.exit('done')", "raises SystemExit: done"),
        ("def get_config(): return get_config()", "raises RecursionError: maximum recursion"),
        (
            "from ml_collections import ConfigDict as C\ndef get_config(): return C()",
            "the config lacks checkpoint.every_steps, .* more: start from get_config",
        ),
        (f"{BASE}return config.model", "unknown keys: .*see configs/base.py"),
        (f"{BASE}return config.unlock() and 0", "returns a"),
        (
            f"{BASE}with config.unlocked(): config.train.lr = config.x = 1\n    return config",
            "unknown keys: train.lr, x",
        ),
        (
            f"{BASE}with config.unlocked(): del config['mesh']\n    return config",
            "the config lacks mesh.data, mesh.fsdp: start",
        ),
        (
            f"{BASE}with config.unlocked(): config[3] = 4\n    return config",
            "raises TypeError: ",
        ),
        (
            f"{BASE}config.train.num_steps = None\n    return config",
            "train.num_steps must be",
        ),
        (f"{BASE}config.train.num_steps = 'two'\n    return config", "raises TypeError: "),
        (f"{BASE}config.no_such = 2\n    return config", "raises AttributeError: "),
    ],
)
def test_a_wrong_config_file_is_a_one_line_error_with_its_name(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.py.*{message}") as error:
        config_file.load(path)
    assert "\n" not in str(error.value)


def test_a_config_of_the_package_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file.load("digits").to_dict() == digits.get_config().to_dict()
    known = config_file.names()
    assert {"base", "mnist", "ffhq256"} < set(known) and known == sorted(known)
    with pytest.raises(
        ValueError, match="no file 'mnits', and no config .* did you mean mnist"
    ) as error:
        config_file.load("mnits")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="known: base, celeba64, .*mnist"):
        config_file.load("zzz")


def test_a_config_can_import_modules_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "own_settings").mkdir()
    (tmp_path / "own_settings" / "steps.py").write_text("STEPS = 7")
    path = tmp_path / "mine.py"
    path.write_text(
        "from own_settings.steps import STEPS\nfrom nvae_jax.configs import base\n"
        "def get_config():\n    config = base.get_config()\n    config.train.num_steps = STEPS\n"
        "    return config"
    )
    before = list(sys.path)
    with pytest.raises(ValueError, match="No module named 'own_settings'"):
        config_file.load(path)
    monkeypatch.chdir(tmp_path)
    assert config_file.load(path).train.num_steps == 7 and sys.path == before


def test_a_config_that_cannot_import_configs_is_an_error_that_says_where_they_are(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "configs", None)
    (tmp_path / "mine.py").write_text(f"{BASE}return config")
    with pytest.raises(
        ValueError, match="configs.*; this package.s configs are in nvae_jax.configs"
    ):
        config_file.load("mine.py")


def test_a_path_that_is_no_file_is_an_error(tmp_path):
    for path in ("", str(tmp_path), str(tmp_path / "none.py"), "/dev/null"):
        with pytest.raises(ValueError, match="^--config: there is no file '.*'$"):
            config_file.load(path)
