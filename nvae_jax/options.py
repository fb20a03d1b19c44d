"""Defines flags that several commands share."""

from collections.abc import Callable
from typing import Any

from absl import flags

from nvae_jax import checkpoint_reader, cli, noise, paths, schema
from nvae_jax.recalibrate import METHODS

# The flags then belong to the command that calls these functions, and are listed by its --help.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser):
    syntactic_help = "a path"

    def parse(self, argument):
        """Returns the path as text; `paths.parse` raises an error if it is not valid."""
        return str(paths.parse(argument))


def define_path(name: str, default: str | None, help: str, **options: Any) -> flags.FlagHolder:
    """Defines a flag whose value is a path."""
    return flags.DEFINE(_PathParser(), name, default, help, **options)


def define_run(*, join: bool = True) -> Callable[[], dict[str, Any]]:
    """Defines the flags of every command that reads a run.

    Args:
      join: whether the command, started on all hosts of a cluster, computes on all of them.

    Returns:
      a function without arguments that returns the arguments of `api.load` and
      `loading.load_run` as {name: value}.
    """
    workdir = define_path("workdir", None, "run directory", required=True)
    which = flags.DEFINE_string(
        "checkpoint", "latest", "latest, best (by the held-out NELBO in training), or a step"
    )
    changes = cli.define_changes()
    return lambda: {
        "workdir": workdir.value,
        "which": checkpoint_reader.parse_checkpoint_name(which.value),
        "changes": changes(),
        **({"join": True} if join else {}),
    }


def define_images() -> flags.FlagHolder:
    """Defines --images, the images to work on."""
    return define_path("images", None, ".npz, .npy, picture or folder; default: the split's")


def define_out(help: str = "folder to write to") -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines --out and --overwrite: where results go, and whether to replace existing files."""
    out = define_path("out", None, help, required=True)
    return out, define_overwrite()


def define_overwrite() -> flags.FlagHolder:
    """Defines --overwrite: whether to replace files of other settings or other programs."""
    return flags.DEFINE_bool(
        "overwrite", False, "replace files made with other settings or by other programs"
    )


def define_sampling() -> Callable[[], dict[str, Any]]:
    """Defines the flags of commands that draw samples: temperature and recalibration.

    Returns:
      a function without arguments that returns arguments of `prior_samples.PriorSamples` as
      {name: value}.
    """
    temperature = flags.DEFINE_list(
        "temperature",
        ["1"],
        "temperature of the prior; or one per scale, coarsest first: --temperature=1,0.7",
    )
    recalibrate = flags.DEFINE_bool(
        "recalibrate_bn", True, "compute batch-norm statistics from prior samples"
    )
    method = flags.DEFINE_enum(
        "recalibration", METHODS[0], METHODS, "exact statistics, or the published moving average"
    )
    passes = flags.DEFINE_integer(
        "passes", None, "passes of recalibration; default: config.eval's", 1, schema.MANY
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
