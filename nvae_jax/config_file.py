"""Finds and runs config files; errors in them are reported in one line."""

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
    """Loads a config and changes some of its values.

        get_config("digits", seed=1, model={"num_groups": 4})

    Args:
      name: name of a config in this package, path of a Python file, or a run directory, whose
        config is loaded. "base" has the default values and a comment on every key.
      **changes: {key: value}; the value of a section is a dict.

    Returns:
      a locked `ConfigDict`, which raises an error for an unknown key.

    Raises:
      ValueError: if there is no such config, or for an unknown key or an invalid value.
    """
    is_run = (paths.parse(name) / run_directory.CONFIG).is_file()
    config = run_directory.load_config(name) if is_run else load(name)
    return schema.changed(config, schema.flatten(changes))


def load(name: str | Path) -> ConfigDict:
    """Returns the complete, checked and locked config that a file's get_config() returns.

    Args:
      name: name of a config in this package, such as "digits", or path of a Python file.

    Raises:
      ValueError: if there is no such file, running it fails, or the result is not a valid config.
    """
    path = find(name)
    try:
        return schema.checked(_run(path))
    except KeyboardInterrupt:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {_first_line(error)}") from error
    except BaseException as error:  # the user's code can raise anything, even SystemExit
        raise ValueError(f"{path} raises {_describe(error)}") from error


def find(name: str | Path) -> str | Path:
    """The file of a config: one of this package if `name` is in `names()`, otherwise a path."""
    known, text = names(), str(name)
    if text in known:
        return FOLDER / f"{text}.py"
    if paths.is_bucket(path := paths.parse(name or ".", "--config")):
        return mirror.existing(path)
    if Path(name).is_file():
        return name
    message = f"--config: there is no file {text!r}"
    if not text or Path(name).name != text:  # clearly meant as a path
        raise ValueError(message)
    close = difflib.get_close_matches(Path(name).stem, known)
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known)}"
    raise ValueError(f"{message}, and no config of that name; {hint}")


def names() -> list[str]:
    """The names of the configs in this package, sorted."""
    return sorted(file.stem for file in FOLDER.glob("[a-z]*.py"))


class _SourceLoader(machinery.SourceFileLoader):
    """Compiles the source at each load. Cached bytecode would lie beside the user's file, and would
    be taken for current if the file was changed within the second to one of the same length."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _run(path):
    loader = _SourceLoader("config", str(path))
    spec = util.spec_from_loader("config", loader)
    assert spec is not None  # it is None only without a loader
    module = util.module_from_spec(spec)
    with _importing_from_working_directory():
        loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise ValueError("it has no function get_config()")
        config = get_config()
    if not isinstance(config, ConfigDict):
        kind = "None" if config is None else f"a {type(config).__name__}"
        raise ValueError(f"get_config() returns {kind}, not a ConfigDict")
    return config


@contextlib.contextmanager
def _importing_from_working_directory():
    """A context in which configs can import modules of the working directory, whether the command
    was started with `python`, `python -m` or the installed program."""
    before = list(sys.path)
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path[:] = before


def _describe(error):
    text = f"{type(error).__name__}: {_first_line(error)}"
    if isinstance(error, ImportError) and error.name == "configs":
        text += "; this package's configs are in nvae_jax.configs"
    return text


def _first_line(error):
    return next(iter(str(error).strip().splitlines()), "no message")
