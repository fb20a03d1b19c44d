"""When an array cannot be written, Orbax waits for the writes of the others."""

import asyncio
import threading

import pytest
from orbax.checkpoint._src import asyncio_utils

from nvae_jax import checkpoint_reader, orbax_errors


async def fail():
    raise OSError("no space")


def test_orbax_waits_for_other_writes_after_an_error():
    """As in TensorStore, a write ends with a call of the event loop from another thread."""
    ended = []

    async def write():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        threading.Timer(0.3, loop.call_soon_threadsafe, (done.set_result, None)).start()
        ended.append(await done)

    async def save():
        await asyncio.gather(fail(), write())

    assert checkpoint_reader.orbax_errors is orbax_errors  # which calls `silence` on import
    with pytest.raises(OSError, match="no space"):
        asyncio_utils.run_sync(save())
    assert ended == [None]


def test_orbax_does_not_wait_forever(monkeypatch):
    monkeypatch.setattr(orbax_errors, "SECONDS", 0.1)

    async def save():
        await asyncio.gather(fail(), asyncio.sleep(60))

    with pytest.raises(OSError, match="no space"):
        asyncio_utils.run_sync(save())
