"""A forked child, by which the tests run commands, behaves like a new process."""

import fcntl
import subprocess
import sys
import time

import pytest

from tests import forked


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A function from Python code to the name of a script for `Commands.run`."""
    folder = tmp_path_factory.mktemp("scripts")

    def write(code):
        path = folder / f"script{len(list(folder.iterdir()))}.py"
        path.write_text(code)
        return path.with_suffix("")

    return write


@pytest.mark.parametrize(
    ("code", "status", "out", "error"),
    [
        ("print('done')", 0, "done\n", ""),
        ("import sys; print('a', end=''); sys.exit(3)", 3, "a", ""),
        ("import sys; sys.exit('a message')", 1, "", "a message\n"),
        ("import os; os.write(1, b'low'); os._exit(7)", 7, "low", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, "", ""),
        ("import atexit; atexit.register(print, 'last'); print('first')", 0, "first\nlast\n", ""),
        ("import sys; print(sys.stdin.read() == '', __name__)", 0, "True __main__\n", ""),
        ("from jax._src import xla_bridge as x; print(x._backends)", 0, "{}\n", ""),
        ("import sys; print({'pytest', '_pytest'} & {*sys.modules})", 0, "set()\n", ""),
    ],
)
def test_a_child_ends_like_a_new_process(commands, scripts, code, status, out, error):
    done = commands.run(scripts(code))
    assert (done.returncode, done.stdout, done.stderr) == (status, out, error)
    if "xla_bridge" not in code:
        real = subprocess.run(
            [sys.executable, f"{scripts(code)}.py"], capture_output=True, text=True
        )
        assert (real.returncode, real.stdout, real.stderr) == (status, out, error)


def test_an_uncaught_error_is_a_traceback_and_status_1(commands, scripts):
    done = commands.run(scripts("1 / 0"))
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "ZeroDivisionError" in done.stderr


def test_a_child_has_the_given_arguments_folder_and_environment(commands, scripts, tmp_path):
    script = scripts("import os, sys; print(sys.argv[1:], os.getcwd(), os.environ.get('A'))")
    done = commands.run(script, "--b", 3, cwd=tmp_path, A="x")
    assert done.stdout == f"['--b', '3'] {tmp_path} x\n"
    assert commands.run(script, A="y").stdout == f"[] {forked.ROOT} y\n"
    assert commands.run(script, A=None).stdout == f"[] {forked.ROOT} None\n"


def test_flags_are_fresh_in_each_child(commands):
    for _ in range(2):
        for script, flag in (("sample", "png_files"), ("analyze", "--max_examples")):
            shown = commands.run(script, "--help")
            assert shown.returncode == 0 and flag in shown.stdout
    assert commands.run("analyze", "--png_files").returncode == 2


def test_a_child_that_hangs_is_killed_with_its_own_children(commands, scripts, tmp_path):
    lock = tmp_path / "lock"
    code = f"""
import fcntl, subprocess, time
file = open({str(lock)!r}, "w")
fcntl.flock(file, fcntl.LOCK_EX)
subprocess.Popen(["sleep", "100"], pass_fds=[file.fileno()])
print("waits", flush=True)
time.sleep(100)
"""
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        commands.run(scripts(code), timeout=1)
    assert caught.value.stdout == "waits\n"
    begin = time.monotonic()
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits until no process holds it
    assert time.monotonic() - begin < 50
    assert commands.run(scripts("print(1)")).stdout == "1\n"


def test_programs_run_in_the_background_and_receive_signals(commands, tmp_path):
    """Two programs run at a time: each has only the given variables, and ends by a signal."""
    code = (
        "import os, sys, time; print(*sys.argv[1:], dict(os.environ), flush=True); time.sleep(99)"
    )
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('not today')")
    with commands.start(code, 1, environment={"A": "x"}) as one:
        with commands.start(script, environment={}) as other:
            assert commands.run("nvae_jax", "--help").returncode == 0  # the server still answers
            assert other.communicate(timeout=60) == ("", "not today\n") and other.returncode == 1
        with pytest.raises(subprocess.TimeoutExpired):
            one.wait(0.1)
        while not one.output()[0].endswith("\n"):
            assert one.poll() is None
        assert one.output() == ("1 {'A': 'x'}\n", "")
        one.terminate()
    assert one.returncode == -15
    one.kill()  # another process that has its id by now gets no signal
