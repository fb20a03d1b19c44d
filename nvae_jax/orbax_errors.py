"""One line for a checkpoint that cannot be written, in place of Orbax's hundreds."""

import asyncio
import os
import re
from pathlib import Path

from absl import logging
from absl.logging import converter
from orbax.checkpoint._src import asyncio_utils

SECONDS = 30.0  # for what is still being written after an error


def silence() -> None:
    """Leaves out what Orbax logs of errors, all of which it raises too, and has it wait at the
    first error for the arrays that are being written beside the one that failed. Orbax would close
    the event loop under them, of which each would complain on stderr."""
    logging.get_absl_logger().addFilter(_is_news)
    run = getattr(asyncio_utils, "_run_sync_via_new_loop", None)
    if run is not None:  # it is not Orbax's word that there is one
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
    """Why a file could not be written, in few words."""
    system = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's
    return os.strerror(int(system[1])) if system else str(error).strip().splitlines()[0][:200]
