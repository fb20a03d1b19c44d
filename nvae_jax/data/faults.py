"""Reports unreadable images: many of them in one error, and skipped ones once each."""

from __future__ import annotations

import functools
import os
import time
from concurrent import futures

from absl import logging

from nvae_jax.data.images import Images
from nvae_jax.data.spec import CorruptError, DataError

_MAX_NAMED = 10
_SECONDS = 30  # time to search for further unreadable images


def corrupt_images_error(images: Images, first: CorruptError, remedy: str) -> DataError:
    """Makes an error that names unreadable images: the first ten and how many more there are.

    It searches all images of the split for up to half a minute.

    Args:
      images: the images of the split.
      first: the error of the first image found.
      remedy: what the user can do about them, for the message.
    """
    faults, checked = _find_faults(images)
    if str(first) not in faults:  # The time was up before it, or it can be read now.
        faults.insert(0, str(first))
    named = "; ".join(faults[:_MAX_NAMED])
    more = f"; and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
    seen = "" if checked == len(images) else f" of {checked} checked"
    return DataError(f"{len(faults)} image(s){seen} cannot be read: {named}{more}; {remedy}")


def _find_faults(images: Images) -> tuple[list[str], int]:
    """Returns the faults in order, and the number of images checked."""
    end, faults, checked = time.monotonic() + _SECONDS, [], 0

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
                checked += text is not None
                faults += [text] if text else []
    return faults, checked


@functools.cache  # once per image in each process that reads
def warn_skipped(fault: str) -> None:
    """Warns of a skipped image, only once although every epoch comes to it again."""
    logging.warning("skipped: %s", fault)
