"""Compiles programs in parallel, runs them one at a time, and writes each result at once."""

import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import record

TO_RUN = 25  # seconds reserved for running the compiled programs
PARALLEL = 3  # compilations at once; with more, each takes so long that none may end in time


@dataclass
class Program:
    """A program to compile, and then to run while no other one runs.

    Attributes:
      row: the names of its results.
      lower: a function that returns an object with a method `compile`; None: nothing to compile.
      measure: a function from the compiled program to a dict of results.
      options: additional compiler options.
      explain: a function from the compiled program to more results, called if time is left.
    """

    row: dict
    lower: Callable[[], Any] | None
    measure: Callable[[Any], dict]
    options: dict = field(default_factory=dict)
    explain: Callable[[Any], dict] | None = None


class Results:
    """Rows of results; the file is rewritten after each change."""

    def __init__(self, path, **settings):
        self.rows, self._path, self._settings = [], path, settings
        self._start = time.monotonic()

    def add(self, row, **more):
        """Adds a row, or adds results to an existing one."""
        if not any(row is known for known in self.rows):
            self.rows.append(row)
        row.update(more, second=round(time.monotonic() - self._start, 1))
        record.write(self._path, self.rows, quiet=True, **self._settings)
        print(describe(row), flush=True)


class Runner:
    """Compiles and runs programs until a deadline (of `time.monotonic`)."""

    def __init__(self, results, deadline):
        self._results, self._deadline = results, deadline
        self._pool = futures.ThreadPoolExecutor(PARALLEL)  # XLA's compiler lets other threads run
        self._compiling = []

    def run(self, programs, later=0):
        """Compiles all programs, but leaves `later` seconds; then runs them one at a time.

        Compilations that have begun cannot be stopped, and times measured beside them are wrong. So
        they are waited for, even if less time remains for what comes later.
        """
        started = {self._start(program): program for program in programs if program.lower}
        started.pop(None, None)
        self._wait(started, seconds_left(self._deadline) - TO_RUN - later)
        running = {f: program for f, program in started.items() if not f.done() and not f.cancel()}
        self._wait(running, seconds_left(self._deadline) - TO_RUN)
        compiled = [(program, None) for program in programs if program.lower is None]
        for future, program in started.items():
            if not future.done() or future.cancelled():
                self._results.add(program.row, problem="not compiled in the available time")
            elif not future.exception():
                compiled.append((program, future.result()[0]))
        for program, executable in compiled:
            self._add(program, program.measure, executable)
        for program, executable in compiled:
            if program.explain and "problem" not in program.row:
                self._add(program, program.explain, executable)

    def _start(self, program):
        begin = time.monotonic()
        try:
            lowered = program.lower()
        except Exception as error:  # a failure of one program must not stop the others
            self._results.add(program.row, problem=first_line(error))
            return None
        program.row["lower_s"] = round(time.monotonic() - begin, 2)
        future = self._pool.submit(_compile, lowered, program.options)
        self._compiling.append(future)
        return future

    def _wait(self, started, seconds):
        try:
            for future in futures.as_completed(started, max(seconds, 1)):
                self._compiled(started[future], future, len(started))
        except TimeoutError:
            pass

    def _compiled(self, program, future, together):
        if error := future.exception():
            self._results.add(program.row, problem=first_line(error))
            return
        compiled, seconds = future.result()
        found = {"compile_s": seconds, "compiled_together": together, **memory_of(compiled)}
        self._results.add(program.row, **found)

    def _add(self, program, function, executable):
        if seconds_left(self._deadline) < 0:
            self._results.add(program.row, problem=f"no time left to {function.__name__} it")
            return
        if beside := sum(not future.done() for future in self._compiling):
            program.row["ran_beside_compilations"] = beside
        try:
            found = function(executable)
        except Exception as error:
            found = {"problem": first_line(error)}
        self._results.add(program.row, **found)


def _compile(lowered, options):
    start = time.monotonic()
    compiled = lowered.compile(options or None)
    return compiled, round(time.monotonic() - start, 2)


def memory_of(compiled):
    """GB of temporary arrays and of arguments, according to the compiler."""
    use = compiled.memory_analysis()
    if use is None:
        return {}
    return {
        "temporary_gb": round(use.temp_size_in_bytes / 1e9, 3),
        "arguments_gb": round(use.argument_size_in_bytes / 1e9, 3),
    }


def seconds_left(deadline):
    return round(deadline - time.monotonic(), 1)


def first_line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def describe(row):
    """A row on one line, without the lists, which are only in the file."""
    return " ".join(
        f"{k}={v}" for k, v in row.items() if not isinstance(v, list | dict) and k != "from"
    )
