"""The lock of a folder in a bucket: one process holds it, and a dead process loses it."""

import os
import threading
import time

import pytest

from nvae_jax import bucket_lock, files

REFUSAL = "another process is training there"


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch):
    monkeypatch.setattr(bucket_lock, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(bucket_lock, "EXPIRY_SECONDS", 1.0)


@pytest.fixture
def on_another_machine(monkeypatch):
    """A context in which this process is on another machine."""
    return lambda name="other": monkeypatch.setattr(bucket_lock, "_machine", lambda: name)


def hold(bucket):
    return bucket_lock.locked(bucket / ".lock", REFUSAL)


def test_a_lock_is_held_by_one_process_and_can_be_taken_again_when_released(bucket, capsys):
    for _ in range(3):
        with hold(bucket):
            for _ in range(2):
                with pytest.raises(ValueError, match=rf"{REFUSAL} \(process \d+ on .+\)$"):
                    with hold(bucket):
                        pass
    assert len(list((bucket / ".lock").iterdir())) == 1
    assert capsys.readouterr().err == ""


def test_a_live_lock_of_another_host_is_recognised_whatever_the_clocks(
    bucket, on_another_machine, capsys, monkeypatch
):
    with hold(bucket):
        on_another_machine()
        monkeypatch.setattr(time, "time", lambda: 0.0)
        with pytest.raises(ValueError, match=REFUSAL), hold(bucket):
            pass
    (line,) = capsys.readouterr().err.splitlines()
    assert "waiting up to 1 s to see whether it is alive" in line


def test_the_lock_of_a_dead_process_is_taken_at_once(commands, bucket, capsys):
    code = (
        "import os, sys\n"
        "from nvae_jax import bucket_lock, buckets\n"
        "with bucket_lock.locked(buckets.BucketPath(sys.argv[1]), ''):\n"
        "    os._exit(9)\n"
    )
    with commands.start(code, bucket / ".lock", environment=dict(os.environ)) as dead:
        assert dead.wait(100) == 9
    with hold(bucket):
        assert [path.name for path in (bucket / ".lock").iterdir()] == ["2"]
    assert capsys.readouterr().err == ""


def test_the_lock_of_a_dead_host_is_taken_after_a_wait(bucket, on_another_machine, capsys):
    files.write_json(bucket / ".lock" / "7", {"host": "gone", "machine": "gone", "pid": 1})
    begin = time.monotonic()
    with hold(bucket):
        assert time.monotonic() - begin >= 1.0
        assert [path.name for path in (bucket / ".lock").iterdir()] == ["8"]
    assert "process 1 on gone: waiting up to 1 s" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_a_damaged_lock_can_be_taken(bucket, content):
    (bucket / ".lock" / "1").write_bytes(content)
    with hold(bucket):
        pass


def test_of_several_processes_only_one_takes_the_lock_of_a_dead_one(bucket, monkeypatch):
    (bucket / ".lock" / "1").write_bytes(b"{}")
    monkeypatch.setattr(bucket_lock, "_is_alive", lambda *_: False)
    barrier, results = threading.Barrier(4), []

    def take():
        barrier.wait()
        try:
            results.append(bucket_lock._acquire(bucket / ".lock", REFUSAL))
        except ValueError as error:
            results.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = sorted(number for number in results if isinstance(number, int))
    assert taken == list(range(2, 2 + len(taken))) and len(set(taken)) == len(taken) >= 1


def test_a_process_that_has_lost_its_lock_ends(bucket, monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(bucket_lock.distributed, "exit_without_waiting", lambda _: ended.set())
    with hold(bucket):
        files.write_json(bucket / ".lock" / "2", {"pid": 1})
        assert ended.wait(10)
    assert "another process took over this run" in capsys.readouterr().err
