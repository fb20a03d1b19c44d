"""What devices that share kernels send each other, said by the compilers for GPUs and TPUs.

Each takes minutes, and is not installed for the other tests: pip install 'nvae_jax[gpu]' or [tpu].
"""

import jax
import pytest

from nvae_jax import build, sharding
from nvae_jax.planning import compiled, estimate, topology
from tests.conftest import tiny_config

DTYPE = 2  # bytes of bfloat16


def compile_shared(name, data, fsdp):
    """(the compiled step, bytes of shared kernels in bfloat16, bytes of the state on a device)."""
    target = topology.parse(name)
    try:
        devices = target.devices()
    except ValueError as error:
        pytest.skip(str(error))
    model = dict(num_scales=1, num_groups=3, latent_channels=16, unroll=1, dtype="bfloat16")
    model.update(encoder_width=32, decoder_width=32)
    mesh = {"data": data, "fsdp": fsdp}
    config = tiny_config(model=model, train={"batch_size": 32}, mesh=mesh)
    state = build.build(config, devices).abstract_state()
    planned = estimate.planned_mesh(data * fsdp, fsdp)
    shared = [p for p in jax.tree.leaves(state.params) if sharding.is_sharded(planned, p)]
    kept = estimate.bytes_on_device(state, planned)
    return compiled.compile_step(config, target), DTYPE * sum(p.size for p in shared), kept


@pytest.mark.parametrize(("name", "data", "fsdp"), [("h100:8", 2, 4), ("v5e:4x4", 4, 4)])
def test_the_compiled_collectives_send_the_expected_bytes(name, data, fsdp):
    step, shared, kept = compile_shared(name, data, fsdp)
    sent = step.collectives.bytes
    assert not {"all-to-all", "collective-permute"} & sent.keys()
    assert sent["all-gather"] == pytest.approx(shared, rel=0.1)
    if name.startswith("v5e"):  # small scatters are all-reduces there, and all arrays in tiles
        assert 0 < sent["reduce-scatter"] <= shared / fsdp
    else:
        assert sent["reduce-scatter"] == pytest.approx(shared / fsdp, rel=0.1)
        images = 4 * 32 * 16 * 16 / (data * fsdp)
        assert step.arguments == pytest.approx(kept + images, rel=0.01)
