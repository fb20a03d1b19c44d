"""Estimates whether a config fits devices that need not be present, how fast it is, what to change.

The numbers are estimates; `compiled.report` takes them from the compiler of a device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ml_collections import ConfigDict

from nvae_jax import sharding
from nvae_jax.models.remat import POLICIES
from nvae_jax.planning.estimate import (
    GB,
    Estimator,
    MemoryEstimate,
    Setting,
    bytes_on_device,
    planned_mesh,
)

TERA = 1e12
# Estimates are too low: the TPU compiler needed 1.1 to 1.3 times as much memory for five of the six
# published configs, and 1.55 times as much for the sixth.
HEADROOM = 0.3
MAX = 10**6  # limit on devices, GB and TFLOP/s


@dataclass(frozen=True)
class Budget:
    """The devices to train on.

    Attributes:
      devices: their number.
      hbm: memory of each in GB (10^9 bytes).
      rate: TFLOP/s of each, or None.
    """

    devices: int
    hbm: float = 16.0
    rate: float | None = None

    def __post_init__(self):
        if not 1 <= self.devices <= MAX:
            raise ValueError(f"--devices must be at least 1 and at most {MAX}, not {self.devices}")
        for flag, value, unit in (("hbm", self.hbm, "GB"), ("rate", self.rate, "TFLOP/s")):
            if value is not None and not 0 < value <= MAX:
                raise ValueError(
                    f"--{flag} must be a positive number of {unit}, at most {MAX}, not {value:g}"
                )

    def fits(self, need: MemoryEstimate) -> bool:
        """Whether a `MemoryEstimate` leaves `HEADROOM` of a device's memory free."""
        return need.total <= (1 - HEADROOM) * self.hbm * GB


def report(config: ConfigDict, budget: Budget) -> tuple[list[str], bool]:
    """Reports whether a config fits the devices, and with which settings it would.

    Args:
      config: a ConfigDict; its data set is not read.
      budget: a `Budget`.

    Returns:
      (lines of text, whether any setting fits).

    Raises:
      ValueError: for an invalid config, or a batch that cannot be divided among the devices.
    """
    requested = _requested(config, budget)
    estimator = Estimator(config)
    lines = _header(estimator, config, budget, requested) + [""]
    lines += _table(estimator, config.train.batch_size, budget, requested)
    chosen = choose(estimator, config.train.batch_size, budget, requested)
    if chosen is None:
        return lines + explain_no_fit(estimator, config.train.batch_size, budget, requested), False
    return lines + _choice(chosen, estimator.need(chosen, budget.devices), budget), True


