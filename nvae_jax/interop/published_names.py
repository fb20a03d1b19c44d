"""The names of arrays in the published PyTorch code, and their places in this project's variables.

For a config, `leaves` lists every published array with its place and the kind of its layout.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from nvae_jax.build import build_hierarchy
from nvae_jax.models.hierarchy import Hierarchy


@dataclass(frozen=True)
class Leaf:
    """A published array and where it is in this project's tree of variables."""

    names: tuple[str, ...]  # published names; the first that exists is used
    collection: str  # "params" or "batch_stats"
    path: tuple[str, ...]
    index: int | None  # position along the leading axis of stacked groups
    layout: str  # key of `torch_checkpoint.LAYOUTS`

    def name_in(self, arrays: Collection[str]) -> str | None:
        """Its name among `arrays`, or None."""
        return next((name for name in self.names if name in arrays), None)


@dataclass(frozen=True)
class _Place:
    """The location of a module: its path, and its index in a stack of groups."""

    path: tuple[str, ...]
    index: int | None = None

    def __truediv__(self, name):
        return _Place((*self.path, name), self.index)

    def leaf(self, names, name, layout, collection="params"):
        names = (names,) if isinstance(names, str) else tuple(names)
        return Leaf(names, collection, (*self.path, name), self.index, layout)


def leaves(config: ConfigDict, state: Mapping[str, np.ndarray]) -> Iterator[Leaf]:
    """Yields every published array of the model that `config` describes.

    `state` is only used for models of a single group, in which one convolution is recognised by its
    shape because its name is not known.
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
    """The place of each latent group, top-down; the first one is not part of a stack."""
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
        # Groups of this scale are contiguous in the top-down order, but reversed.
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
    """Pre- and postprocessing: blocks of cells, of which the last or the first one resamples."""
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
                # No published BN+ELU model was available, so both names are read and written.
                names = ("bn_act",) if kind == "residual" else ("bn_act", "bn")
                norms = [f"{prefix}._ops.{i}.{name}" for name in names]
                yield from _norm(norms, place / "body" / f"norm_{i}")
            yield from _conv(f"{prefix}._ops.{i}.conv_0", place / "body" / f"conv_{i}")
    if model.squeeze_excitation:
        for number, name in ((0, "reduce"), (2, "expand")):
            published, ours = f"{prefix}.se.se.{number}", place / "se" / name
            yield ours.leaf(f"{published}.weight", "kernel", "dense")
            yield ours.leaf(f"{published}.bias", "bias", "vector")


def _inverted_residual(prefix, place, up):
    at = [f"{prefix}.{i + up}" for i in range(5)]  # in an up cell, number 0 is the upsampling
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
    yield place.leaf(f"{prefix}.log_weight_norm", "log_scale", "log_scale")
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
