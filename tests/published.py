"""Golden files: results of the published code, and our model with the same weights."""

import json
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from nvae_jax import build, objective, regularizers, steps
from nvae_jax.interop import published_names, torch_checkpoint
from nvae_jax.models.kernels import effective_kernels
from nvae_jax.models.nvae import NVAE

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_NAMES = ("bernoulli_2scale", "logistic_mixture_flow", "deep_5bit_flow2")


class Golden:
    """One golden file: the published code's inputs and results."""

    def __init__(self, name):
        self.name = name
        self.arrays = dict(np.load(GOLDEN / f"{name}.npz"))
        self.meta = json.loads(bytes(self.arrays.pop("meta")).decode())
        self.args = self.meta["config"]
        self.state = self.group("state")

    def __getitem__(self, key):
        return self.arrays[key]

    def group(self, prefix):
        """{name: array} of the arrays named `prefix/name`."""
        return {
            key.removeprefix(f"{prefix}/"): value
            for key, value in self.arrays.items()
            if key.startswith(f"{prefix}/")
        }

    def images(self, key):
        """An array of images or feature maps, as (B, H, W, C)."""
        return self.arrays[key].transpose(0, 2, 3, 1)

    @property
    def noise(self):
        """One (B, h, w, z) array per latent group."""
        return [self.images(f"eps/{name}") for name in sorted(self.group("eps"))]


class Model:
    """The converted model of a golden file, with functions that its tests share."""

    def __init__(self, golden, dtype="float32", implementation=None, unroll=1):
        self.golden = golden
        self.config, self.variables = torch_checkpoint.convert_state(golden.state, golden.args)
        # The default is plain JAX on CPU, and the accelerator's own implementation elsewhere.
        default = "cpu" if jax.default_backend() == "cpu" else "auto"
        implementation = implementation or default
        # By default, accelerators multiply float32 with fewer bits.
        self.config.model.update(dtype=dtype, precision="highest", implementation=implementation)
        # Loops over the groups (unroll=1) compile faster.
        self.config.model.unroll = unroll
        self.model = build.build_model(self.config, devices=jax.devices()[:1])
        self.likelihood = build.build_likelihood(self.config)
        self.images = golden.images("x")
        self.leaves = list(published_names.leaves(self.config, golden.state))

    def published_names(self, trees):
        """(published name, our array in the published order) of every leaf of the trees."""
        flat = {collection: flatten_dict(tree) for collection, tree in trees.items()}
        for leaf in self.leaves:
            if leaf.collection in flat:
                array = flat[leaf.collection][leaf.path]
                name = next(n for n in leaf.names if n in self.golden.state)
                yield name, array if leaf.index is None else array[leaf.index], leaf.layout

    def forward(self, variables):
        """The model's outputs at the golden noise, with the running statistics."""
        return self.model.apply(variables, self.images, noise=self.golden.noise)

    def sample(self, variables):
        """Logits of a draw from the prior at temperature 0.7."""
        return self.model.apply(
            variables, noise=self.golden.noise, temperature=0.7, method="sample_logits"
        )

    def training_pass(self, params):
        """((loss, its auxiliary results and the model's outputs), gradients) at the golden noise, β
        and λ."""
        meta = self.golden.meta
        alpha = objective.balance_alpha(self.model.hierarchy)
        kernels = jax.eval_shape(partial(effective_kernels, self.model), params)
        vectors = regularizers.init_spectral_vectors(jax.random.key(0), kernels)

        def loss(params):
            outputs = []

            def keep_outputs(method, args, kwargs, context):
                result = method(*args, **kwargs)
                if isinstance(context.module, NVAE):
                    outputs.append(result)
                return result

            with nn.intercept_methods(keep_outputs):
                value, aux = steps.training_loss(
                    self.model,
                    self.likelihood,
                    {**self.variables, "params": params},
                    self.images,
                    spectral=vectors,
                    rounds=400,  # the golden penalty is that of converged vectors
                    alpha=alpha,
                    beta=meta["kl_coeff"],
                    weight=meta["spectral_coeff"],
                    noise=self.golden.noise,
                )
            return value, (*aux, outputs[-1])

        return jax.value_and_grad(loss, has_aux=True)(params)
