"""The published PyTorch implementation's names and layouts, mapped onto this project's variables.

`leaves` lists, for a config, every published array with its place in our tree; everything else
follows from that list, in either direction.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs import base
from nvae_jax.build import build_hierarchy
from nvae_jax.models.hierarchy import Hierarchy

CELLS = {  # arch_instance -> (bottom-up, top-down)
    "res_mbconv": ("residual", "inverted_residual"),
    "mbconv_res": ("inverted_residual", "residual"),
    "mbconv_sep": ("inverted_residual", "inverted_residual"),
    "res_bnswish": ("residual", "residual"),
    "res_bnelu": ("residual_bn_elu", "residual_bn_elu"),
    "res_elu": ("residual_elu", "residual_elu"),
}
DATASETS = {  # published name -> (our source, image size)
    "mnist": ("mnist", 32),
    "omniglot": ("omniglot", 32),
    "cifar10": ("cifar10", 32),
    "imagenet_32": ("imagenet32", 32),
    "celeba_64": ("celeba64", 64),
    "celeba_256": ("celebahq256", 256),
    "ffhq": ("ffhq256", 256),
}
PADDED_DATASETS = ("mnist", "omniglot")  # 28×28 binary images inside 32×32
ABSENT_IN_OLD = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10}
IGNORED_SUFFIXES = (".num_batches_tracked", ".weight_normalized")
LAYOUTS = {  # ours <- published, by kind of array
    "kernel": lambda a: a.transpose(2, 3, 1, 0),
    "dense": lambda a: a.T,
    "vector": lambda a: a.reshape(-1),
    "feature": lambda a: a.transpose(1, 2, 0),
}


@dataclass(frozen=True)
class Leaf:
    """One published array: its names (the first that exists counts) and its place in our tree."""

    names: tuple[str, ...]
    collection: str  # "params" or "batch_stats"
    path: tuple[str, ...]
    index: int | None  # position along the leading axis of stacked groups
    layout: str  # key of LAYOUTS


@dataclass(frozen=True)
class _Place:
    """Where a module lives: its path, and its position in a stack of groups."""

    path: tuple[str, ...]
    index: int | None = None

    def __truediv__(self, name):
        return _Place((*self.path, name), self.index)

    def leaf(self, names, name, layout, collection="params"):
        names = (names,) if isinstance(names, str) else tuple(names)
        return Leaf(names, collection, (*self.path, name), self.index, layout)


def convert_state(state: Mapping[str, np.ndarray], args: Mapping[str, Any]):
    """Arrays under published names to a config and this project's variables.

    Args:
      state: a published state dict, as numpy arrays.
      args: the published command-line arguments the model was trained with.

    Returns:
      (config, {"params": ..., "batch_stats": ...}).

    Raises:
      ValueError: an argument is missing or unknown, or names or shapes do not fit the model that
        the arguments describe; the message says which.
    """
    config = convert_args(args)
    variables, used = convert_tree(config, state)
    extra = [n for n in state if n not in used and not n.endswith(IGNORED_SUFFIXES)]
    if extra:
        raise ValueError(_misfit(extra, "not expected"))
    return config, variables


def convert_tree(config, arrays, collections=("params", "batch_stats")):
    """Arrays under published names (parameters, gradients, ...) as trees of our structure.

    Returns:
      ({collection: tree}, the set of names that were used).

    Raises:
      ValueError: an array is missing, or groups that are stacked differ in shape.
    """
    found, used, missing = {}, set(), []
    for leaf in leaves(config, arrays):
        if leaf.collection not in collections:
            continue
        name = next((n for n in leaf.names if n in arrays), None)
        if name is None:
            missing.append(leaf.names[0])
            continue
        used.add(name)
        array = LAYOUTS[leaf.layout](np.asarray(arrays[name]))
        found.setdefault((leaf.collection, leaf.path), {})[leaf.index] = array
    if missing:
        raise ValueError(_misfit(missing, "missing"))
    return _assemble(found, collections), used


def _misfit(names, what):
    return (
        "the state does not fit the model that its arguments describe: "
        f"{len(names)} array(s) {what}, first {', '.join(sorted(names)[:3])}"
    )


def _assemble(found, collections):
    variables = {collection: {} for collection in collections}
    for (collection, path), arrays in found.items():
        node = variables[collection]
        for key in path[:-1]:
            node = node.setdefault(key, {})
        stacked = None not in arrays
        try:
            value = np.stack([arrays[i] for i in sorted(arrays)]) if stacked else arrays[None]
        except ValueError as error:
            raise ValueError(f"arrays of different shapes for the groups of {path}") from error
        node[path[-1]] = value
    return variables


def convert_args(args: Mapping[str, Any]):
    """The locked config that published command-line arguments describe.

    Raises:
      ValueError: a needed argument is missing, or its value is one this project does not know.
    """
    args = {**ABSENT_IN_OLD, **args}
    config = base.get_config()
    try:
        _convert_data(config, args)
        _convert_model(config, args)
        _convert_training(config, args)
    except KeyError as error:
        raise ValueError(f"the published arguments lack {error}") from None
    return config


def _convert_data(config, args):
    dataset = args["dataset"]
    size = re.fullmatch(r"(.+)_(\d+)", dataset)
    if dataset in DATASETS:
        name, image_size = DATASETS[dataset]
    elif size:
        name, image_size = size[1], int(size[2])
    else:
        raise ValueError(f"unknown data set {dataset!r}; known: {', '.join(DATASETS)}")
    padded = dataset in PADDED_DATASETS
    config.data.update(
        name=name,
        image_size=image_size,
        channels=1 if padded else 3,
        padding=2 if padded else 0,
        num_bits=args["num_x_bits"],
        binarize=padded,
        horizontal_flip=not padded,
    )


def _convert_model(config, args):
    if args["arch_instance"] not in CELLS:
        known = ", ".join(CELLS)
        raise ValueError(f"unknown arch_instance {args['arch_instance']!r}; known: {known}")
    if args["num_preprocess_blocks"] != args["num_postprocess_blocks"]:
        raise ValueError("num_preprocess_blocks and num_postprocess_blocks must be equal")
    encoder_cell, decoder_cell = CELLS[args["arch_instance"]]
    mixtures = args["num_mixture_dec"]
    likelihood = "gaussian" if mixtures == 1 else "logistic_mixture"
    config.model.update(
        num_scales=args["num_latent_scales"],
        num_groups=args["num_groups_per_scale"],
        adaptive_groups=bool(args["ada_groups"]),
        min_groups=args["min_groups_per_scale"],
        latent_channels=args["num_latent_per_group"],
        encoder_width=args["num_channels_enc"],
        decoder_width=args["num_channels_dec"],
        process_blocks=args["num_preprocess_blocks"],
        preprocess_cells=args["num_preprocess_cells"],
        postprocess_cells=args["num_postprocess_cells"],
        encoder_cells_per_group=args["num_cell_per_cond_enc"],
        decoder_cells_per_group=args["num_cell_per_cond_dec"],
        encoder_cell=encoder_cell,
        decoder_cell=decoder_cell,
        squeeze_excitation=bool(args["use_se"]),
        residual_posterior=bool(args["res_dist"]),
        num_flows=args["num_nf"],
        likelihood="bernoulli" if args["dataset"] in PADDED_DATASETS else likelihood,
        num_mixtures=mixtures,
    )


def _convert_training(config, args):
    """Settings of the objective and optimiser, where the arguments have them."""
    names = {
        "learning_rate": ("optimizer", "learning_rate"),
        "learning_rate_min": ("optimizer", "min_learning_rate"),
        "weight_decay": ("optimizer", "weight_decay"),
        "weight_decay_norm": ("objective", "spectral"),
        "kl_anneal_portion": ("objective", "kl_anneal"),
        "kl_const_portion": ("objective", "kl_constant"),
        "kl_const_coeff": ("objective", "kl_min"),
    }
    for name, (section, key) in names.items():
        if name in args:
            config[section][key] = float(args[name])
    if args.get("weight_decay_norm_anneal"):
        config.objective.spectral_init = float(args["weight_decay_norm_init"])
    config.seed = int(args.get("seed", config.seed))


def leaves(config, state: Mapping[str, np.ndarray]) -> Iterator[Leaf]:
    """Every published array of the model that `config` describes.

    `state` matters for the degenerate one-group model only, whose single convolution from z is
    recognised by its shape.
    """
    hierarchy, model = build_hierarchy(config), config.model
    top_down = _group_places(hierarchy)
    yield from _conv("stem", _Place(("stem",)))
    yield from _process_leaves("pre_process", "preprocess", model, model.encoder_cell)
    yield from _encoder_leaves(hierarchy, model, top_down)
    yield from _conv("enc0.1", _Place(("bottom_up", "head")))
    yield _Place(("top_down",)).leaf("prior_ftr0", "start", "feature")
    for i, place in enumerate(top_down):
        yield from _conv(f"enc_sampler.{i}", place / "posterior_head")
        if i:
            yield from _conv(f"dec_sampler.{i - 1}.1", place / "prior_head")
        for flow in range(model.num_flows):
            yield from _flow_leaves(f"nf_cells.{i * model.num_flows + flow}", place, flow)
    if hierarchy.is_single:
        yield from _conv(_single_merge(state, model.latent_channels), top_down[0] / "merge")
    else:
        yield from _decoder_leaves(hierarchy, model, top_down)
    yield from _process_leaves("post_process", "postprocess", model, model.decoder_cell)
    yield from _conv("image_conditional.1", _Place(("image_head",)))


def _group_places(hierarchy: Hierarchy):
    """Our place of each latent group, top-down; the first one is not part of a stack."""
    places = [_Place(("top_down", "first_group"))]
    for scale in range(hierarchy.num_scales - 1, -1, -1):
        skip = scale == hierarchy.num_scales - 1
        path = ("top_down", f"scale_{scale}")
        places += [_Place(path, i) for i in range(hierarchy.groups[scale] - skip)]
    return places


def _encoder_leaves(hierarchy, model, top_down):
    if hierarchy.is_single:
        return
    numbers = iter(range(10**6))
    for scale, count in enumerate(hierarchy.groups):
        coarsest = scale == hierarchy.num_scales - 1
        # Groups of this scale occupy a run of the top-down order, in reverse.
        last = len(top_down) - sum(hierarchy.groups[:scale]) - 1
        for group in range(count):
            place = _Place(("bottom_up", f"scale_{scale}"), group)
            for i in range(model.encoder_cells_per_group):
                cell = place / f"cell_{i}"
                yield from _cell(f"enc_tower.{next(numbers)}", cell, model, model.encoder_cell)
            if not (coarsest and group == count - 1):
                combine = top_down[last - group] / "combine"
                yield from _conv(f"enc_tower.{next(numbers)}.conv", combine)
        if not coarsest:
            place = _Place(("bottom_up", f"down_{scale}"))
            number = next(numbers)
            yield from _cell(f"enc_tower.{number}", place, model, model.encoder_cell, "down")


def _decoder_leaves(hierarchy, model, top_down):
    numbers, places = iter(range(10**6)), iter(top_down)
    for scale in range(hierarchy.num_scales - 1, -1, -1):
        for _ in range(hierarchy.groups[scale]):
            place = next(places)
            for i in range(model.decoder_cells_per_group if place is not top_down[0] else 0):
                cell = place / f"cell_{i}"
                yield from _cell(f"dec_tower.{next(numbers)}", cell, model, model.decoder_cell)
            yield from _conv(f"dec_tower.{next(numbers)}.conv", place / "merge")
        if scale:
            place = _Place(("top_down", f"up_{scale}"))
            number = next(numbers)
            yield from _cell(f"dec_tower.{number}", place, model, model.decoder_cell, "up")


def _process_leaves(prefix, name, model, kind):
    """Pre- and postprocessing: blocks of cells, the resampling one last or first in its block."""
    resample = {"preprocess": "down", "postprocess": "up"}[name]
    per_block = model[f"{name}_cells"]
    for number in range(model.process_blocks * per_block):
        block, i = divmod(number, per_block)
        resampling = per_block - 1 if resample == "down" else 0
        cell = resample if i == resampling else f"cell_{i}"
        place = _Place((name, f"block_{block}_{cell}"))
        yield from _cell(
            f"{prefix}.{number}", place, model, kind, resample if i == resampling else None
        )


def _cell(prefix, place, model, kind, resample=None):
    if resample == "down":
        for i in range(4):
            yield from _conv(f"{prefix}.skip.conv_{i + 1}", place / "skip" / f"conv_{i}")
    elif resample == "up":
        yield from _conv(f"{prefix}.skip.1", place / "skip" / "conv", bias=False)
    if kind == "inverted_residual":
        yield from _inverted_residual(f"{prefix}._ops.0.conv", place / "body", resample == "up")
    else:
        for i in range(2):
            if kind != "residual_elu":
                norm = (f"{prefix}._ops.{i}.bn_act", f"{prefix}._ops.{i}.bn")
                yield from _norm(norm, place / "body" / f"norm_{i}")
            yield from _conv(f"{prefix}._ops.{i}.conv_0", place / "body" / f"conv_{i}")
    if model.squeeze_excitation:
        for number, name in ((0, "reduce"), (2, "expand")):
            published, ours = f"{prefix}.se.se.{number}", place / "se" / name
            yield ours.leaf(f"{published}.weight", "kernel", "dense")
            yield ours.leaf(f"{published}.bias", "bias", "vector")


def _inverted_residual(prefix, place, up):
    at = [f"{prefix}.{i + up}" for i in range(5)]  # an up cell has its upsampling as number 0
    yield from _norm(f"{at[0]}.bn", place / "norm_in")
    for number, name in ((1, "expand"), (2, "depthwise")):
        yield from _plain_conv(f"{at[number]}.conv.0", place / f"conv_{name}")
        yield from _norm(f"{at[number]}.conv.1", place / f"norm_{name}")
    yield from _plain_conv(at[3], place / "conv_project")
    yield from _norm(f"{at[4]}.bn", place / "norm_out")


def _flow_leaves(prefix, place, flow):
    for half, name in ((1, "forward"), (2, "backward")):
        published, ours = f"{prefix}.cell{half}", place / f"flow_{flow}" / name
        yield from _conv(f"{published}.conv.convz.0", ours / "conv_in", bias=False)
        yield from _conv(f"{published}.conv.convz.2", ours / "conv_depthwise", bias=False)
        yield from _conv(f"{published}.mu.conv_0", ours / "conv_out")


def _conv(prefix, place, bias=True):
    yield from _plain_conv(prefix, place)
    yield place.leaf(f"{prefix}.log_weight_norm", "log_scale", "vector")
    if bias:
        yield place.leaf(f"{prefix}.bias", "bias", "vector")


def _plain_conv(prefix, place):
    yield place.leaf(f"{prefix}.weight", "kernel", "kernel")


def _norm(prefixes, place):
    prefixes = (prefixes,) if isinstance(prefixes, str) else prefixes
    table = (
        ("weight", "scale", "params"),
        ("bias", "bias", "params"),
        ("running_mean", "mean", "batch_stats"),
        ("running_var", "var", "batch_stats"),
    )
    for published, ours, collection in table:
        names = [f"{prefix}.{published}" for prefix in prefixes]
        yield place.leaf(names, ours, "vector", collection)


def _single_merge(state, latent_channels):
    """The published prefix of the convolution from z to the decoder's width."""
    known = ("stem", "pre_process", "enc0", "enc_sampler", "nf_cells", "post_process")
    for name, array in state.items():
        is_merge = array.ndim == 4 and array.shape[1:] == (latent_channels, 1, 1)
        if name.endswith(".weight") and is_merge and not name.startswith(known):
            return name.removesuffix(".weight")
    return "(a 1×1 convolution from z to the decoder)"
