"""Runs a config file, and says in one line what is wrong with it."""

from importlib import machinery, util
from pathlib import Path

from ml_collections import ConfigDict

from nvae_jax import schema


def load(path):
    """The config that a file's get_config() gives: whole, checked and locked.

    Args:
      path: of a Python file such as configs/digits.py.

    Raises:
      ValueError: there is no such file, running it fails, or what it gives is no config.
    """
    if not Path(path).is_file():
        raise ValueError(f"--config: there is no file {str(path)!r}")
    try:
        return schema.checked(_run(path))
    except KeyboardInterrupt:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {_first_line(error)}") from error
    except BaseException as error:  # of the user's code: it may even exit
        kind = type(error).__name__
        raise ValueError(f"{path} ends in {kind}: {_first_line(error)}") from error


def _run(path):
    loader = machinery.SourceFileLoader("config", str(path))
    module = util.module_from_spec(util.spec_from_loader("config", loader))
    loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError("it has no function get_config()")
    config = get_config()
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config() gives a {type(config).__name__}, not a ConfigDict")
    return config


def _first_line(error):
    return next(iter(str(error).strip().splitlines()), "no message")
