"""Images that cannot be read: all of them named at once, and each of those left out only once."""

from __future__ import annotations

import functools
import os
import time
from concurrent import futures

from absl import logging

from nvae_jax.data.images import Images
from nvae_jax.data.spec import CorruptError, DataError

_MOST_NAMED = 10
_SECONDS = 30  # spent on looking for more


def corrupt_images_error(images: Images, first: CorruptError, remedy: str) -> DataError:
    """An error that names, besides the first, the other images that cannot be read: up to ten of
    them and a count, as far as half a minute goes.

    Args:
      images: the split that the first one is in.
      remedy: what the user can do about them.
    """
    faults, looked_at = _look_through(images)
    if str(first) not in faults:  # Time was up before it, or the disk has changed its mind.
        faults.insert(0, str(first))
    named = "; ".join(faults[:_MOST_NAMED])
    more = f"; and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
    seen = "" if looked_at == len(images) else f" of {looked_at} looked at"
    return DataError(f"{len(faults)} image(s){seen} cannot be read: {named}{more}; {remedy}")


def _look_through(images: Images) -> tuple[list[str], int]:
    """The faults in order, and how many images were looked at."""
    end, faults, looked_at = time.monotonic() + _SECONDS, [], 0

    def fault(index):
        if time.monotonic() > end:
            return None
        try:
            images[index]
        except CorruptError as error:
            return str(error)
        return ""

    threads = os.cpu_count() or 1
    with futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(images), 64 * threads):
            part = range(start, min(start + 64 * threads, len(images)))
            for text in pool.map(fault, part):
                looked_at += text is not None
                faults += [text] if text else []
    return faults, looked_at


@functools.cache  # In every process that reads, once.
def warn_skipped(fault: str) -> None:
    """Tells the user of an image that is left out; not again when an epoch comes back to it."""
    logging.warning("left out: %s", fault)
