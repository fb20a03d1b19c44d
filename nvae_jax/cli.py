"""What the commands share: flags, one-line errors, the compilation cache."""

import contextlib
import difflib
import gc
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from nvae_jax import allocator, distributed, files, lost_process, paths, schema
from nvae_jax.buckets import SCHEMES, BucketError
from nvae_jax.interrupt import Interrupted

TRACEBACK_VARIABLE = "NVAE_JAX_TRACEBACK"
KEEP_MEMORY_VARIABLE = "NVAE_JAX_KEEP_MEMORY"
PROCESS_FLAGS = (
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0 of a cluster"),
    flags.DEFINE_integer("num_processes", None, "processes of the cluster", 1),
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", 0),
)


def define_changes() -> Callable[[], dict[str, Any]]:
    """Defines --config.KEY=VALUE for every key of configs/base.py.

    Returns:
      a function of no arguments: {key: value} of those that were given.
    """
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    defined = {
        key: define[type(value)](f"config.{key}", None, "see configs/base.py")
        for key, value in schema.DEFAULTS.items()
    }
    return lambda: {key: flag.value for key, flag in defined.items() if flag.value is not None}


def run(main: Callable[[list[str]], Any], program: str = "") -> None:
    """Parses the flags and calls `main(argv)`.

    Args:
      main: of a command.
      program: what help and errors call the commands by, "nvae-jax"; "": scripts of launch/.

    A wrong flag, key, path or value ends in one line on stderr and exit status 2; a run stopped by
    a signal in 128 + its number; one that lost another process of its cluster in 134. Set
    NVAE_JAX_TRACEBACK=1 to see where an error comes from, and NVAE_JAX_KEEP_MEMORY=0 to give freed
    memory back to the system (see `allocator`).
    """
    if os.environ.get(KEEP_MEMORY_VARIABLE) != "0":
        allocator.keep_freed_memory()
    # What the imports made stays to the end. Looking at it again and again, the garbage collector
    # would make tracing a program take a seventh longer.
    gc.freeze()
    try:
        argv = _parse(sys.argv, sys.modules[main.__module__], program)
        _export_process_flags()
        _use_compilation_cache()
        main(argv)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.signal_number)
    except KeyboardInterrupt:
        distributed.exit_without_waiting(130)
    except Exception as error:
        lost = lost_process.is_reason_of(error)
        expected = (flags.Error, ValueError, OSError, FloatingPointError)
        if (lost or isinstance(error, expected)) and not os.environ.get(TRACEBACK_VARIABLE):
            line = as_called(_first_line(error), program)
            if lost:
                with contextlib.suppress(OSError):  # nobody may be reading
                    sys.stdout.flush()
                lost_process.end(lost_process.describe(error, line))
            print(f"error: {line}", file=sys.stderr)
            distributed.exit_without_waiting(2)
        if not jax.distributed.is_initialized():
            raise
        # In a cluster the others wait for a process that ends by itself, unless it leaves at once.
        traceback.print_exc()
        distributed.exit_without_waiting(1)


def _parse(argv, command, program):
    if {"--help", "-h", "-help"} & set(argv[1:]):
        name = command.__name__ if program else argv[0]  # flags know a script by its path
        flags_help = flags.FLAGS.module_help(name).replace(f"{name}:", f"{argv[0]}:", 1)
        print(as_called(f"{command.__doc__.strip()}\n{flags_help}", program))
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:  # it would list every key of an unknown section
        close = difflib.get_close_matches(error.flagname, flags.FLAGS, n=3)
        hint = f"did you mean --{', --'.join(close)}?" if close else "see --help"
        raise flags.Error(f"unknown flag --{error.flagname}; {hint}") from error
    wanted = getattr(command, "ARGUMENTS", ())
    if len(rest) > 1 + len(wanted):
        unexpected = rest[1 + len(wanted)]
        raise flags.Error(f"unexpected argument {unexpected!r}: flags look like --name=value")
    if missing := wanted[len(rest) - 1 :]:
        raise flags.Error(f"{' and '.join(missing)} is missing; see --help")
    return rest


def as_called(text: str, program: str) -> str:
    """`text`, where it names scripts of launch/ and files of configs/, for users of `program`."""
    if not program:
        return text
    text = re.sub(r"(python )?(?<![\w/'])launch/(\w+)\.py", rf"{program} \2", text)
    return re.sub(r"--config=configs/(\w+)\.py", r"--config=\1", text)


def _export_process_flags():
    """Hands the flags that name this process's cluster to `distributed`, through its variables."""
    for flag, name in zip(PROCESS_FLAGS, distributed.VARIABLES, strict=True):
        if flag.value is not None:
            os.environ[name] = str(flag.value)


def _first_line(error):
    """Of an error's message, and what has been noted of it since."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    notes = getattr(error, "__notes__", ())
    return "; ".join([first, *(note for note in notes if not note.startswith("---"))])  # not jax's


def _use_compilation_cache():
    """Keeps compiled programs between runs; JAX_COMPILATION_CACHE_DIR says where ("": nowhere)."""
    home = files.cache_folder()
    default = str(home / "compilation") if home else ""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", default)
    jax.config.update("jax_compilation_cache_dir", folder or None)
    scheme = paths.SCHEME.match(folder)
    if not folder or (scheme and scheme[1] not in SCHEMES):  # JAX may know others
        return
    try:
        paths.check_writable(paths.parse(folder) / "program", "JAX_COMPILATION_CACHE_DIR")
    except (ValueError, BucketError) as error:
        print(f"warning: compiled programs are not kept: {error}", file=sys.stderr)
        if scheme:
            jax.config.update("jax_compilation_cache_dir", None)  # each would take long to fail
        # JAX would say so of each of them.
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
