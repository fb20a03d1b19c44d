"""Limits on the unpacked size of files, which are checked before anything is unpacked."""

from __future__ import annotations

from nvae_jax.data.spec import DataError

# A file can unpack to the larger of this many bytes and this multiple of its own size. (Black and
# white digits compress to about a thirteenth.)
MAX_UNPACKED = 2**30
MAX_RATIO = 50
MAX_PIXELS = 2**26  # of an image; 8192x8192


def check_unpacked_size(claimed: int, packed: int, where: object) -> None:
    """Raises DataError if a file of `packed` bytes claims to unpack to too many.

    Args:
      claimed: unpacked size that the file claims, in bytes.
      packed: size of the file in bytes.
      where: name of the file for the message.
    """
    most = max(MAX_UNPACKED, MAX_RATIO * packed)
    if claimed > most:
        raise DataError(
            f"{where}: claims to unpack to {claimed} bytes, but at most {most} are allowed for a "
            f"file of {packed}: store it without compression, or in several files"
        )
