"""An explorer of the tiny run, all of whose programs are compiled."""

import contextlib

import jax
import pytest

from nvae_jax import api
from nvae_jax.explore.explorer import Explorer


@pytest.fixture(scope="session")
def compiled():
    """The names of the programs that JAX compiles."""
    names = []

    def listen(name, _, **about):
        if name.endswith("backend_compile_duration"):
            names.append(about.get("fun_name", name))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def allowing(compiled):
    """A context in which other code may compile."""

    @contextlib.contextmanager
    def allow():
        yield
        compiled.clear()

    return allow


@pytest.fixture(scope="session")
def explorer(workdir, compiled):
    """An explorer of six pictures, whose programs are compiled."""
    explorer, seen = Explorer(api.load(workdir, batch_size=6)), []
    explorer.compile(lambda what, steps: seen.append((what, len(steps))) or steps)
    assert seen == [("compiling", 4)] and compiled
    return explorer
