"""One line for a checkpoint that cannot be written, in place of Orbax's hundreds."""

import logging as standard_logging
import os
import re
import sys
import traceback
from pathlib import Path

from absl import logging
from absl.logging import converter


def silence_logging() -> None:
    """Leaves out what Orbax logs of errors, all of which it raises too, and what becomes of the
    arrays that were being written beside the one that failed: at the first error Orbax closes the
    event loop that waits for all of them."""
    logging.get_absl_logger().addFilter(_is_news)
    standard_logging.getLogger("asyncio").addFilter(_is_of_others)
    hook = sys.unraisablehook

    def unraisable(event):
        if str(event.exc_value) != "Event loop is closed":
            hook(event)

    sys.unraisablehook = unraisable


def _is_news(record):
    is_error = record.levelno >= converter.STANDARD_ERROR
    return not (is_error and "orbax" in Path(record.pathname).parts)


def _is_of_others(record):
    """False of an error of Orbax's that came too late for anyone to ask for it."""
    error = record.exc_info and record.exc_info[1]
    if not error or "never retrieved" not in record.getMessage():
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return not any("orbax" in Path(frame.filename).parts for frame in frames)


def reason(error: BaseException) -> str:
    """Why a file could not be written, in few words."""
    system = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's
    return os.strerror(int(system[1])) if system else str(error).strip().splitlines()[0][:200]
