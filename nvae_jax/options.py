"""Flags that several commands share, each defined once."""

from collections.abc import Callable
from typing import Any

from absl import flags

from nvae_jax import checkpoint, cli, noise, paths, schema
from nvae_jax.recalibrate import METHODS

# Whoever calls these functions has the flags: they are in that command's --help.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser):
    syntactic_help = "a path"

    def parse(self, argument):
        """The path as text; see `paths.parse` for what is refused."""
        return str(paths.parse(argument))


def define_path(name: str, default: str | None, help: str, **options: Any) -> flags.FlagHolder:
    """Defines a flag whose value is a path."""
    return flags.DEFINE(_PathParser(), name, default, help, **options)


def define_run(*, join: bool = True) -> Callable[[], dict[str, Any]]:
    """Defines the flags of every command that reads a run.

    Args:
      join: whether the command computes on all hosts of a cluster, where it is started on them.

    Returns:
      a function of no arguments: what `api.load` and `checkpoint.load_run` take, as {name: value}.
    """
    workdir = define_path("workdir", None, "run directory", required=True)
    which = flags.DEFINE_string(
        "checkpoint", "latest", "latest, best (by the held-out NELBO in training), or a step"
    )
    changes = cli.define_changes()
    return lambda: {
        "workdir": workdir.value,
        "which": checkpoint.parse_checkpoint_name(which.value),
        "changes": changes(),
        **({"join": True} if join else {}),
    }


def define_images() -> flags.FlagHolder:
    """Defines --images, the images to work on."""
    return define_path("images", None, ".npz, .npy, picture or folder; default: the split's")


def define_out(help: str = "folder to write to") -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines --out and --overwrite: where results go, and whether they may replace others."""
    out = define_path("out", None, help, required=True)
    return out, define_overwrite()


def define_overwrite() -> flags.FlagHolder:
    """Defines --overwrite: whether files of other settings, or of others, may be replaced."""
    return flags.DEFINE_bool(
        "overwrite", False, "replace files that other settings, or somebody else, made"
    )


def define_sampling() -> Callable[[], dict[str, Any]]:
    """Defines the flags of every command that samples in one way: temperature and recalibration.

    Returns:
      a function of no arguments: what `prior_samples.PriorSamples` takes, as {name: value}.
    """
    temperature = flags.DEFINE_list(
        "temperature",
        ["1"],
        "of the prior: one, or one a scale, coarsest first: --temperature=1,0.7",
    )
    recalibrate = flags.DEFINE_bool(
        "recalibrate_bn", True, "batch-norm statistics from prior samples"
    )
    method = flags.DEFINE_enum(
        "recalibration", METHODS[0], METHODS, "exact statistics, or the published moving average"
    )
    passes = flags.DEFINE_integer(
        "passes", None, "of recalibration; default: config.eval's", 1, schema.MANY
    )
    return lambda: {
        "temperature": noise.parse_temperatures(temperature.value),
        "recalibrate_bn": recalibrate.value,
        "recalibration": method.value,
        "passes": passes.value,
    }


def define_batch_size() -> flags.FlagHolder:
    """Defines --batch_size, the number of images computed at a time."""
    return flags.DEFINE_integer(
        "batch_size", None, "images at a time; default: config.eval's", 1, schema.MANY
    )


def define_seed(help: str) -> flags.FlagHolder:
    """Defines --seed, the seed of draws."""
    return flags.DEFINE_integer("seed", 0, help, 0, schema.LARGEST_INT)
