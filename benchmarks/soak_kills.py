"""Kills one of two processes repeatedly: the numbers must equal those without kills."""

import contextlib
import dataclasses
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
from soak_run import TINIEST, command, environment, last_step, rows

from nvae_jax import checkpoint_files, checkpoint_reader, reporting
from nvae_jax.lost_process import LINE, STATUS
from nvae_jax.state import State

PROCESSES = 2
TIMEOUT = TINIEST["distributed.timeout"]
START_TIMEOUT = 60  # seconds, of processes that wait for one that was killed before it joined
WAITS, WAITED = "waiting up to", "distributed.start_timeout"  # in the messages of such processes
MARGIN = 15  # additional seconds, to measure how late a process ends
SLACK = 1  # seconds; allowance for measuring the time in another process
LONGEST = 5  # seconds of training at the end of which a process is killed, at most
LONGEST_START = 30  # seconds after a start
EVERY = 5  # steps from one checkpoint to the next
LAST_LINE = re.compile(r"error: |F\d{4} |[\w.]+(Error|Exception)")  # the line before a stack trace
KEYS = (
    "train.num_steps=1000000",
    f"distributed.start_timeout={START_TIMEOUT}",
    "log.every_steps=1",
    "log.images_every_steps=50",
    "eval.every_steps=25",
    f"checkpoint.every_steps={EVERY}",
)


def soak_kills(folder, kills, seed):
    """Returns (one row per kill, summary). An earlier call in the same `folder` is continued."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for kill, whiles in list(_plan(kills))[len(found) :]:
        row = {"kill": kill} | _kill(
            folder / "run", whiles, random.Random(f"{seed} {kill} {whiles}")
        )
        found.append(row)
        print(row, flush=True)
        with open(path, "a") as file:
            print(json.dumps(row), file=file)
    run, alone = folder / "run", folder / "alone"
    shutil.rmtree(alone, ignore_errors=True)  # of an interrupted earlier call
    found.append(_train_past(run, last_step(run), keep=2))
    found.append(_train_past(alone, last_step(run), keep=10**6))
    compared, failed = _compare(found, run, alone)
    killed = [row for row in found if "killed" in row]
    summary = {
        "kills": len(killed),
        "ended_in_time": sum(not row["failed"] for row in killed),
        "ended_in_one_line": sum(row["last_line"].startswith(LINE) for row in killed),
        "resumed_alike": sum(row.get("resumed_alike", False) for row in found),
        **compared,
        "failed": [problem for row in found for problem in row["failed"]] + failed,
    }
    print(summary, flush=True)
    return found, summary


def _plan(kills):
    """(number, activity of the processes) of each kill: every fifth one is in the middle of a save,
    and before every fourth one there is another at the start of the processes."""
    for number in range(1, kills + 1):
        if number % 4 == 0:
            yield number, "starting"
        yield number, "saving" if number % 5 == 0 else "training"


@dataclasses.dataclass
class Cluster:
    """The processes of a run, as a context that kills them at its end."""

    workdir: pathlib.Path
    keep: int = 2

    def __enter__(self):
        with socket.create_server(("", 0)) as server:
            address = f"localhost:{server.getsockname()[1]}"
        keys = (*KEYS, f"checkpoint.keep={self.keep}")
        arguments = command(self.workdir, *(f"--config.{key}" for key in keys))
        self.processes = []
        for index in range(PROCESSES):
            variables = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(PROCESSES),
                "JAX_PROCESS_ID": str(index),
            }
            with open(self._log(index), "w") as log:
                self.processes.append(
                    subprocess.Popen(
                        arguments, env=environment(**variables), stdout=log, stderr=log
                    )
                )
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def train_past(self, step):
        """Waits until a step after `step` has been reported."""
        self.wait_until(lambda: last_step(self.workdir) > step)

    def wait_until(self, true, seconds=0.1):
        """Waits until `true()`, with this number of seconds between two calls."""
        while not true():
            if any(process.poll() is not None for process in self.processes):
                statuses = [process.returncode for process in self.processes]
                raise RuntimeError(f"training ended by itself, with {statuses}")
            time.sleep(seconds)

    def _log(self, index):
        return self.workdir.with_name(f"{self.workdir.name}-{index}.log")

    def _last_line(self, index):
        """The last line of a process before the stack trace that JAX adds if it aborts."""
        lines = self._log(index).read_text().splitlines()
        found = [line for line in lines if LAST_LINE.match(line)]
        return (found or lines or [""])[-1]

    def end(self):
        """Ends the processes like a scheduler, and returns their exit statuses."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        return [process.wait(300) for process in self.processes]

    def kill(self, index):
        """Kills one process and waits for the other. Returns how it ended: {"status": ...,
        "seconds": ..., "last_line": ..., "failed": [faults]}."""
        self.processes[index].kill()
        other, log = self.processes[1 - index], self._log(1 - index)
        # It may still be importing.
        while other.poll() is None and WAITS not in log.read_text():
            time.sleep(0.05)
        start = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            other.wait(max(TIMEOUT, START_TIMEOUT) + MARGIN)
        seconds, line = round(time.monotonic() - start, 2), self._last_line(1 - index)
        limit = START_TIMEOUT if WAITED in line else TIMEOUT
        failed = {
            f"did not end within {limit} s": other.returncode is None or seconds > limit + SLACK,
            f"ended with status {other.returncode}": other.returncode not in (None, STATUS),
            "ended without its line": other.returncode is not None and not line.startswith(LINE),
        }
        return {
            "killed": index,
            "status": other.returncode,
            "seconds": seconds,
            "last_line": line,
            "failed": [f"process {1 - index} {what}" for what, true in failed.items() if true],
        }


