"""How much a file may unpack to, checked before anything is: small files can claim any size."""

from __future__ import annotations

from nvae_jax.data.spec import DataError

# A file may unpack to this many bytes, or to so many times its own size, whichever is more. Digits
# in black and white pack to about a thirteenth.
MAX_UNPACKED = 2**30
MAX_RATIO = 50
# A picture of 8192x8192.
MAX_PIXELS = 2**26


def check_unpacked_size(claimed: int, packed: int, where: object) -> None:
    """Raises DataError where `packed` bytes of the file `where` claim to be too many more."""
    most = max(MAX_UNPACKED, MAX_RATIO * packed)
    if claimed > most:
        raise DataError(
            f"{where}: claims to unpack to {claimed} bytes, and at most {most} are read from a "
            f"file of {packed}: store it without compression, or in parts"
        )
