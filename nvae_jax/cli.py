"""Code that all commands share: parsing of flags, one-line errors, the compilation cache."""

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

from nvae_jax import allocator, cluster_detection, distributed, files, lost_process, paths, schema
from nvae_jax.buckets import SCHEMES, BucketError
from nvae_jax.interrupt import Interrupted

TRACEBACK_VARIABLE = "NVAE_JAX_TRACEBACK"
KEEP_MEMORY_VARIABLE = "NVAE_JAX_KEEP_MEMORY"
PROCESS_FLAGS = (
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0 of a cluster"),
    flags.DEFINE_integer("num_processes", None, "number of processes in the cluster", 1),
    flags.DEFINE_integer("process_id", None, "id of this process, from 0", 0),
)


def define_changes() -> Callable[[], dict[str, Any]]:
    """Defines a flag --config.KEY=VALUE for every key of configs/base.py.

    Returns:
      a function without arguments that returns {key: value} of the flags given by the user.
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

    A wrong flag, key, path or value prints one line on stderr and exits with status 2. A run
    stopped by a signal exits with 128 plus the signal's number, and a run that lost another process
    of its cluster with 134. Environment variables: NVAE_JAX_TRACEBACK=1 shows tracebacks of
    expected errors; NVAE_JAX_KEEP_MEMORY=0 returns freed memory to the system (see `allocator`).

    Args:
      main: the `main` function of a command.
      program: name of the program in help and errors, such as "nvae-jax"; "" stands for the scripts
        in launch/.
    """
    if os.environ.get(KEEP_MEMORY_VARIABLE) != "0":
        allocator.keep_freed_memory()
    # Imported objects live until the process exits. If the garbage collector visited them again and
    # again, tracing a program would take a seventh longer.
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
                with contextlib.suppress(OSError):  # the pipe may be closed
                    sys.stdout.flush()
                lost_process.end(lost_process.describe(line, error))
            print(f"error: {line}", file=sys.stderr)
            distributed.exit_without_waiting(2)
        if not jax.distributed.is_initialized():
            raise
        # In a cluster a normal exit would wait for the other processes, which wait for this one.
        traceback.print_exc()
        distributed.exit_without_waiting(1)


def _parse(argv, command, program):
    if {"--help", "-h", "-help"} & set(argv[1:]):
        name = command.__name__ if program else argv[0]  # absl identifies a script by its path
        flags_help = flags.FLAGS.module_help(name).replace(f"{name}:", f"{argv[0]}:", 1)
        print(as_called(f"{command.__doc__.strip()}\n{flags_help}", program))
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:  # absl's message can list hundreds of flags
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
    """Replaces scripts in launch/ and files in configs/ that `text` names by what users of the
    installed `program` type instead."""
    if not program:
        return text
    text = re.sub(r"(python )?(?<![\w/'])launch/(\w+)\.py", rf"{program} \2", text)
    return re.sub(r"--config=configs/(\w+)\.py", r"--config=\1", text)


def _export_process_flags():
    """Sets the variables that `cluster_detection` reads, from the flags of the same name."""
    for flag, name in zip(PROCESS_FLAGS, cluster_detection.VARIABLES, strict=True):
        if flag.value is not None:
            os.environ[name] = str(flag.value)


def _first_line(error):
    """The first line of an error's message, with the notes that were added to the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    notes = getattr(error, "__notes__", ())
    return "; ".join([first, *(note for note in notes if not note.startswith("---"))])  # not jax's


def _use_compilation_cache():
    """Caches compiled programs on disk, in JAX_COMPILATION_CACHE_DIR if set ("" disables it)."""
    home = files.cache_folder()
    default = str(home / "compilation") if home else ""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", default)
    jax.config.update("jax_compilation_cache_dir", folder or None)
    scheme = paths.SCHEME.match(folder)
    if not folder or (scheme and scheme[1] not in SCHEMES):  # JAX may support other schemes
        return
    try:
        paths.check_writable(paths.parse(folder) / "program", "JAX_COMPILATION_CACHE_DIR")
    except (ValueError, BucketError) as error:
        print(f"warning: compiled programs are not cached: {error}", file=sys.stderr)
        if scheme:
            jax.config.update("jax_compilation_cache_dir", None)  # every access would fail slowly
        # JAX would warn once per program.
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