def _requested(config, budget):
    """The `Setting` of the config."""
    batch_size, devices = config.train.batch_size, budget.devices
    if batch_size % devices:
        fewer = max(n for n in range(1, devices + 1) if batch_size % n == 0)
        larger = -(-batch_size // devices) * devices
        raise ValueError(
            f"train.batch_size={batch_size} cannot be divided among {devices} devices: take "
            f"--devices={fewer} or --config.train.batch_size={larger}"
        )
    mesh = sharding.MeshSettings(**config.mesh.to_dict())
    return Setting(
        dtype=config.model.dtype,
        remat=config.model.remat,
        fsdp=planned_mesh(devices, mesh.fsdp, mesh.data).shape["fsdp"],
        micro_batches=config.train.accumulation_steps,
    )


def choose(
    estimator: Estimator, batch_size: int, budget: Budget, requested: Setting
) -> Setting | None:
    """The first `Setting` that fits, or None.

    Small changes are preferred: first only `model.remat`, then sharded parameters, then bfloat16,
    and last gradient accumulation, which changes the results of batch norm.
    """
    for setting in candidates(batch_size, budget.devices, requested):
        if budget.fits(estimator.need(setting, budget.devices)):
            return setting
    return None


def candidates(batch_size: int, devices: int, requested: Setting) -> Iterator[Setting]:
    """Settings to try, in order of preference; the first is the requested one."""
    images = batch_size // devices
    for micro_batches in _doubled(requested.micro_batches, images):
        for dtype in dict.fromkeys((requested.dtype, "bfloat16")):
            for fsdp in _doubled(requested.fsdp, devices):
                for remat in POLICIES:
                    yield Setting(dtype, remat, fsdp, micro_batches)


def _doubled(first, limit):
    """`first`, and the divisors of `limit` that are each at least twice the one before."""
    sizes = [first]
    for size in range(first + 1, limit + 1):
        if limit % size == 0 and size >= 2 * sizes[-1]:
            sizes.append(size)
    return sizes


def _header(estimator, config, budget, requested):
    mesh = planned_mesh(budget.devices, requested.fsdp)
    state = estimator.state
    trees = (state.params, state.opt_state, state)
    params, optimizer, everything = (bytes_on_device(tree, mesh) / GB for tree in trees)
    return [
        f"{estimator.num_params:,} parameters; {config.train.batch_size} images per step on "
        f"{budget.devices} device(s) of {budget.hbm:g} GB, {requested.dtype}, "
        f"fsdp={requested.fsdp}, accumulation_steps={requested.micro_batches}",
        f"state on a device: parameters {params:.2f} GB, optimiser {optimizer:.2f} GB, "
        f"the rest {everything - params - optimizer:.2f} GB",
    ]


def _table(estimator, batch_size, budget, requested):
    """One line per remat policy. The peak includes activations, gradients and everything else."""
    columns = ["remat", "activations", "peak", "with state", "", "TFLOP"]
    columns += ["seconds", "images/s"] if budget.rate else []
    lines = ["GB per device, and TFLOP per step and device (estimates):", _row(columns)]
    for remat in POLICIES:
        setting = requested._replace(remat=remat)
        need = estimator.need(setting, budget.devices)
        sizes = (need.activations, need.peak, need.total)
        tera = estimator.flops(setting, budget.devices) / TERA
        cells = [remat, *(f"{size / GB:.2f}" for size in sizes)]
        cells += ["fits" if budget.fits(need) else "too much", f"{tera:.3g}"]
        if budget.rate:
            seconds = tera / budget.rate
            cells += [f">= {seconds:.3g}", f"<= {batch_size / seconds:.3g}"]
        lines.append(_row(cells))
    return lines


def _row(cells):
    return f"{cells[0]:<10}" + "".join(f"{cell:>13}" for cell in cells[1:])


def _choice(setting, need, budget):
    flags = {
        "model.remat": setting.remat,
        "model.dtype": setting.dtype,
        "mesh.data": budget.devices // setting.fsdp,
        "mesh.fsdp": setting.fsdp,
        "train.accumulation_steps": setting.micro_batches,
    }
    text = " ".join(f"--config.{key}={value}" for key, value in flags.items())
    return ["", f"fits with {need.total / GB:.2f} GB of {budget.hbm:g}:", text]


def explain_no_fit(
    estimator: Estimator, batch_size: int, budget: Budget, requested: Setting
) -> list[str]:
    """The lines that say that no setting fits, and which devices would suffice."""
    *_, smallest = candidates(batch_size, budget.devices, requested)
    need = estimator.need(smallest, budget.devices)
    return [
        "",
        f"cannot fit: even remat={smallest.remat}, {smallest.dtype}, mesh.fsdp={smallest.fsdp} and "
        f"accumulation_steps={smallest.micro_batches} need {need.total / GB:.2f} GB of "
        f"{budget.hbm:g} (less {HEADROOM:.0%})",
        f"it would fit on {_enough(estimator, batch_size, budget, requested)}",
    ]


def _enough(estimator, batch_size, budget, requested):
    """Devices that would suffice: more of the same, or the same number with more memory."""
    *_, smallest = candidates(batch_size, budget.devices, requested)
    gigabytes = estimator.need(smallest, budget.devices).total / GB / (1 - HEADROOM)
    larger = f"{budget.devices} device(s) of {gigabytes:.3g} GB"
    for devices in _doubled(budget.devices, batch_size)[1:]:
        more = Budget(devices, budget.hbm)
        if setting := choose(estimator, batch_size, more, requested):
            return (
                f"{devices} such devices with remat={setting.remat}, {setting.dtype}, "
                f"mesh.fsdp={setting.fsdp}, or on {larger}"
            )
    return larger
