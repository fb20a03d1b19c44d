"""One step function on any mesh: eight fake devices in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nvae_jax import sharding
from tests.conftest import FAST_COMPILATION

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, sys
import jax, numpy as np
from nvae_jax import build, sharding
from tests.conftest import tiny_config

config = tiny_config(model={"unroll": 1}, mesh=json.loads(sys.argv[1]))
experiment = build.build(config)
mesh = experiment.mesh
rng = np.random.default_rng(0)
batches = (rng.random((5, 16, 16, 16, 1)) > 0.5).astype(np.float32)
state = experiment.create_state(batches[0])
update = experiment.train_step()
losses = []
for batch in batches:
    state, metrics = update(state, sharding.to_devices(mesh, batch))
    losses.append(float(metrics["loss"]))
norms = {jax.tree_util.keystr(path): float(np.linalg.norm(np.asarray(leaf, np.float64)))
         for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.batch_stats))}
sharded = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
print(json.dumps({"devices": mesh.size, "losses": losses, "norms": norms, "sharded": sharded,
                  "compiled": update._cache_size()}))
"""

NORM_GROUPS = """
import json, sys
import jax, jax.numpy as jnp
from nvae_jax import sharding
from nvae_jax.models.layers import BatchNorm

mesh = sharding.make_mesh(sharding.MeshSettings())
x = jax.ShapeDtypeStruct((16, 4, 4, 3), jnp.float32, sharding=sharding.over_batch(mesh))

def all_reduces(groups):
    norm = BatchNorm(groups=groups)
    variables = norm.init(jax.random.key(0), jnp.zeros(x.shape), False)
    apply = lambda x: norm.apply(variables, x, True, mutable=["batch_stats"])
    return jax.jit(apply).lower(x).compile().as_text().count("all-reduce(")

print(json.dumps({groups: all_reduces(groups) for groups in (1, 2, 8, 16)}))
"""

SAVING = """
import json, sys, types
import jax, jax.numpy as jnp
from nvae_jax import checkpoint, sharding

mesh = sharding.make_mesh(sharding.MeshSettings())
arrays = [jax.device_put(jnp.ones((n, 8)), sharding.replicated(mesh)) for n in (8, 16, 24)]
compiled = []
listen = lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
jax.monitoring.register_event_duration_secs_listener(listen)
jax.jit(lambda x: x + 1)(1.0)
listened = len(compiled)
with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(types.SimpleNamespace(step=1, stored=lambda: {"params": arrays}), {})
print(json.dumps([listened, len(compiled) - listened]))
"""

ROWS = """
import json
import jax, numpy as np
from nvae_jax import sharding

def rows(count):
    shards = sharding.shard_batch(np.arange(count)).addressable_shards
    return sorted({tuple(np.asarray(shard.data).tolist()) for shard in shards})

places = {count: rows(count) for count in (8, 12, 3)}
double = jax.jit(sharding.gathered(lambda x: {"doubled": 2 * x}))
doubled = double(sharding.shard_batch(np.arange(12)))["doubled"]
assert doubled.is_fully_replicated and doubled.tolist() == list(range(0, 24, 2))
print(json.dumps([places, sharding.round_up(None, 9)]))
"""


def run(devices, **mesh):
    return run_program(PROGRAM, devices, json.dumps(mesh))


def run_program(program, devices, *arguments):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one_device():
    return run(1)


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_eight_devices_train_as_one(one_device, mesh):
    eight = run(8, **mesh)
    assert eight["devices"] == 8 and eight["compiled"] == 1
    np.testing.assert_allclose(eight["losses"], one_device["losses"], rtol=1e-5)
    for name, norm in one_device["norms"].items():
        np.testing.assert_allclose(eight["norms"][name], norm, rtol=1e-5, atol=1e-6, err_msg=name)
    assert (eight["sharded"] > 0) == (mesh.get("fsdp", 1) > 1)


def test_batch_norm_within_devices_needs_no_communication():
    found = run_program(NORM_GROUPS, 8)
    assert found["1"] > 0 and found["2"] > 0
    assert found["8"] == found["16"] == 0


def test_rows_are_divided_among_as_many_devices_as_divide_them():
    places, rounded = run_program(ROWS, 8)
    assert places["8"] == [[i] for i in range(8)]
    assert places["12"] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert places["3"] == [[0, 1, 2]] and rounded == 16


def test_saving_what_devices_share_compiles_nothing(tmp_path):
    listened, by_saving = run_program(SAVING, 8, str(tmp_path))
    assert listened == 1 and by_saving == 0


@pytest.mark.parametrize(
    ("settings", "devices", "shape"),
    [((-1, 1), 8, (8, 1)), ((-1, 4), 8, (2, 4)), ((2, -1), 8, (2, 4)), ((1, 1), 1, (1, 1))],
)
def test_mesh_shapes(settings, devices, shape):
    class Device:
        def __init__(self, number):
            self.id, self.process_index = number, 0

    mesh = sharding.make_mesh(sharding.MeshSettings(*settings), [Device(i) for i in range(devices)])
    assert tuple(mesh.shape.values()) == shape


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(
        ValueError,
        match="mesh.data=3 times mesh.fsdp=1 does not fit the 1 .* --config.mesh.data=-1",
    ):
        sharding.make_mesh(sharding.MeshSettings(3, 1))
    with pytest.raises(ValueError, match="mesh.data and mesh.fsdp must be positive"):
        sharding.MeshSettings(-1, -1)
    mesh = sharding.make_mesh(sharding.MeshSettings())
    sharding.check_batch_size(mesh, 7, "train.batch_size")
    assert sharding.round_up(mesh, 7) == 7


def test_a_batch_is_there_before_a_program_asks_for_it():
    mesh = sharding.make_mesh(sharding.MeshSettings(), jax.devices("cpu")[:1])
    batch = np.ones((8, 2**18), np.float32)
    assert all(sharding.to_devices(mesh, batch).is_ready() for _ in range(10))


def test_kernels_are_sharded_and_vectors_are_not():
    mesh = jax.sharding.AbstractMesh((2, 4), sharding.AXES)
    size = 4 * sharding.SMALLEST_SHARDED
    state = {"small": np.zeros(size), "kernel": np.zeros((3, size)), "bias": np.zeros(4)}
    found = sharding.state_shardings(mesh, state)
    assert found["kernel"].spec == PartitionSpec(None, "fsdp")
    assert found["small"].is_fully_replicated and found["bias"].is_fully_replicated
