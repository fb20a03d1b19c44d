"""Measures how batch norm on parts of the batch affects models of digits.

python benchmarks/norm_groups.py [--groups=1,4,16] [--steps=400] [--seeds=3] [--out=FILE.json]

`model.norm_groups` is the number of parts: with one per device, batch norm needs no communication.
For each seed, all settings use the same batches, noise and initial parameters. The result is the
NELBO of the test images in nats.
"""

import numpy as np
import record
from absl import flags

from nvae_jax import build, cli, sharding
from nvae_jax.configs import digits
from nvae_jax.data import pipeline
from nvae_jax.evaluate import HeldOutEvaluator

GROUPS = flags.DEFINE_list("groups", ["1", "4", "16"], "numbers of parts of a batch")
BATCH = flags.DEFINE_integer("batch", 64, "images per batch", 1)
STEPS = flags.DEFINE_integer("steps", 400, "training steps", 1)
SEEDS = flags.DEFINE_integer("seeds", 3, "repetitions", 1)
OUT = flags.DEFINE_string("out", "", "JSON file for the results")


def configured(groups, seed):
    """A model like the quickstart's, with batch norm on `groups` parts of a batch."""
    config = digits.get_config()
    config.seed = seed
    config.model.update(num_groups=4, encoder_width=8, norm_groups=groups)
    config.optimizer.learning_rate = 0.01
    config.train.update(num_steps=STEPS.value, batch_size=BATCH.value)
    return build.resolve(config)


def trained_nelbo(config):
    """Test NELBO in nats per image after training."""
    experiment = build.build(config)
    state, step = experiment.create_state(), experiment.train_step()
    batches = pipeline.train_iterator(
        experiment.data, batch_size=experiment.loop.batch_size, seed=config.seed
    )
    for _ in range(experiment.loop.num_steps):
        state, _ = step(state, sharding.to_devices(experiment.mesh, next(batches)["image"]))
    batches.close()
    return float(HeldOutEvaluator(experiment)(state.variables)["nelbo"])


def main(_):
    rows = []
    for groups in map(int, GROUPS.value):
        nelbo = [trained_nelbo(configured(groups, seed)) for seed in range(SEEDS.value)]
        row = {"groups": groups, "images a part": BATCH.value // groups, "nelbo": nelbo}
        rows.append(row)
        print(row, f"mean {np.mean(nelbo):.2f}", flush=True)
        record.write(OUT.value, rows, steps=STEPS.value, batch=BATCH.value)


if __name__ == "__main__":
    cli.run(main)
