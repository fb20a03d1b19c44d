"""`nvae-jax COMMAND ...` and `python -m nvae_jax COMMAND ...`: the commands of launch/."""

import ast
import difflib
import importlib
import sys
from pathlib import Path

COMMANDS = Path(__file__).parent / "commands"


def main() -> None:
    """Runs the command named by the first argument and passes the other arguments to it."""
    program = "nvae-jax" if Path(sys.argv[0]).name == "nvae-jax" else "python -m nvae_jax"
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "-help"):
        print(_overview(program))
        return
    known = _summaries()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known)}"
        print(f"error: unknown command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"{program} {name}", *arguments]
    from nvae_jax import cli  # Imports JAX, which takes seconds, so only for a known command.

    cli.run(importlib.import_module(f"nvae_jax.commands.{name}").main, program)


def _overview(program):
    summaries = _summaries()
    width = max(map(len, summaries))
    return "\n".join(
        [
            f"{program} COMMAND [--FLAG=VALUE ...], where COMMAND is one of",
            "",
            *(f"  {name:{width}}  {summary}" for name, summary in summaries.items()),
            "",
            f"{program} COMMAND --help explains a command.",
        ]
    )


def _summaries():
    """Returns {command: first line of its docstring} without importing the commands."""
    files = sorted(COMMANDS.glob("[a-z]*.py"))
    docstrings = {file.stem: ast.get_docstring(ast.parse(file.read_text())) or "" for file in files}
    return {name: text.partition("\n")[0] for name, text in docstrings.items()}


if __name__ == "__main__":
    main()
