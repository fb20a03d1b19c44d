"""Launch scripts in children that are forked after the imports: a call takes a tenth of a second
where a new process imports for seconds first.

    with Commands() as commands:
        done = commands.run("evaluate", "--workdir=DIR")  # a subprocess.CompletedProcess
        process = commands.start("print(1)")  # a program beside the tests, as a subprocess.Popen

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
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMED_OUT = "no answer"


class Process:
    """What `Commands.start` has started, with what tests need of a `subprocess.Popen`.

    Args:
      ask: a function: a line for the server to its answer.
      pid: of the child.
      streams: paths of what it writes to stdout and stderr.
    """

    def __init__(self, ask, pid, streams):
        self._ask, self.pid, self.streams, self.returncode = ask, pid, streams, None

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error:
            self.kill()
        self.communicate()

    def poll(self):
        """The exit status, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout):
        """The exit status; raises subprocess.TimeoutExpired where it still runs."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout, *self.output())
            time.sleep(0.01)
        return self.returncode

    def output(self):
        """(stdout, stderr) so far."""
        return tuple(path.read_text(errors="replace") for path in self.streams)

    def communicate(self, timeout=None):
        """(stdout, stderr) of the process, which has to end within so many seconds."""
        self.wait(threading.TIMEOUT_MAX if timeout is None else timeout)
        return self.output()

    def send_signal(self, number):
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


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
        status = self._ask(call)
        texts = [path.read_text(errors="replace") for path in (out, error)]
        if status == TIMED_OUT:
            raise subprocess.TimeoutExpired(call["argv"], timeout, *texts)
        return subprocess.CompletedProcess(call["argv"], status, *texts)

    def start(self, program, *arguments, environment):
        """Starts a script, given by its path, or Python code as `python -c` does, in the root of
        the project, with the given variables and no others; a `Process`, which the caller ends."""
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        if not isinstance(program, Path):
            (folder / "program.py").write_text(program)
            program = folder / "program.py"
        streams = folder / "stdout", folder / "stderr"
        call = {
            "argv": [str(program), *map(str, arguments)],
            "cwd": str(ROOT),
            "environment": environment,
            "files": [os.devnull, *map(str, streams)],
            "before": "",
        }
        pid = self._ask(call)
        for path in streams:
            path.touch()  # it may not have got there yet
        return Process(self._ask, pid, streams)

    def _ask(self, line):
        print(json.dumps(line), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


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
        print(json.dumps(_answer(json.loads(line))), flush=True)
    os._exit(0)


def _answer(call):
    """Of a line of the input: a child's exit status, or its number where it runs on."""
    if "poll" in call:
        child, status = os.waitpid(call["poll"], os.WNOHANG)
        return _ended(child, status) if child else None
    child = os.fork()
    if not child:
        _become(call)
        exec(call["before"], {})
        _run_script(call["argv"][0])
    return _wait(child, call["timeout"]) if "timeout" in call else child


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
    status = _ended(child, status)
    return TIMED_OUT if expired else status


def _ended(child, status):
    """The exit status of a child that has ended, of which nothing stays behind."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return os.waitstatus_to_exitcode(status)


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
