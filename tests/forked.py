"""Launch scripts in children that are forked after the imports: a call takes a tenth of a second
where a new process imports for seconds first.

    with Commands() as commands:
        done = commands.run("evaluate", "--workdir=DIR")  # a subprocess.CompletedProcess

A child has fresh absl flags (the server has run no script), its own working directory,
environment, session and open files, and JAX has started no device before it. What it cannot have
are other values of the variables that JAX reads when it is imported (JAX_PLATFORMS, ...).
"""

import atexit
import importlib
import json
import os
import pkgutil
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMED_OUT = "no answer"


class Commands:
    """A server process that has imported the package. One call at a time; a context manager.

    Args:
      memory: bytes of address space that a command may have; None sets no limit.
    """

    def __init__(self, memory=None):
        self._server = subprocess.Popen(
            [sys.executable, __file__, *([] if memory is None else [str(memory)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            text=True,
        )
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.communicate()  # it ends with its input
        self._folder.cleanup()

    def run(self, name, *flags, cwd=ROOT, timeout=300, before="", **environment):
        """Runs launch/NAME.py, or `python -m NAME`, to its end.

        Args:
          name: of the script, without .py, or "nvae_jax".
          *flags: its arguments.
          cwd: where it runs.
          timeout: seconds after which it and all it has started is killed.
          before: Python code that the child runs first.
          **environment: variables to change; None unsets one.

        Returns:
          a `subprocess.CompletedProcess` with text in `stdout` and `stderr`; the `returncode` is
          -N after signal N, as that of a real process.

        Raises:
          subprocess.TimeoutExpired: it was killed.
        """
        package = name == "nvae_jax"
        path = ROOT / name / "__main__.py" if package else ROOT / "launch" / f"{name}.py"
        script = str(path)
        changed = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
        out, error = (Path(self._folder.name) / stream for stream in ("stdout", "stderr"))
        call = {
            "argv": [script, *map(str, flags)],
            "cwd": str(cwd),
            "environment": {key: value for key, value in changed.items() if value is not None},
            "files": [os.devnull, str(out), str(error)],
            "timeout": timeout,
            "before": before,
        }
        print(json.dumps(call), file=self._server.stdin, flush=True)
        status = json.loads(self._server.stdout.readline())
        texts = [path.read_text(errors="replace") for path in (out, error)]
        if status == TIMED_OUT:
            raise subprocess.TimeoutExpired(call["argv"], timeout, *texts)
        return subprocess.CompletedProcess(call["argv"], status, *texts)


def serve():
    """Imports what the commands import, then forks a child for each line of the input."""
    package = importlib.import_module("nvae_jax")
    importlib.import_module("ml_collections.config_flags")
    for module in pkgutil.walk_packages(package.__path__, "nvae_jax."):
        if not module.name.startswith("nvae_jax.commands."):  # they define flags
            importlib.import_module(module.name)
    for memory in map(int, sys.argv[1:]):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for line in sys.stdin:
        call = json.loads(line)
        child = os.fork()
        if not child:
            _become(call)
            exec(call["before"], {})
            _run_script(call["argv"][0])
        print(json.dumps(_wait(child, call["timeout"])), flush=True)
    os._exit(0)


def _wait(child, timeout):
    """The child's exit status, or `TIMED_OUT`; nothing that it has started stays behind."""
    expired = []

    def kill(*_):
        expired.append(True)
        os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return TIMED_OUT if expired else os.waitstatus_to_exitcode(status)


def _become(call):
    """Makes the forked child what a new process of the command would be."""
    os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for descriptor, path in enumerate(call["files"]):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags, 0o644), descriptor)
    os.chdir(call["cwd"])
    os.environ.clear()
    os.environ.update(call["environment"])
    sys.argv = call["argv"]


def _run_script(script):
    """Runs a script as `python SCRIPT` does, and ends the process. Only the interpreter's teardown
    is left out, which takes longer than most commands' refusals."""
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        status = _status(stop.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # as `multiprocessing` ends its children
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _status(code):
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    serve()
