"""How to tell that another process of this cluster is gone, and what to say and end with then."""

import re

import jax

STATUS = 1  # a restart helps
LINE = "error: another process of the cluster is gone: "
LOST_CONNECTION = re.compile("(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): ")
# What else is called INTERNAL may be a fault of this process's own device.
_AMONG_PROCESSES = re.compile("Gloo|NCCL|[Tt]ask|[Bb]arrier|[Cc]onnection")


def is_reason_of(error: BaseException | None) -> bool:
    """Whether `error` says that another process of this cluster is gone, not that ours is wrong: by
    its own message, or by that of what caused it.

    A computation that ran into it fails later, where its result is first read, with a ValueError of
    jax's that only its message, the runtime's status, tells from one about a value. Orbax calls
    whatever ended a barrier a TimeoutError, from the runtime's own error.
    """
    if error is None or not jax.distributed.is_initialized():
        return False
    return _says_so(error) or is_reason_of(error.__cause__)


def _says_so(error):
    text = str(error)
    own = isinstance(error, RuntimeError) and text.startswith("INTERNAL: ")
    known = LOST_CONNECTION.match(text) is not None
    return known and (not own or _AMONG_PROCESSES.search(text) is not None)
