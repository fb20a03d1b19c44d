"""Parses command lines by a command's own flags, and prints what is wrong with each: as JSON.

python tests/docs/parse_flags.py COMMAND '[["--workdir=DIR", …], …]'

A value that is a placeholder, such as the N of --num=N, is not judged where a number is wanted.
"""

import importlib
import json
import re
import sys

from absl import flags

PLACEHOLDER = re.compile(r"[A-Z_]+|…")
NUMBERS = ("int", "float")


def fault(arguments):
    """The error of a command's arguments, or None."""
    flags.FLAGS.unparse_flags()
    given = [_filled_in(argument) for argument in arguments if argument != "--config.KEY=VALUE"]
    try:
        rest = flags.FLAGS(["command", *given])
    except flags.Error as error:
        return str(error).splitlines()[0]
    unexpected = rest[1 + len(WANTED) :]
    return f"unexpected argument {unexpected[0]!r}" if unexpected else None


def _filled_in(argument):
    name, _, value = argument.lstrip("-").partition("=")
    number = name in flags.FLAGS and flags.FLAGS[name].flag_type() in NUMBERS
    return f"--{name}=1" if number and PLACEHOLDER.fullmatch(value) else argument


if __name__ == "__main__":
    command = importlib.import_module(f"nvae_jax.commands.{sys.argv[1]}")
    WANTED = getattr(command, "ARGUMENTS", ())
    print(json.dumps([fault(arguments) for arguments in json.loads(sys.argv[2])]))
