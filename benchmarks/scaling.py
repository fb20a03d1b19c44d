"""Estimates the step time for many devices; docs/scaling.md lists the assumptions.

python benchmarks/scaling.py [--figure=docs/images/scaling.png]

Prints Markdown tables of efficiency: the time of a step without communication divided by the time
with it, for n devices with the same number of images per device.
"""

import math
from dataclasses import dataclass

from absl import flags

from nvae_jax import cli

FIGURE = flags.DEFINE_string("figure", "", "PNG file for the figure; needs the extra plots")
DEVICES = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Workload:
    """The work of one device in a step, and its communication.

    Attributes:
      images: images per device.
      seconds: time of a step with these images on one H100.
      norms: number of batch norms; each exchanges statistics forward and their gradients backward.
      parameters: number of parameters, whose gradients are exchanged in bfloat16.
    """

    images: int
    seconds: float
    norms: int
    parameters: int

    def larger(self, times):
        """The same with `times` as many images per device."""
        return Workload(times * self.images, times * self.seconds, self.norms, self.parameters)


# mnist was measured (docs/performance.md: 36.3 ms at 200 images, 1.4 TFLOP). The others are assumed
# to need the same time per TFLOP; `plan` counts the TFLOP per image.
SECONDS_PER_TFLOP = 0.0363 / 1.4
CIFAR10_TFLOP, FFHQ256_TFLOP = 0.2, 1.76  # with remat norm_act, and group
WORKLOADS = {
    "mnist": Workload(200, 0.0363, 214, 33_363_134),
    "cifar10": Workload(32, 32 * CIFAR10_TFLOP * SECONDS_PER_TFLOP, 364, 130_852_480),
    "ffhq256": Workload(4, 4 * FFHQ256_TFLOP * SECONDS_PER_TFLOP, 460, 330_798_664),
}


class H100:
    """Hosts of eight GPUs on NVLink, with an InfiniBand adapter of 400 Gbit/s for each GPU."""

    slowness = 1.0  # computing time relative to an H100
    host = 8

    def small(self, devices):
        """Seconds of an all-reduce of a few KB."""
        hosts = devices // self.host
        return 12e-6 + (10e-6 + 4e-6 * math.log2(hosts) if hosts > 1 else 0)

    def large(self, devices, size):
        """Seconds of an all-reduce of many MB: reduce-scatter in a host, exchange, all-gather."""
        hosts = devices // self.host
        within = 2 * size * (1 - 1 / self.host) / (0.8 * 450e9)
        return within + 2 * size / self.host * (1 - 1 / hosts) / (0.8 * 50e9)


class V5e:
    """Slices of up to 256 TPU v5e in a 2D torus, connected by the data centre's network."""

    slowness = 3352 / 819  # ratio of the memory bandwidths
    slice = 256

    def small(self, devices):
        """Seconds of an all-reduce of a few KB: a start, and 1 µs per hop and direction."""
        chips, slices = min(devices, self.slice), max(1, devices // self.slice)
        rows = 2 ** (int(math.log2(chips)) // 2)
        hops = rows + chips // rows  # half of each ring, twice
        return 3e-6 + 1e-6 * hops + (100e-6 if slices > 1 else 0)

    def large(self, devices, size):
        """Seconds of an all-reduce of many MB."""
        chips, slices = min(devices, self.slice), max(1, devices // self.slice)
        within = 2 * size * (1 - 1 / chips) / (2 * 90e9)
        return within + 2 * size / chips * (1 - 1 / slices) / 3.1e9


SYSTEMS = {"H100": H100(), "TPU v5e": V5e()}


def seconds(system, work, devices, norm_groups=1):
    """Seconds of (computing, exchanges of batch norm, exchange of gradients), without overlap.

    Batch norm exchanges nothing if there are as many parts as devices.
    """
    norms = 2 * work.norms * system.small(devices) if norm_groups < devices else 0.0
    return system.slowness * work.seconds, norms, system.large(devices, 2 * work.parameters)


def efficiency(*arguments):
    """The fraction of a step that is spent computing."""
    parts = seconds(*arguments)
    return parts[0] / sum(parts)


def variants(work, devices):
    """{change: arguments of `seconds`}."""
    return {
        "as it is": (work, devices, 1),
        "4 times the batch": (work.larger(4), devices, 1),
        "`norm_groups` = devices": (work, devices, devices),
        "both": (work.larger(4), devices, devices),
    }


def table(name, system):
    """Lines of Markdown: efficiency by workload and change."""
    lines = [f"| {name}, devices | " + " | ".join(map(str, DEVICES)) + " |"]
    lines.append("|---" * (len(DEVICES) + 1) + "|")
    for key, work in WORKLOADS.items():
        for change in variants(work, 8):
            cells = [efficiency(system, *variants(work, n)[change]) for n in DEVICES]
            lines.append(f"| `{key}`, {change} | " + " | ".join(f"{c:.0%}" for c in cells) + " |")
    return lines


def draw(path):
    """Draws curves of step time and efficiency, with one column per system."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(SYSTEMS), figsize=(9, 6), sharex=True, sharey="row")
    for column, (name, system) in zip(axes.T, SYSTEMS.items(), strict=True):
        for index, (key, work) in enumerate(WORKLOADS.items()):
            for groups, style in ((False, "-"), (True, "--")):
                arguments = [(system, work, n, n if groups else 1) for n in DEVICES]
                label = f"{key}, norm_groups = devices" if groups else key
                options = dict(linestyle=style, color=f"C{index}", label=label)
                column[0].plot(DEVICES, [1e3 * sum(seconds(*a)) for a in arguments], **options)
                column[1].plot(DEVICES, [100 * efficiency(*a) for a in arguments], **options)
        column[1].axhline(90, color="grey", linewidth=0.8)
        column[0].set(title=name, xscale="log", yscale="log")
        column[1].set(xlabel="devices", xticks=DEVICES, xticklabels=DEVICES, ylim=(0, 100))
        column[1].minorticks_off()
    axes[0, 0].set_ylabel("step, ms")
    axes[1, 0].set_ylabel("efficiency, %")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(_):
    for name, system in SYSTEMS.items():
        print("\n".join([*table(name, system), ""]))
    if FIGURE.value:
        draw(FIGURE.value)


if __name__ == "__main__":
    cli.run(main)
