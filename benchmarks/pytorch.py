"""The functions of an NVAE in PyTorch, which `run.py --what=pytorch` compares with ours.

They were written from the description of the model, and run eagerly on the same variables; before
the measurement, the results of both are compared. `gradients` is a training pass without
regularisers and optimiser. Only models without flows and with a Bernoulli likelihood are supported.
"""

import time

import jax
import jax.numpy as jnp
import machine
import numpy as np
import torch
import torch.nn.functional as F
from flax import traverse_util

from nvae_jax.distributions.bernoulli import Bernoulli
from nvae_jax.ops import compiler

KINDS = ("sample", "eval", "gradients")
TEMPERATURE = 0.7
REST = 0.005  # seconds; PyTorch's threads spin for a while after each operation


class Part:
    """The parameters and statistics of a module and its submodules, by name."""

    def __init__(self, tensors, path=(), index=None):
        self._tensors, self._path, self._index = tensors, path, index

    def __getitem__(self, name):
        return Part(self._tensors, (*self._path, name), self._index)

    def group(self, index):
        """One of the groups of a scale, whose tensors are stacked."""
        return Part(self._tensors, self._path, index)

    def get(self, name):
        tensor = self._tensors.get((*self._path, name))
        return tensor if tensor is None or self._index is None else tensor[self._index]


def to_torch(variables, channels_last):
    """{path: tensor}, kernels of convolutions as (..., out, in, k, k)."""
    flat = {}
    for collection in variables.values():
        flat.update(traverse_util.flatten_dict(jax.device_get(collection)))
    tensors = {}
    for path, array in flat.items():
        tensor = torch.tensor(array)
        if path[-1] == "kernel" and array.ndim >= 4:
            *stack, k, _, i, o = range(array.ndim)
            tensor = tensor.permute(*stack, o, i, k, k + 1).contiguous()
            if channels_last and array.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
        elif path == ("top_down", "start"):
            tensor = tensor.permute(2, 0, 1).contiguous()
        tensors[path] = tensor.requires_grad_(path[-1] not in ("mean", "var"))
    return tensors


