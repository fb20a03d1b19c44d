"""Tells whether a config fits devices, how fast it can be, and what to change.

With --devices it estimates:
python launch/plan.py --config=configs/X.py --devices=N [--hbm=GB] [--rate=TFLOP/s]

With --topology it compiles for GPUs (h100, h200, a100, l4; h100:2x8 is two hosts of eight) or TPUs
(v5e:4x4), which takes minutes:
python launch/plan.py --config=configs/X.py --topology=h100:8

It needs neither the data nor the devices. --config.KEY=VALUE changes a key. The exit status is 1 if
the config does not fit.
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
DEVICES = flags.DEFINE_integer("devices", None, "number of devices")
HBM = flags.DEFINE_float("hbm", None, "memory of each in GB (10^9 bytes); default: 16")
RATE = flags.DEFINE_float("rate", None, "speed of each in TFLOP/s, for a bound on the step time")
TOPOLOGY = flags.DEFINE_string("topology", None, "devices to compile for: h100:8, v5e:4x4 …")


def main(_):
    """Flags in, one call out."""
    if CONFIG.value is None:
        raise flags.Error("--config=configs/X.py is missing")
    if (DEVICES.value is None) == (TOPOLOGY.value is None):
        raise flags.Error("give either --devices=N or --topology=NAME:SHAPE")
    config = schema.changed(config_file.load(CONFIG.value), CHANGES())
    jax.config.update("jax_platforms", "cpu")  # occupies no accelerator
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
