"""Fixtures for the whole suite: strict JAX, one compilation cache per run, tiny configs."""

import gc
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from nvae_jax import build, cluster_detection
from nvae_jax.configs import digits
from tests import forked
from tests.published import GOLDEN_NAMES, Golden
from tests.stores import bucket, s3, store  # noqa: F401 (fixtures)

ROOT = Path(__file__).parents[1]

# Almost all of the suite's time is compilation of programs that then run for milliseconds. XLA
# reads the variable at the first computation, also in the processes that tests start.
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ < (0, 11):  # a flag that XLA does not know ends the process
    FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
    FAST_COMPILATION += (
        " --xla_cpu_parallel_codegen_split_count=1"  # the other cores run other tests
    )
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILATION}".strip()


def pytest_collection_finish():
    """Excludes objects made by imports from garbage collection, which would slow down tracing."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """A folder of compiled programs, shared with the commands that tests start. It is new unless
    JAX_COMPILATION_CACHE_DIR names a folder, which is kept for the next run of the tests."""
    # The processes of pytest-xdist share the folder, too.
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(root / "compilation")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        jax.config.update("jax_compilation_cache_dir", folder)
        # Programs that compile in less than a second are cached, too: most of the tests' are.
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        yield folder


@pytest.fixture(scope="session")
def commands(compilation_cache):
    """Runs launch scripts in children of a process that has imported the package."""
    with forked.Commands() as commands:
        yield commands


def environment(**variables):
    """This process's environment, without the variables of a cluster."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in cluster_detection.VARIABLES and not name.startswith(("SLURM_", "OMPI_"))
    }
    fixed = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_COMPILATION}
    return {**clean, **fixed, **variables}


def of_devices(count, **variables):
    """The variables of a process that has `count` simulated devices."""
    flags = f"--xla_force_host_platform_device_count={count}" if count > 1 else ""
    return environment(XLA_FLAGS=f"{FAST_COMPILATION} {flags}".strip(), **variables)


@pytest.fixture(scope="session")
def run_program(commands):
    """A function that runs a program on a number of simulated devices, and returns the last line
    that it prints, read as JSON."""

    def run(program, devices, *arguments):
        with commands.start(program, *arguments, environment=of_devices(devices)) as process:
            out, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        return json.loads(out.splitlines()[-1])

    return run


@pytest.fixture(scope="session", params=GOLDEN_NAMES)
def golden(request):
    """Each golden file in turn."""
    return Golden(request.param)


def tiny_config(**sections):
    """16×16 binarised digits, 2 scales of 2 groups, width 8; `sections` change keys."""
    config = digits.get_config()
    config.model.update(process_blocks=1, num_scales=2, num_groups=2, latent_channels=4)
    config.model.update(encoder_width=8, decoder_width=8, preprocess_cells=1, postprocess_cells=1)
    config.optimizer.learning_rate = 0.01
    config.train.update(num_steps=6, batch_size=16)
    config.eval.update(recalibration_passes=3, recalibration_batch_size=4, batch_size=64)
    config.log.update(every_steps=1, images_every_steps=0, num_images=4)
    for section, values in sections.items():
        config[section].update(values)
    return config


@pytest.fixture(scope="session")
def tiny():
    """The tiny experiment, with fresh variables and a batch."""
    experiment = build.build(tiny_config())
    images = (np.random.default_rng(0).random((4, 16, 16, 1)) > 0.5).astype(np.float32)
    state = experiment.create_state(images)
    return experiment, state, images


@pytest.fixture(scope="session")
def undocumented():
    """A function from names of metrics to those that docs/metrics.md lacks."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    known = {name for row in rows for name in re.findall("`(.+?)`", row)}
    return lambda names: {re.sub(r"_\d\d$", "_NN", name) for name in names} - known