def _kill(run, whiles, chance):
    """Starts the processes and kills one; returns a row of results."""
    before, victim = rows(run), chance.randrange(PROCESSES)
    with Cluster(run) as cluster:
        if whiles == "starting":
            time.sleep(chance.uniform(0, LONGEST_START))
            return {"while": whiles} | cluster.kill(victim)
        cluster.train_past(max(before, default=0))
        time.sleep(chance.uniform(0, LONGEST))
        if whiles == "saving":
            unfinished = lambda: list((run / "checkpoints").glob("*orbax-checkpoint-tmp*"))  # noqa: E731
            cluster.wait_until(unfinished, seconds=0.002)
        row = {"while": whiles} | cluster.kill(victim)
    return _with_resume(row, run, before)


def _with_resume(row, run, before):
    """Adds to `row` the step that the run resumed from, and whether its numbers were the same."""
    row["step"] = last_step(run)
    if before:
        log = run.with_name(f"{run.name}-0.log").read_text()
        row["resumed_at"] = int([0, *re.findall(r"resumed at step (\d+)", log)][-1])
        row["again"] = max(before) - row["resumed_at"]  # steps
        differing = differing_steps(before, rows(run))
        row["resumed_alike"] = not differing
        row["failed"] += [f"resumed otherwise at steps {differing[:3]}"] * bool(differing)
    return row


def _train_past(workdir, step, keep):
    """Trains until after `step` and ends with SIGTERM, as under a scheduler."""
    before = rows(workdir)
    with Cluster(workdir, keep) as cluster:
        cluster.train_past(step)
        statuses = cluster.end()
    row = _with_resume({"while": "not killed", "failed": []}, workdir, before)
    if set(statuses) != {128 + signal.SIGTERM}:
        row["failed"].append(f"ended with {statuses} after SIGTERM")
    return row


def _compare(found, run, alone):
    """Compares the run with one without kills."""
    ours, theirs = rows(run), rows(alone)
    for row in found:
        if "resumed_at" in row:
            steps = range(row["resumed_at"] + 1, row["step"] + 1)
            mine = {step: ours[step] for step in steps if step in ours}
            row["as_without_kills"] = len(mine) - len(differing_steps(mine, theirs))
    lost = sorted(set(range(1, max(ours) + 1)) - set(ours))
    failed = [f"no rows of steps {lost[:3]}"] * bool(lost)
    differing = differing_steps(ours, theirs)
    failed += [f"other numbers at steps {differing[:3]} than without kills"] * bool(differing)
    step = max(set(_checkpoints(run)) & set(_checkpoints(alone)))
    one, other = _arrays(run, step), _arrays(alone, step)
    names = [name for name in one if not np.array_equal(one[name], other[name], equal_nan=True)]
    if names or set(one) != set(other):
        failed.append(f"checkpoint {step} holds other arrays: {', '.join(names[:3])}")
    return {"compared_steps": len(ours), "compared_checkpoint": step, "arrays": len(one)}, failed


def _checkpoints(workdir):
    return checkpoint_files.steps(workdir / "checkpoints")


def _arrays(workdir, step):
    """All arrays of a checkpoint, by name."""
    fields = [field.name for field in dataclasses.fields(State)]
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = checkpoint_reader.CheckpointReader(workdir)
    _, arrays = saved.restore_raw(fields, lambda *_: place, step)
    return {name: np.asarray(array) for name, array in arrays.items()}


def differing_steps(one, other):
    """The steps whose rows differ between two runs."""
    computed = lambda row: {k: v for k, v in row.items() if k not in reporting.TIMES}  # noqa: E731
    return [step for step in one if step in other and computed(one[step]) != computed(other[step])]
