"""Runs a case in a copy of the world, and finds the faults of the answer."""

import fnmatch
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from tests.forked import ROOT, Commands
from tests.fuzz.case import CALLS
from tests.fuzz.flag_cases import BY_TYPE
from tests.fuzz.script_cases import SCRIPT_CALLS

# Allowed lines on stderr besides the error: warnings of JAX and absl, and progress.
WARNING = re.compile(r"(?i)warning: |[WI]\d{4} |WARNING:|.*(it/s|\?it|s/it|\d+%\|| so far$)|\s*$")
# Words that only those who know the code understand.
INTERNAL = re.compile(
    r"NoneType|object has no attribute|unsupported operand|not supported between|Traceback"
    r"|not subscriptable|not iterable|positional argument|cannot unpack|dtype\('<|0x[0-9a-f]{8}"
    r"|too many values|must be str, not|argument must be"
)
TRACEBACK = "Traceback (most recent call last)"
LIMIT = 120  # seconds for an answer
MEMORY = 8 * 2**30  # bytes of address space


class Judge:
    """Runs cases, each in a new folder; a context manager.

    Args:
      undamaged: the world that each case gets a copy of, by `world.make`.
      folder: to work in.
      limit: seconds after which a call counts as unanswered.
    """

    def __init__(self, undamaged, folder, limit=LIMIT):
        self._world, self._folder, self._limit = undamaged, Path(folder), limit
        self._commands = Commands(memory=MEMORY)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._commands.__exit__()

    def flags_of(self, command):
        """{flag: its type in words, "boolean", or the list of its choices}, from --help."""
        return parse_help(self._commands.run(command, "--help").stdout)

    def judge(self, case):
        """(faults, exit status, stderr): the faults are (kind, what) pairs."""
        place = self._folder / case.id
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self._world, place, symlinks=True)
        os.mkfifo(place / "fifo")
        (place / "home").mkdir()
        try:
            for path, damage in case.damage.items():
                damage(place / path)
        except Exception as error:
            return [("no such damage", repr(error))], 0, ""
        before = digests(place)
        try:
            done = self._run(case, place)
        except subprocess.TimeoutExpired as error:
            missing = lost(case, before, digests(place))
            error = error.stderr or ""
            return [("no answer", f"within {self._limit} s"), *missing], None, error
        faults = [*_of_answer(case, done), *lost(case, before, digests(place))]
        if done.returncode == 2:
            faults += left(case, before, digests(place))
        shutil.rmtree(place)
        return faults, done.returncode, done.stderr

    def _run(self, case, place):
        environment = {"HOME": str(place / "home"), "NVAE_JAX_TRACEBACK": None}
        if case.command in CALLS:
            return self._commands.run(
                case.command, *case.flags, cwd=place, timeout=self._limit, **environment
            )
        # Without a Python, the scripts cannot start an installation.
        python = sys.executable if case.command in SCRIPT_CALLS else "false"
        variables = {**os.environ, "PYTHON": python, "HOME": environment["HOME"]}
        return subprocess.run(
            ["bash", ROOT / "launch" / case.command, *case.flags],
            cwd=ROOT,
            env={key: value for key, value in variables.items() if key != "SLURM_JOB_ID"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=self._limit,
        )


def parse_help(text):
    """{flag: type} from the output of a command's --help."""
    flags = {}
    for block in re.split(r"\n  (?=--)", text)[1:]:
        optional, name = re.match(r"--(\[no\])?([\w.]+):", block).groups()
        if name.startswith("config."):
            continue  # a key: see `flag_cases.of_keys`
        choices = re.match(r"--\w+: <([^>]+)>", block)
        words = " ".join(re.findall(r"^ +\((an? .*)\)$", block, re.MULTILINE)).split()
        known = [kind for kind in BY_TYPE if kind in words]
        flags[name] = choices[1].split("|") if choices else (known or ["text"])[0]
        if optional:
            flags[name] = "boolean"
    return flags


def options_of(script):
    """Names of a launcher's --flag=VALUE options, except for those of the run."""
    code = (ROOT / "launch" / script).read_text()
    return re.search(r'^read_options "([a-z -]*)"', code, re.MULTILINE)[1].split()


def digests(folder):
    """{path: content} of everything below a folder, without following links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        kind = stat.S_IFMT(mode)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else ""
        name = os.fsencode(path.relative_to(folder)).decode(errors="replace")
        found[name] = (kind, content)
    return found


def _of_answer(case, done):
    error = [line for line in done.stderr.splitlines() if not WARNING.match(line)]
    if TRACEBACK in done.stderr + done.stdout:
        yield "traceback", (error or ["?"])[-1]
    elif done.returncode not in case.statuses and not _does_not_fit(case, done):
        yield ("accepted" if done.returncode == 0 else "status"), str(done.returncode)
    elif done.returncode == 2:
        if len(error) != 1 or not re.match("(error|FATAL Flags parsing error): ", error[0]):
            yield "lines", repr(done.stderr[:300])
        elif INTERNAL.search(error[0]):
            yield "unclear", error[0]
        elif case.names and not any(name in error[0] for name in case.names):
            yield "unnamed", error[0]
    elif done.returncode == 0 and error:
        yield "lines", repr(error[0][:300])


def _does_not_fit(case, done):
    return case.command == "plan" and done.returncode == 1 and 0 in case.statuses


def lost(case, before, after):
    """The files that were changed."""
    for path, what in before.items():
        if after.get(path) != what and not _may_change(case, path):
            yield "lost", path


def left(case, before, after):
    """The files that a refused call has written."""
    new = [path for path in after if path not in before and not _may_change(case, path)]
    if new:
        yield "left", f"{new[0]} and {len(new) - 1} more" if len(new) > 1 else new[0]


def _may_change(case, path):
    return any(fnmatch.fnmatch(path, pattern) for pattern in ("home*", *case.changes))
