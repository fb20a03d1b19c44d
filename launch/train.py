"""Trains a model, or resumes the run in the folder.

python launch/train.py --config=configs/X.py --workdir=DIR [--config.KEY=VALUE ...]
python launch/train.py --workdir=DIR

The second form resumes a run; --config.KEY=VALUE can then change keys that do not affect the
result, for this start only. --restart starts a run without any checkpoint from the beginning;
--extend --config.train.num_steps=N continues a finished run.
"""

from absl import flags

from nvae_jax import (
    build,
    cli,
    config_file,
    loggers,
    options,
    paths,
    profiling,
    run_directory,
    schema,
    train,
)

CONFIG = options.define_path(
    "config", None, "name or file of a config; --config.KEY=VALUE changes a key of configs/base.py"
)
CHANGES = cli.define_changes()
WORKDIR = options.define_path("workdir", None, "run directory", required=True)
CHECK = flags.DEFINE_bool(
    "check", False, "only check flags and config, as far as possible without data and devices"
)
RESTART = flags.DEFINE_bool("restart", False, "start a run without checkpoints from the beginning")
EXTEND = flags.DEFINE_bool(
    "extend", False, "continue a finished run to --config.train.num_steps; see docs/training.md"
)
PROFILE = flags.DEFINE_string(
    "profile", None, "START:STOP: write a trace of these steps, for TensorBoard's Profile tab"
)
LOG = flags.DEFINE_list("log", ["tensorboard"], f"additional loggers: {', '.join(loggers.MODULES)}")


def main(_):
    """Flags in, one call out."""
    others = loggers.by_name(LOG.value)
    config = None if CONFIG.value is None else config_file.load(CONFIG.value)
    if CHECK.value and config is not None and paths.is_bucket(paths.parse(WORKDIR.value)):
        build.check(schema.changed(config, CHANGES()))  # works without the bucket's credentials
    elif CHECK.value:
        build.check(
            run_directory.chosen_config(WORKDIR.value, config, CHANGES(), extend=EXTEND.value)
        )
    else:
        how = {"restart": RESTART.value, "extend": EXTEND.value, "loggers": others}
        how["profile"] = profiling.parse_span(PROFILE.value)
        train.train(config, WORKDIR.value, CHANGES(), **how)


if __name__ == "__main__":
    cli.run(main)
