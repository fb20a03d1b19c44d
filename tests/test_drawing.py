import chex
import numpy as np

from nvae_jax import drawing, steps

DEVICES = """
import json, re
import jax, numpy as np
from nvae_jax import build, sharding
from nvae_jax.drawing import Drawing
from tests.conftest import tiny_config

config = tiny_config(model={"num_scales": 1, "unroll": 1}, log={"num_images": 22})
experiment = build.build(config)
drawing = Drawing(experiment)
state = experiment.create_state(np.zeros((4, 16, 16, 1), np.float32))
images = drawing(state.variables, 3)
count = sharding.round_up(experiment.mesh, 22)
program = drawing.sample.lower(state.variables, jax.random.key(0), np.arange(count), 1.0)
program = program.compile().as_text()
activations = {int(count) for count in re.findall(r"f32\\[(\\d+),16,16,8\\]", program)}
print(json.dumps([float(images[name].mean()) for name in ("samples", "reconstructions")]
                 + [len(images["samples"]), max(activations)]))
"""


def test_drawing_again_compiles_nothing(tiny, monkeypatch):
    experiment, state, _ = tiny
    chex.clear_trace_counter()

    def traced_once(make):
        return lambda *arguments: chex.assert_max_traces(make(*arguments), n=1)

    for name in ("make_sample_step", "make_reconstruct_step"):
        monkeypatch.setattr(steps, name, traced_once(getattr(steps, name)))
    monkeypatch.setattr(
        drawing, "_programs", drawing._programs.__wrapped__
    )  # not the images of other devices
    draw = drawing.Drawing(experiment)
    first, second = (draw(state.variables, step) for step in (1, 2))
    assert first["samples"].shape == (4, 16, 16, 1) == first["reconstructions"].shape
    assert not np.array_equal(first["samples"], second["samples"])


def test_the_images_of_a_drawing_are_divided_among_devices(run_program):
    one, four = (run_program(DEVICES, devices) for devices in (1, 4))
    assert one[2] == four[2] == 22
    np.testing.assert_allclose(one[1], four[1], rtol=1e-3)
    assert (one[3], four[3]) == (22, 6)  # numbers of images that one device computes
