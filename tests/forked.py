"""Runs launch scripts in forked children of a server process that has imported the package.

A call takes a tenth of a second, whereas a new process would first import for seconds.

    with Commands() as commands:
        done = commands.run("evaluate", "--workdir=DIR")  # like subprocess.run
        process = commands.start("print(1)")  # in the background, like subprocess.Popen

A child has fresh absl flags, its own working directory, environment, session and open files, and
JAX has not started any device. It differs from a new process in one way: variables that JAX reads
when it is imported (JAX_PLATFORMS, ...) have the server's values.
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
    """A process started by `Commands.start`, with some of the methods of a `subprocess.Popen`.

    Args:
      ask: a function from a request to the server's answer.
      pid: the process id of the child.
      streams: paths of the files to which stdout and stderr are written.
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
        """Waits for the exit status; raises subprocess.TimeoutExpired after `timeout` seconds."""
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
        """Waits for the end of the process, like `wait`, and returns (stdout, stderr)."""
        self.wait(threading.TIMEOUT_MAX if timeout is None else timeout)
        return self.output()

    def send_signal(self, number):
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Commands:
    """A context manager for a server process that has imported the package and runs one command
    at a time.

    Args:
      memory: largest address space of a command in bytes; None sets no limit.
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
        self._server.communicate()  # the server ends when its input is closed
        self._folder.cleanup()

    def run(self, name, *flags, cwd=ROOT, timeout=300, before="", **environment):
        """Runs launch/NAME.py, or `python -m nvae_jax`, to its end.

        Args:
          name: name of the script without .py, or "nvae_jax".
          *flags: its arguments.
          cwd: its working directory.
          timeout: seconds after which the command and its own children are killed.
          before: Python code that the child runs first.
          **environment: environment variables to change; None unsets one.

        Returns:
          a `subprocess.CompletedProcess` with text in `stdout` and `stderr`; the `returncode` is
          -N after signal N.

        Raises:
          subprocess.TimeoutExpired: if the command was killed after `timeout` seconds.
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
        """Starts a script in the background, in the root of the project.

        Args:
          program: path of the script, or Python code.
          *arguments: its arguments.
          environment: all of its environment variables.

        Returns:
          a `Process`, which the caller must end.
        """
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
            path.touch()  # the child may not have opened it yet
        return Process(self._ask, pid, streams)

    def _ask(self, line):
        print(json.dumps(line), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


def serve():
    """Imports all modules of the package, then answers each request on stdin."""
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
    """Answers a request: polls a child, or forks one. Returns the exit status of a child that has
    ended, or the process id of one that runs in the background."""
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
    """Waits for a child, and kills it with its own children after `timeout` seconds. Returns its
    exit status, or `TIMED_OUT`."""
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
    """Kills the children of a child that has ended, and returns its exit status."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return os.waitstatus_to_exitcode(status)


def _become(call):
    """Gives the forked child the session, files, working directory, environment and arguments of
    a new process."""
    os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for descriptor, path in enumerate(call["files"]):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags, 0o644), descriptor)
    os.chdir(call["cwd"])
    os.environ.clear()
    os.environ.update(call["environment"])
    tempfile.tempdir = None  # TMPDIR may have changed
    sys.argv = call["argv"]


def _run_script(script):
    """Runs a script as `python SCRIPT` does, and ends the process.

    The interpreter's teardown is skipped, because it takes longer than most short commands.
    """
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        status = _status(stop.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # as `multiprocessing` does at the end of a child
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
