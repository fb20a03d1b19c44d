"""The queue of what windows ask for: one thread computes, and of each place the newest wins."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


class Superseded(Exception):
    """Something newer was asked for, or nobody waits any more."""


@dataclass
class Job:
    """A call that waits, runs or is over.

    Attributes:
      future: of its result.
      cancelled: whether a running call is to stop where it can.
      progress: how far a running call has come.
    """

    future: Future = field(init=False)
    cancelled: bool = False
    progress: dict[str, Any] = field(default_factory=dict)

    def cancel(self) -> None:
        """Takes the call out of the queue, or stops it at its next step."""
        self.cancelled = True
        self.future.cancel()

    def watch(self, what: str, items: Iterable) -> Iterator:
        """The items, one by one, counted in `progress`. Raises `Superseded` once cancelled."""
        total = len(items) if isinstance(items, Sized) else None
        for done, item in enumerate(items):
            if self.cancelled:
                raise Superseded
            self.progress = {"what": what, "done": done, "of": total}
            yield item


class Jobs:
    """Runs calls one at a time, first come, first served; a newer call of a place cancels the one
    that is there. All methods are for one thread, that of the server.

    Attributes:
      closed: whether nobody is to wait for a result any more.
    """

    def __init__(self):
        self.closed = False
        self._executor = ThreadPoolExecutor(1, "explore")
        self._newest: dict[Hashable, Job] = {}
        self._running: Job | None = None

    @property
    def progress(self) -> dict[str, Any]:
        """How far the running call has come."""
        return self._running.progress if self._running else {}

    def submit(self, place: Hashable, call: Callable[[Job], Any]) -> Job:
        """Queues `call(job)`.

        Args:
          place: that the result is for, such as (window, panel).
          call: computes it.
        """
        if place in self._newest:
            self._newest[place].cancel()
        job = self._newest[place] = Job()
        job.future = self._executor.submit(self._run, job, call)
        return job

    def _run(self, job, call):
        self._running = job
        try:
            result = call(job)
            if job.cancelled:
                raise Superseded
            return result
        finally:
            self._running = None

    def forget(self, place: Hashable, job: Job) -> None:
        """Cancels a job that nobody waits for any more, if it is not over."""
        job.cancel()
        if self._newest.get(place) is job:
            del self._newest[place]

    def close(self) -> None:
        """Cancels everything."""
        self.closed = True
        for job in self._newest.values():
            job.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
