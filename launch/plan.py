"""Says whether a config fits devices, how fast it may be, what to change.

python launch/plan.py --config=configs/X.py --devices=N [--hbm=GB] [--rate=TFLOP/s] estimates;
python launch/plan.py --config=configs/X.py --topology=h100:8 asks the compiler of GPUs (h100, h200,
a100, l4; h100:2x8: two hosts of eight) or, by --topology=v5e:4x4, that of TPUs, for minutes. Needs
no data. --config.KEY=VALUE changes a key. Exit status 1: it does not fit.
"""

import sys

import jax
from absl import flags

from nvae_jax import cli, config_file, options, schema
from nvae_jax.planning import compiled, plan, topology

CONFIG = options.define_path(
    "config", None, "name or file of a config; --config.KEY=VALUE changes a key of configs/base.py"
)
CHANGES = cli.define_changes()
DEVICES = flags.DEFINE_integer("devices", None, "devices to plan for")
HBM = flags.DEFINE_float("hbm", None, "memory of each, in GB (10^9 bytes); default: 16")
RATE = flags.DEFINE_float("rate", None, "speed of each in TFLOP/s, for the least time of a step")
TOPOLOGY = flags.DEFINE_string("topology", None, "to compile for: h100:8, v5e:4x4 …")


def main(_):
    """Flags in, one call out."""
    if CONFIG.value is None:
        raise flags.Error("--config=configs/X.py says what to plan")
    if (DEVICES.value is None) == (TOPOLOGY.value is None):
        raise flags.Error("give either --devices=N or --topology=NAME:SHAPE")
    config = schema.changed(config_file.load(CONFIG.value), CHANGES())
    jax.config.update("jax_platforms", "cpu")  # takes no accelerator that may be there
    if TOPOLOGY.value:
        if HBM.value or RATE.value:
            raise flags.Error("--hbm and --rate go with --devices: a topology has its own memory")
        lines, fits = compiled.report(config, topology.parse(TOPOLOGY.value))
    else:
        budget = plan.Budget(DEVICES.value, 16.0 if HBM.value is None else HBM.value, RATE.value)
        lines, fits = plan.report(config, budget)
    print("\n".join(lines))
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    cli.run(main)
