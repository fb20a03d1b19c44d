"""One line for a checkpoint that cannot be written, in place of Orbax's hundreds."""

import os
import re
import sys
from pathlib import Path

from absl import logging
from absl.logging import converter


def silence_logging() -> None:
    """Leaves out what Orbax logs of errors, all of which it raises too, and what becomes of the
    arrays that were being written beside the one that failed."""
    logging.get_absl_logger().addFilter(_is_news)
    hook = sys.unraisablehook

    def unraisable(event):
        if str(event.exc_value) != "Event loop is closed":
            hook(event)

    sys.unraisablehook = unraisable


def _is_news(record):
    is_error = record.levelno >= converter.STANDARD_ERROR
    return not (is_error and "orbax" in Path(record.pathname).parts)


def reason(error: BaseException) -> str:
    """Why a file could not be written, in few words."""
    system = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's
    return os.strerror(int(system[1])) if system else str(error).strip().splitlines()[0][:200]
