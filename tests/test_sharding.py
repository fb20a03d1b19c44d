"""The same step function on any mesh, on eight simulated devices in another process."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nvae_jax import sharding
from nvae_jax.ops.portable import optimizer

PROGRAM = """
import json, math, sys
import jax, numpy as np
from nvae_jax import build, sharding
from nvae_jax.planning import hlo
from nvae_jax.planning.collectives import count_collectives
from tests.conftest import tiny_config

# The smallest model with a top-down path, wide enough for kernels that are shared.
model = {"num_scales": 1, "encoder_width": 16, "decoder_width": 16, "unroll": 1}
experiment = build.build(tiny_config(model=model, mesh=json.loads(sys.argv[1])))
mesh = experiment.mesh
rng = np.random.default_rng(0)
batches = (rng.random((5, 16, 16, 16, 1)) > 0.5).astype(np.float32)
state = experiment.create_state(batches[0])
update = experiment.train_step()
compiled = update.lower(experiment.abstract_state(), experiment.abstract_images()).compile()
collectives = count_collectives(hlo.parse(compiled.as_text()))
memory = compiled.memory_analysis().argument_size_in_bytes
kept = [4 * math.prod(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(state)]
shared = [p.shape for p in jax.tree.leaves(state.params) if not p.is_fully_replicated]
channels = [4 * math.prod(shape[:-4]) * shape[-1] for shape in shared]
losses = []
for batch in batches:
    state, metrics = update(state, sharding.to_devices(mesh, batch))
    losses.append(float(metrics["loss"]))
norms = {jax.tree_util.keystr(path): float(np.linalg.norm(np.asarray(leaf, np.float64)))
         for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.batch_stats))}
