"""Makes invalid calls of every command, from the tables in cases.py, and counts the faults.

python -m tests.fuzz [--only=WORD] [--sample=N] [--seed=N] [--jobs=N] [--list] [ID ...]

A call is at fault where it ends in a traceback, does not answer, ends with another exit status than
documented, is not refused in one line that names the flag, key or file, or changes or loses a file.
Without arguments all calls are made, which takes an hour on two cores; an ID makes one again.
"""

import argparse
import collections
import concurrent.futures
import os
import queue
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

from tests.fuzz import cases, judge, world  # noqa: E402 (JAX reads XLA_FLAGS)
from tests.fuzz.case import CALLS  # noqa: E402
from tests.fuzz.script_cases import SCRIPT_CALLS  # noqa: E402


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--only", default="", help="cases whose line contains this")
    parser.add_argument("--sample", type=int, help="so many of them, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the mixtures")
    parser.add_argument("--jobs", type=int, default=2, help="calls at once")
    parser.add_argument("--limit", type=int, default=judge.LIMIT, help="seconds for an answer")
    parser.add_argument("--list", action="store_true", help="show the cases only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compilation")
        folder = Path(folder)
        world.make(folder / "world")
        judges = [
            judge.Judge(folder / "world", folder / str(i), options.limit)
            for i in range(options.jobs)
        ]
        chosen = choose(options, judges[0])
        if options.list:
            print("\n".join(map(str, chosen)))
        else:
            sys.exit(run(chosen, judges))


def choose(options, one):
    flags = {command: one.flags_of(command) for command in CALLS}
    scripts = {script: judge.options_of(script) for script in SCRIPT_CALLS}
    known = cases.every(flags, scripts, seed=options.seed)
    if options.ids:
        return [known[name] for name in options.ids]
    chosen = [case for case in known.values() if options.only in str(case)]
    if options.sample is not None:
        chosen = random.Random(options.seed).sample(chosen, min(options.sample, len(chosen)))
    return chosen


def run(chosen, judges):
    """Makes the calls, and prints the faults and the counts; returns 1 if there are faults."""
    free, counts, begin = queue.SimpleQueue(), collections.Counter(), time.monotonic()
    for one in judges:
        free.put(one)

    def call(case):
        one = free.get()
        try:
            return case, time.monotonic(), *one.judge(case), time.monotonic()
        finally:
            free.put(one)

    with concurrent.futures.ThreadPoolExecutor(len(judges)) as pool:
        futures = [pool.submit(call, case) for case in chosen]
        for future in concurrent.futures.as_completed(futures):
            case, start, faults, status, error, end = future.result()
            counts["calls"] += 1
            counts[{0: "right after all", 2: "refused", None: "killed"}.get(status, "other")] += 1
            counts.update({f"fault: {kind}" for kind, _ in faults})
            if faults or len(chosen) <= 10:
                print(f"{case}\n    status {status}, {end - start:.1f} s: {error.strip()[-300:]}")
            for kind, what in faults:
                print(f"    {kind}: {what[:300]}", flush=True)
            if counts["calls"] % 50 == 0:
                print(f"{counts['calls']} of {len(chosen)} calls made", flush=True)
    for name, count in counts.items():
        print(f"{count:6} {name}")
    print(f"{time.monotonic() - begin:.0f} s")
    return any(name.startswith("fault") for name in counts)


if __name__ == "__main__":
    main()
