"""Devices that are not there, by name: of GPUs or a TPU slice. Their compilers run on any CPU."""

from nvae_jax.planning import gpu, tpu


def parse(name):
    """`gpu.Cluster` or `tpu.Slice` of a name.

    Raises:
      ValueError: it is none; the message says what is.
    """
    found = gpu.parse(name) or tpu.parse(name)
    if found is None:
        raise ValueError(
            f"topology {name!r} is neither GPUs, as h100, h100:8 or h100:2x8 (HOSTSxGPUS), nor "
            "GENERATION:ROWSxCOLUMNS of TPUs, such as v5e:4x4 or v4:2x2x2; GPUs: "
            f"{', '.join(gpu.CARDS)}; generations: {', '.join(tpu.GENERATIONS)}"
        )
    return found
