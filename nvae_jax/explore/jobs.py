"""Queues requests: one thread computes, and a newer request for the same panel replaces an older
one."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


class Superseded(Exception):
    """The job was replaced by a newer one, or nobody waits for its result."""


@dataclass
class Job:
    """A call that is queued, running or finished.

    Attributes:
      future: future of its result.
      cancelled: whether it should stop as soon as possible.
      progress: progress of the running call.
    """

    future: Future = field(init=False)
    cancelled: bool = False
    progress: dict[str, Any] = field(default_factory=dict)

    def cancel(self) -> None:
        """Removes the call from the queue, or stops it at its next step."""
        self.cancelled = True
        self.future.cancel()

    def watch(self, what: str, items: Iterable) -> Iterator:
        """Iterates over items and counts them in `progress`; raises `Superseded` if cancelled."""
        total = len(items) if isinstance(items, Sized) else None
        for done, item in enumerate(items):
            if self.cancelled:
                raise Superseded
            self.progress = {"what": what, "done": done, "of": total}
            yield item


class Jobs:
    """Runs calls one at a time, in the order of their submission.

    A newer call for the same place cancels the older one. All methods must be called by the
    server's thread.

    Attributes:
      closed: whether the server is stopping, so that results are no longer awaited.
    """

    def __init__(self):
        self.closed = False
        self._executor = ThreadPoolExecutor(1, "explore")
        self._newest: dict[Hashable, Job] = {}
        self._running: Job | None = None

    @property
    def progress(self) -> dict[str, Any]:
        """The progress of the running call."""
        return self._running.progress if self._running else {}

    def submit(self, place: Hashable, call: Callable[[Job], Any]) -> Job:
        """Queues `call(job)`.

        Args:
          place: where the result will be shown, such as (window, panel).
          call: function that computes it.
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
        """Cancels a job whose result nobody waits for, unless it is finished."""
        job.cancel()
        if self._newest.get(place) is job:
            del self._newest[place]

    def close(self) -> None:
        """Cancels all jobs."""
        self.closed = True
        for job in self._newest.values():
            job.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
