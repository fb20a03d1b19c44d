"""Reduces Orbax's long errors about checkpoints that cannot be written to one line."""

import asyncio
import os
import re
from pathlib import Path

from absl import logging
from absl.logging import converter
from orbax.checkpoint._src import asyncio_utils

SECONDS = 30.0  # to wait for other writes after an error


def silence() -> None:
    """Suppresses Orbax's log messages about errors, which it also raises, and makes it wait after
    the first error for the other arrays that are being written. Orbax would close their event loop,
    and each of them would print a message."""
    logging.get_absl_logger().addFilter(_is_news)
    run = getattr(asyncio_utils, "_run_sync_via_new_loop", None)
    if run is not None:  # it is not a public function of Orbax
        asyncio_utils._run_sync_via_new_loop = lambda task: run(_to_the_end(task))


def _is_news(record):
    is_error = record.levelno >= converter.STANDARD_ERROR
    return not (is_error and "orbax" in Path(record.pathname).parts)


async def _to_the_end(task):
    try:
        return await task
    except Exception:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=SECONDS)
        raise


def reason(error: BaseException) -> str:
    """Why a file could not be written, in a few words."""
    system = re.search(r"os_error_code='(\d+)'", str(error))  # from TensorStore
    return os.strerror(int(system[1])) if system else str(error).strip().splitlines()[0][:200]


def in_short(error: BaseException) -> str:
    """The start of an error's message, on one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