class Model:
    """The functions of an NVAE on (B, C, H, W) tensors."""

    def __init__(self, model, tensors):
        self.model, self.root, self.train = model, Part(tensors), False

    def conv(self, part, x, stride=1, depthwise=False):
        v, log_scale = part.get("kernel"), part.get("log_scale")
        if log_scale is not None:
            norm = v.flatten(1).norm(dim=1) + 1e-5
            v = v * (log_scale.exp() / norm)[:, None, None, None]
        groups = x.shape[1] if depthwise else 1
        return F.conv2d(x, v, part.get("bias"), stride, v.shape[-1] // 2, 1, groups)

    def norm(self, part, x):
        statistics, affine = ("mean", "var"), ("scale", "bias")
        arrays = [part.get(name) for name in (*statistics, *affine)]
        return F.batch_norm(x, *arrays, self.train, 0.05, 1e-5)

    def residual(self, part, x, resample):
        for i in range(2):
            x = F.silu(self.norm(part[f"norm_{i}"], x))
            x = self.conv(part[f"conv_{i}"], x, 2 if resample == "down" and i == 0 else 1)
        return x

    def inverted_residual(self, part, x, resample):
        if resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.conv(part["conv_expand"], self.norm(part["norm_in"], x))
        x = F.silu(self.norm(part["norm_expand"], x))
        x = self.conv(part["conv_depthwise"], x, depthwise=True)
        x = F.silu(self.norm(part["norm_depthwise"], x))
        return self.norm(part["norm_out"], self.conv(part["conv_project"], x))

    def cell(self, kind, part, x, resample=None):
        y = getattr(self, kind)(part["body"], x, resample)
        reduce, expand = part["se"]["reduce"], part["se"]["expand"]
        hidden = F.relu(y.mean((2, 3)) @ reduce.get("kernel") + reduce.get("bias"))
        gate = torch.sigmoid(hidden @ expand.get("kernel") + expand.get("bias"))
        return self.skip(part["skip"], x, resample) + 0.1 * gate[:, :, None, None] * y

    def skip(self, part, x, resample):
        if resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            return self.conv(part["conv"], x)
        if resample == "down":
            x = F.silu(x)
            corners = (x, x[:, :, 1:, 1:], x[:, :, :, 1:], x[:, :, 1:])
            return torch.cat([self.conv(part[f"conv_{i}"], c, 2) for i, c in enumerate(corners)], 1)
        return x

    def features(self, x):
        """The encoder's features for the groups, top-down."""
        model, kind, hierarchy = self.model, self.model.encoder_cell, self.model.hierarchy
        x = self.conv(self.root["stem"], 2 * x - 1)
        for block in range(hierarchy.process_blocks):
            for i in range(model.preprocess_cells - 1):
                x = self.cell(kind, self.root["preprocess"][f"block_{block}_cell_{i}"], x)
            x = self.cell(kind, self.root["preprocess"][f"block_{block}_down"], x, "down")
        tower, features = self.root["bottom_up"], []
        for scale, groups in enumerate(hierarchy.groups):
            for g in range(groups):
                for i in range(model.encoder_cells_per_group):
                    x = self.cell(kind, tower[f"scale_{scale}"].group(g)[f"cell_{i}"], x)
                features.append(x)
            if scale < hierarchy.num_scales - 1:
                x = self.cell(kind, tower[f"down_{scale}"], x, "down")
        features[-1] = F.elu(self.conv(tower["head"], F.elu(x)))
        return features[::-1]

    def groups(self):
        """Each group's tensors, whether it is the first, and the up cell before it, if any."""
        hierarchy, top_down = self.model.hierarchy, self.root["top_down"]
        top = hierarchy.num_scales - 1
        for scale in range(top, -1, -1):
            for i in range(hierarchy.groups[scale]):
                first = scale == top and i == 0
                index = i - (scale == top)
                part = top_down["first_group" if first else f"scale_{scale}"]
                part = part if first else part.group(index)
                yield part, first, top_down[f"up_{scale + 1}"] if scale < top and i == 0 else None

    def decode(self, noise, temperature=1.0, features=None):
        """Logits, and the KL (B,) in nats, of draws from the posterior or, without features, of the
        prior."""
        kind, start = self.model.decoder_cell, self.root["top_down"].get("start")
        s, kl = start.expand(len(noise[0]), -1, -1, -1), 0.0
        features = features or [None] * len(noise)
        for e, feature, (part, first, up) in zip(noise, features, self.groups(), strict=True):
            if up is not None:
                s = self.cell(kind, up, s, "up")
            params = torch.zeros(len(e), 2 * e.shape[1], *e.shape[2:])
            if not first:
                for i in range(self.model.decoder_cells_per_group):
                    s = self.cell(kind, part[f"cell_{i}"], s)
                params = self.conv(part["prior_head"], F.elu(s))
            mean, std = gaussian(params)
            if feature is not None:
                feature = feature if first else feature + self.conv(part["combine"], s)
                m, r = gaussian(params + self.conv(part["posterior_head"], feature))
                terms = ((m - mean) ** 2 + r**2) / (2 * std**2) - 0.5 - torch.log(r / std)
                mean, std, kl = m, r, kl + terms.sum((1, 2, 3))
            z = mean + temperature * std * e
            s = self.conv(part["merge"], torch.cat([s, z], 1))
        for block in range(self.model.hierarchy.process_blocks):
            post = self.root["postprocess"]
            s = self.cell(kind, post[f"block_{block}_up"], s, "up")
            for i in range(1, self.model.postprocess_cells):
                s = self.cell(kind, post[f"block_{block}_cell_{i}"], s)
        return self.conv(self.root["image_head"], F.elu(s)), kl

    def bound(self, images, noise, padding):
        """The negative bound (B,) in nats."""
        logits, kl = self.decode(noise, features=self.features(images))
        inside = slice(padding, logits.shape[-1] - padding)
        logits, images = (a[:, :, inside, inside] for a in (logits, images))
        loss = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
        return kl + loss.sum((1, 2, 3))


def gaussian(params):
    mean, log_std = (5 * torch.tanh(half / 5) for half in params.chunk(2, 1))
    return mean, log_std.exp() + 0.01


def jax_functions(experiment, variables, images, noise):
    """{kind: function without arguments that returns an array, or (array, gradients)}."""
    model, likelihood = experiment.model, experiment.likelihood

    def sample(variables, noise):
        options = dict(noise=noise, temperature=TEMPERATURE, method="sample_logits")
        return jax.nn.sigmoid(model.apply(variables, **options))

    def bound(variables, images, noise, train=False):
        options = dict(train=train, mutable=["batch_stats"] if train else False)
        out = model.apply(variables, images, noise=noise, **options)
        out = out[0] if train else out
        return out.kl.sum(1) - likelihood(out.logits).log_prob(images)

    def gradients(variables, images, noise):
        def mean(params):
            return bound({**variables, "params": params}, images, noise, train=True).mean()

        return jax.value_and_grad(mean)(variables["params"])

    calls = {
        "sample": (sample, (variables, noise)),
        "eval": (bound, (variables, images, noise)),
        "gradients": (gradients, (variables, images, noise)),
    }

    def compiled(function, arguments):
        options = compiler.options(jax.default_backend())
        ready = jax.jit(function, compiler_options=options).lower(*arguments).compile()
        return lambda: jax.block_until_ready(ready(*arguments))

    return {kind: compiled(*calls[kind]) for kind in KINDS}


def torch_functions(experiment, variables, images, noise, channels_last):
    """Like `jax_functions`, in PyTorch."""
    tensors = to_torch(variables, channels_last)
    model = Model(experiment.model, tensors)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, *noise = (
        torch.tensor(np.array(a)).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        for a in (images, *noise)
    )
    padding = experiment.data.padding
    learnt = [t for t in tensors.values() if t.requires_grad]

    def sample():
        with torch.no_grad():
            return torch.sigmoid(model.decode(noise, TEMPERATURE)[0]).permute(0, 2, 3, 1).numpy()

    def evaluate():
        with torch.no_grad():
            return model.bound(images, noise, padding).numpy()

    def gradients():
        model.train = True
        loss = model.bound(images, noise, padding).mean()
        found = torch.autograd.grad(loss, learnt)
        model.train = False
        return loss.detach().numpy(), found

    return {"sample": sample, "eval": evaluate, "gradients": gradients}


def measure(experiment, variables, images, ceilings, reps):
    """One row for each kind and program, with interleaved samples.

    Raises:
      ValueError: the model is none of those that are written down here.
    """
    model = experiment.model
    logits = jnp.zeros((1, *experiment.image_shape[:2], model.output_channels))
    if model.num_flows or not isinstance(experiment.likelihood(logits).pixels, Bernoulli):
        raise ValueError("pytorch: only models without flows and with a Bernoulli likelihood")
    rng, batch = np.random.default_rng(0), len(images)
    shapes = model.latent_shapes()
    noise = [jnp.asarray(rng.normal(size=(batch, *s)), jnp.float32) for s in shapes]
    arguments = (experiment, variables, images, noise)
    programs = {
        "nvae_jax": jax_functions(*arguments),
        f"torch {torch.__version__}": torch_functions(*arguments, channels_last=False),
        "the same, channels last": torch_functions(*arguments, channels_last=True),
    }
    rows = []
    for kind in KINDS:  # gradients last, because they change PyTorch's running statistics
        for name, functions in programs.items():
            expected, found = programs["nvae_jax"][kind](), functions[kind]()
            if kind == "gradients":
                found, expected = (np.array([a[0], norm(a[1])]) for a in (found, expected))
            np.testing.assert_allclose(found, expected, rtol=1e-3, err_msg=f"{name}, {kind}")
        times = {name: [] for name in programs}
        for _ in range(reps):
            for name, functions in programs.items():
                ceilings.sample()
                time.sleep(REST)
                times[name].append(machine.timed(functions[kind]))
        rows += [
            {"what": kind, "batch": batch, "program": name, "seconds": machine.spread(t)}
            for name, t in times.items()
        ]
    return rows


def norm(arrays):
    """The global norm of all arrays."""
    return np.sqrt(sum(np.square(np.asarray(a)).sum() for a in jax.tree.leaves(arrays)))


def print_rows(rows):
    print(f"{'':41}{'seconds (min to max)':27}times nvae_jax")
    for row in rows:
        t = row["seconds"]
        if row["program"] == "nvae_jax":
            ours = t["median"]
        times = f"{t['median']:.3f} ({t['min']:.3f} to {t['max']:.3f})"
        print(f"{row['what']:10}{row['batch']:5}  {row['program']:24}{times:27}", end="")
        print(f"{t['median'] / ours:6.2f}")
