"""What the processes of a cluster do together: wait, gather values, agree on errors.

With a single process, nothing here waits or communicates.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

LONGEST_WAIT = 24 * 3600  # seconds; if a process is lost in this time, all of them end


def is_primary() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


_barriers = itertools.count()


def barrier(name: str) -> None:
    """Waits until every process has called it; does nothing with one process. All processes must
    call it in the same order.

    It uses no device, and so can wait for a process that compiles or reads for a long time, which
    would be too long for a collective.
    """
    key = f"{name} {next(_barriers)}"  # the name of a barrier can be used only once
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * LONGEST_WAIT)


def on_primary(function: Callable[[], Any]) -> None:
    """Calls `function` in the first process, while the others wait; it must not wait for them.

    Raises:
      ValueError: in all processes, if it raises ValueError or OSError.
    """
    with raise_together():
        if is_primary():
            function()


def check_same(what: str, mine: Mapping[str, Any]) -> None:
    """Checks that `mine` is equal in all processes, so that they compute the same.

    Args:
      what: a word or two for the values.
      mine: {name: JSON-compatible value}.

    Raises:
      ValueError: in all processes, with the first difference and the values of two processes.
    """
    gathered = [dict(values) for values in all_gather(list(mine.items()))]
    expected = gathered[0]
    for index, values in enumerate(gathered):
        different = [name for name in expected | values if expected.get(name) != values.get(name)]
        if different:
            name = different[0]
            more = f" (and {len(different) - 1} more)" if different[1:] else ""
            raise ValueError(
                f"the hosts of a cluster need the same {what}: {name} is {expected.get(name)!r} in "
                f"process 0 and {values.get(name)!r} in process {index}{more}"
            )


def all_gather(value: Any) -> list[Any]:
    """Gathers the `value`s of all processes, ordered by process. All of them must call it.

    Args:
      value: a JSON-compatible value.
    """
    if jax.process_count() == 1:
        return [value]
    barrier("all_gather")
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = multihost_utils.process_allgather(np.int32(text.size)).max()
    row = np.full(-(-longest // 1024) * 1024, ord(" "), np.uint8)  # few sizes, so few programs
    row[: text.size] = text
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(row)]


@contextlib.contextmanager
def raise_together() -> Iterator[None]:
    """A context for checks in all processes: if one of them raises an error, all of them do.

    If any process raises ValueError or OSError, all raise ValueError. So every process ends like
    the command in a single process, and none waits for another. Inside the context, nothing must
    wait for other processes, except for a nested `raise_together`.

    Raises:
      ValueError: with the first error; it names the process, unless all have the same error.
    """
    if jax.process_count() == 1:
        yield
        return
    error = None
    try:
        yield
    except (ValueError, OSError) as caught:
        error = caught
    messages = all_gather(None if error is None else str(error))
    failed = [index for index, message in enumerate(messages) if message is not None]
    if failed:
        first = messages[failed[0]]
        same = messages.count(first) == len(messages)
        raise ValueError(first if same else f"process {failed[0]}: {first}") from error
