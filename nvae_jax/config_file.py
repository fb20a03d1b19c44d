"""Finds and runs a config file, and says in one line what is wrong with it."""

import contextlib
import difflib
import sys
from importlib import machinery, util
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nvae_jax import mirror, paths, run_directory, schema

FOLDER = Path(__file__).parent / "configs"


def get_config(name: str | Path = "base", **changes: Any) -> ConfigDict:
    """A config by name, with some of its values changed.

        get_config("digits", seed=1, model={"num_groups": 4})

    Args:
      name: of a config of this package, the path of a Python file, or a run directory, which has
        its config. "base" has the defaults, and a comment on every key.
      **changes: values by key, those of a section as a dict.

    Returns:
      a `ConfigDict`, locked: a key that is not there is an error.

    Raises:
      ValueError: there is no such config, an unknown key, or a value that its key cannot have.
    """
    is_run = (paths.parse(name) / run_directory.CONFIG).is_file()
    config = run_directory.load_config(name) if is_run else load(name)
    return schema.changed(config, schema.flatten(changes))


def load(name: str | Path) -> ConfigDict:
    """The config that a file's get_config() gives: whole, checked and locked.

    Args:
      name: of a config of this package, such as "digits", or the path of a Python file.

    Raises:
      ValueError: there is no such file, running it fails, or what it gives is no config.
    """
    path = find(name)
    try:
        return schema.checked(_run(path))
    except KeyboardInterrupt:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {_first_line(error)}") from error
    except BaseException as error:  # of the user's code: it may even exit
        raise ValueError(f"{path} ends in {_described(error)}") from error


def find(name: str | Path) -> str | Path:
    """The file of a config: the package's own where `name` is one of `names()`, else a path."""
    known, text = names(), str(name)
    if text in known:
        return FOLDER / f"{text}.py"
    if paths.is_bucket(path := paths.parse(name or ".", "--config")):
        return mirror.existing(path)
    if Path(name).is_file():
        return name
    message = f"--config: there is no file {text!r}"
    if not text or Path(name).name != text:  # it was meant as a path
        raise ValueError(message)
    close = difflib.get_close_matches(Path(name).stem, known)
    hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(known)}"
    raise ValueError(f"{message}, and no config of that name; {hint}")


def names() -> list[str]:
    """The configs of this package, sorted."""
    return sorted(file.stem for file in FOLDER.glob("[a-z]*.py"))


def _run(path):
    loader = machinery.SourceFileLoader("config", str(path))
    spec = util.spec_from_loader("config", loader)
    assert spec is not None  # as there is a loader
    module = util.module_from_spec(spec)
    with _importing_from_here():
        loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise ValueError("it has no function get_config()")
        config = get_config()
    if not isinstance(config, ConfigDict):
        kind = "None" if config is None else f"a {type(config).__name__}"
        raise ValueError(f"get_config() gives {kind}, not a ConfigDict")
    return config


@contextlib.contextmanager
def _importing_from_here():
    """A config may import what is in the working directory, however the command was started."""
    before = list(sys.path)
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path[:] = before


def _described(error):
    text = f"{type(error).__name__}: {_first_line(error)}"
    if isinstance(error, ImportError) and error.name == "configs":
        text += "; those of this package are nvae_jax.configs"
    return text


def _first_line(error):
    return next(iter(str(error).strip().splitlines()), "no message")