sharded = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
print(json.dumps({"devices": mesh.size, "losses": losses, "norms": norms, "sharded": sharded,
                  "compiled": update._cache_size(), "count": collectives.count,
                  "bytes": collectives.bytes, "channels": sum(channels),
                  "shared": sum(4 * math.prod(shape) for shape in shared), "kept": sum(kept),
                  "arguments": memory, "images": 4 * batches[0].size // mesh.size}))
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


@pytest.fixture(scope="module")
def one_device(run_program):
    return run_program(PROGRAM, 1, "{}")


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_eight_devices_train_like_one(run_program, one_device, mesh):
    eight = run_program(PROGRAM, 8, json.dumps(mesh))
    assert eight["devices"] == 8 and eight["compiled"] == 1
    np.testing.assert_allclose(eight["losses"], one_device["losses"], rtol=1e-5)
    for name, norm in one_device["norms"].items():
        np.testing.assert_allclose(eight["norms"][name], norm, rtol=1e-5, atol=1e-6, err_msg=name)
    assert (eight["sharded"] > 0) == (mesh.get("fsdp", 1) > 1)
    check_collectives(eight, one_device, mesh.get("fsdp", 1))


def check_collectives(found, one_device, fsdp):
    """Asserts that devices exchange the expected bytes, and store their part of the kernels."""
    count, sent, shared = found["count"], found["bytes"], found["shared"]
    assert not {"all-to-all", "collective-permute"} & count.keys()
    assert found["arguments"] == pytest.approx(found["kept"] + found["images"], rel=0.01)
    if fsdp == 1:
        assert count.keys() == {"all-reduce"} and shared == 0
        return
    # Each shared kernel is gathered once, its gradient scattered once; parameters and both moments
    # are kept by shares. What else is gathered are a few vectors of their output channels.
    assert 0 <= sent["all-gather"] - shared <= 4 * found["channels"]
    assert sent["reduce-scatter"] == pytest.approx(shared / fsdp, rel=1e-3)
    saved = 3 * shared * (1 - 1 / fsdp)
    assert found["kept"] == pytest.approx(one_device["kept"] - saved, rel=1e-3)


def test_batch_norm_within_a_device_needs_no_communication(run_program):
    found = run_program(NORM_GROUPS, 8)
    # One collective has the mean and the second moment.
    assert found["1"] == found["2"] == 1
    assert found["8"] == found["16"] == 0


def test_rows_are_divided_evenly_among_as_many_devices_as_possible(run_program):
    places, rounded = run_program(ROWS, 8)
    assert places["8"] == [[i] for i in range(8)]
    assert places["12"] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert places["3"] == [[0, 1, 2]] and rounded == 16


def test_saving_sharded_arrays_compiles_nothing(run_program, tmp_path):
    listened, by_saving = run_program(SAVING, 8, str(tmp_path))
    assert listened == 1 and by_saving == 0


class FakeDevice:
    def __init__(self, number, local):
        self.id, self.process_index = number, number // local
        self.platform = self.device_kind = "cpu"


def fake_devices(hosts, local):
    return [FakeDevice(i, local) for i in range(hosts * local)]


@pytest.mark.parametrize(
    ("settings", "devices", "shape"),
    [((-1, 1), 8, (8, 1)), ((-1, 4), 8, (2, 4)), ((2, -1), 8, (2, 4)), ((1, 1), 1, (1, 1))],
)
def test_a_mesh_has_the_requested_shape(settings, devices, shape):
    mesh = sharding.make_mesh(sharding.MeshSettings(*settings), fake_devices(1, devices))
    assert tuple(mesh.shape.values()) == shape


def test_mesh_sizes_that_do_not_fit_the_devices_are_errors():
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


def test_a_batch_is_transferred_before_it_is_used():
    mesh = sharding.make_mesh(sharding.MeshSettings(), jax.devices("cpu")[:1])
    batch = np.ones((8, 2**18), np.float32)
    assert all(sharding.to_devices(mesh, batch).is_ready() for _ in range(10))


def test_only_large_kernels_are_sharded():
    # What the optimiser concatenates would have to be gathered for it.
    assert sharding.MIN_SHARDED_SIZE >= optimizer.SMALL
    mesh = jax.sharding.AbstractMesh((2, 4), sharding.AXES)
    shapes = {
        "kernel": (3, 3, 64, 64),
        "stack": (5, 3, 3, 64, 64),
        "odd": (3, 3, 64, 66),
        "small": (1, 1, 32, 64),
        "small_stack": (9, 1, 1, 32, 64),
        "vectors": (100, 4096),
    }
    found = sharding.state_shardings(mesh, {name: np.zeros(s) for name, s in shapes.items()})
    assert found.pop("kernel").spec == PartitionSpec(None, None, None, "fsdp")
    assert found.pop("stack").spec == PartitionSpec(None, None, None, None, "fsdp")
    assert all(one.is_fully_replicated for one in found.values())


@pytest.mark.parametrize(
    ("fsdp", "first"), [(1, [[0]]), (2, [[0, 1]]), (4, [[0, 1, 2, 3]]), (8, [[*range(8)]])]
)
def test_devices_that_share_kernels_are_on_one_host_or_consecutive_hosts(fsdp, first):
    devices = fake_devices(4, 4)
    grid = sharding.make_mesh(sharding.MeshSettings(-1, fsdp), devices[::-1]).devices
    assert [[device.id for device in row] for row in grid[:1]] == first
    assert [device.process_index for device in grid.flat] == [d.process_index for d in devices]


def test_tpu_chips_that_share_kernels_are_neighbours():
    # Four hosts of 2×2 chips each, as a TPU v5e:4x4 has them.
    devices = fake_devices(4, 4)
    for device in devices:
        device.platform, device.device_kind, device.core_on_chip = "tpu", "TPU v5 lite", 0
        (y, x), (row, column) = divmod(device.process_index, 2), divmod(device.id % 4, 2)
        device.coords = [2 * x + column, 2 * y + row, 0]
    for fsdp, distance in ((2, 1), (4, 2)):
        for row in sharding.make_mesh(sharding.MeshSettings(-1, fsdp), devices).devices:
            spread = np.ptp([device.coords for device in row], axis=0)
            assert spread.sum() == distance and len({d.process_index for d in row}) == 1


def test_devices_that_fit_no_grid_keep_the_order_of_processes():
    grid = sharding.make_mesh(sharding.MeshSettings(-1, 4), fake_devices(2, 6)).devices
    assert [device.id for device in grid.flat] == [*range(12)]
