"""Names of the GPUs and TPU slices to compile for; their compilers run on any CPU."""

from nvae_jax.planning import gpu, tpu

Topology = gpu.Cluster | tpu.Slice


def parse(name: str) -> Topology:
    """The `gpu.Cluster` or `tpu.Slice` that a name such as h100:8 or v5e:4x4 stands for.

    Raises:
      ValueError: if the name has another form; the message lists the possible forms.
    """
    found = gpu.parse(name) or tpu.parse(name)
    if found is None:
        raise ValueError(
            f"topology {name!r} is neither GPUs, as h100, h100:8 or h100:2x8 (HOSTSxGPUS), nor "
            "GENERATION:ROWSxCOLUMNS of TPUs, such as v5e:4x4 or v4:2x2x2; GPUs: "
            f"{', '.join(gpu.CARDS)}; generations: {', '.join(tpu.GENERATIONS)}"
        )
    return found
