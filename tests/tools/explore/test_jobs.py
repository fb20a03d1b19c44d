"""The queue runs one call at a time; a newer call of a place supersedes the older one."""

import threading
from concurrent.futures import CancelledError

import pytest

from nvae_jax.explore.jobs import Jobs, Superseded


@pytest.fixture
def jobs():
    jobs = Jobs()
    yield jobs
    jobs.close()


@pytest.fixture
def busy(jobs):
    """Holds the only thread until its `set` is called."""
    release = threading.Event()
    jobs.submit("other", lambda job: release.wait(60))
    yield release
    release.set()


def test_a_newer_call_replaces_the_waiting_call_of_its_place(jobs, busy):
    ran = []
    first = jobs.submit(("window", "samples"), lambda job: ran.append("first"))
    elsewhere = jobs.submit(("another window", "samples"), lambda job: ran.append("elsewhere"))
    newest = jobs.submit(("window", "samples"), lambda job: ran.append("newest"))
    busy.set()
    newest.future.result(60)
    assert ran == ["elsewhere", "newest"] and elsewhere.future.result(60) is None
    with pytest.raises(CancelledError):
        first.future.result(60)


def test_a_superseded_call_stops_at_its_next_step_and_reports_its_progress(jobs):
    started, go_on, seen = threading.Event(), threading.Event(), []

    def call(job):
        for item in job.watch("counting", range(4)):
            seen.append(item)
            started.set()
            go_on.wait(60)

    job = jobs.submit("place", call)
    assert started.wait(60) and jobs.progress == {"what": "counting", "done": 0, "of": 4}
    newer = jobs.submit("place", lambda job: "new")
    go_on.set()
    assert newer.future.result(60) == "new" and seen == [0]
    with pytest.raises(Superseded):
        job.future.result(60)
    assert jobs.progress == {}


def test_a_call_that_did_not_stop_in_time_is_superseded_too(jobs):
    started, go_on = threading.Event(), threading.Event()
    old = jobs.submit("place", lambda job: started.set() or go_on.wait(60))
    assert started.wait(60)
    jobs.submit("place", lambda job: None)
    go_on.set()
    with pytest.raises(Superseded):
        old.future.result(60)


def test_a_forgotten_call_is_not_computed(jobs, busy):
    ran = []
    job = jobs.submit("place", lambda job: ran.append("old"))
    jobs.forget("place", job)
    newer = jobs.submit("place", lambda job: ran.append("new"))
    jobs.forget("place", job)  # to forget the old call again does not affect the newer one
    busy.set()
    newer.future.result(60)
    assert ran == ["new"]


def test_an_error_is_raised_for_its_caller_and_the_queue_continues(jobs):
    job = jobs.submit("place", lambda job: 1 // 0)
    assert jobs.submit("another", lambda job: 5).future.result(60) == 5
    with pytest.raises(ZeroDivisionError):
        job.future.result(60)
