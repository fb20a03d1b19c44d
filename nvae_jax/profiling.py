"""Records a trace of some training steps, for the Profile tab of TensorBoard and for xprof."""

import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from nvae_jax import processes, reporting

Span = tuple[int, int]


def parse_span(text: str | None) -> Span | None:
    """Parses START:STOP to the steps (first, last), both included; returns None for None.

    Raises:
      ValueError: if the text has another form.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(f"--profile={text}: it must be START:STOP, two steps from 1 on")
    return first, last


def check(span: Span | None, num_steps: int) -> None:
    """Raises ValueError if a run of `num_steps` steps does not have all steps of the span."""
    if span and not 1 <= span[0] <= span[1] <= num_steps:
        raise ValueError(f"--profile={span[0]}:{span[1]}: the run has steps 1 to {num_steps}")


class Profile:
    """Traces a span of steps on the first process and writes `workdir/plugins/profile/`.

    Args:
      workdir: the run directory.
      span: (first, last) step; None traces nothing.
      start: the step that the run starts at; steps before it cannot be traced.
    """

    def __init__(self, workdir: Path, span: Span | None, start: int):
        self._workdir, self._folder = workdir, None
        span = span if processes.is_primary() else None
        if span and span[1] <= start:
            reporting.log(f"steps {span[0]} to {span[1]} are already done: there is no profile")
            span = None
        self._first, self._last = (max(span[0], start + 1), span[1]) if span else (None, None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._write()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A context in which step `number` is computed."""
        if number == self._first:
            self._folder = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._folder.name)
        if self._folder is None:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def end_step(self, number: int, results: Any) -> None:
        """Writes the trace after the last step of the span, once its `results` are computed."""
        if self._folder is not None and number == self._last:
            jax.block_until_ready(results)
            self._write()

    def _write(self):
        """Stops and writes a trace, if one is running. Errors in writing must not end the run."""
        folder, self._folder = self._folder, None
        if folder is None:
            return
        try:
            with folder:
                jax.profiler.stop_trace()
                for file in Path(folder.name).rglob("*.*"):
                    target = self._workdir / str(file.relative_to(folder.name))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
        except (OSError, RuntimeError) as error:
            print(f"warning: the profile is not saved: {error}", file=sys.stderr, flush=True)
        else:
            reporting.log(f"profile written to {self._workdir / 'plugins' / 'profile'}")
