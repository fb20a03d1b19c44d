"""Converts published command-line arguments to this project's config, and back."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from nvae_jax.configs import base

CELLS = {  # arch_instance -> (bottom-up cell, top-down cell)
    "res_mbconv": ("residual", "inverted_residual"),
    "mbconv_res": ("inverted_residual", "residual"),
    "mbconv_sep": ("inverted_residual", "inverted_residual"),
    "res_bnswish": ("residual", "residual"),
    "res_bnelu": ("residual_bn_elu", "residual_bn_elu"),
    "res_elu": ("residual_elu", "residual_elu"),
}
OPERATIONS = {  # our cell -> function from expansion to the published names of its operations
    "residual": lambda expansion: ["res_bnswish", "res_bnswish"],
    "residual_bn_elu": lambda expansion: ["res_bnelu", "res_bnelu"],
    "residual_elu": lambda expansion: ["res_elu", "res_elu"],
    "inverted_residual": lambda expansion: [f"mconv_e{expansion}k5g0"],
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
MODEL_KEYS = {  # published name -> our key of the section `model`
    "num_latent_scales": "num_scales",
    "num_groups_per_scale": "num_groups",
    "ada_groups": "adaptive_groups",
    "min_groups_per_scale": "min_groups",
    "num_latent_per_group": "latent_channels",
    "num_channels_enc": "encoder_width",
    "num_channels_dec": "decoder_width",
    "num_preprocess_blocks": "process_blocks",
    "num_preprocess_cells": "preprocess_cells",
    "num_postprocess_cells": "postprocess_cells",
    "num_cell_per_cond_enc": "encoder_cells_per_group",
    "num_cell_per_cond_dec": "decoder_cells_per_group",
    "use_se": "squeeze_excitation",
    "res_dist": "residual_posterior",
    "num_nf": "num_flows",
    "num_mixture_dec": "num_mixtures",
}
TRAINING_KEYS = {  # published name -> our section and key
    "learning_rate": ("optimizer", "learning_rate"),
    "learning_rate_min": ("optimizer", "min_learning_rate"),
    "weight_decay": ("optimizer", "weight_decay"),
    "weight_decay_norm": ("objective", "spectral"),
    "kl_anneal_portion": ("objective", "kl_anneal"),
    "kl_const_portion": ("objective", "kl_constant"),
    "kl_const_coeff": ("objective", "kl_min"),
}


def convert_args(args: Mapping[str, Any]) -> ConfigDict:
    """Converts published command-line arguments to a locked config.

    Raises:
      ValueError: if a required argument is missing or has an unknown value.
    """
    args = {**ABSENT_IN_OLD, **args}
    config = base.get_config()
    try:
        _convert_data(config, args)
        _convert_model(config, args)
        _convert_training(config, args)
    except KeyError as error:
        raise ValueError(f"the published arguments lack {error}") from None
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a published argument is of the wrong type: {error}") from None
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
    likelihood = "gaussian" if args["num_mixture_dec"] == 1 else "logistic_mixture"
    for published, ours in MODEL_KEYS.items():
        kind = type(config.model[ours])
        config.model[ours] = kind(args[published]) if kind is bool else args[published]
    config.model.update(
        encoder_cell=encoder_cell,
        decoder_cell=decoder_cell,
        likelihood="bernoulli" if args["dataset"] in PADDED_DATASETS else likelihood,
    )


def _convert_training(config, args):
    """Sets the objective and the optimiser, as far as the arguments describe them."""
    for name, (section, key) in TRAINING_KEYS.items():
        if name in args:
            config[section][key] = float(args[name])
    if args.get("weight_decay_norm_anneal"):
        config.objective.spectral_init = float(args["weight_decay_norm_init"])
    config.seed = int(args.get("seed", config.seed))


def export_args(config: ConfigDict, steps_per_epoch: int = 1) -> dict[str, Any]:
    """Converts a config to published command-line arguments.

    Args:
      config: a ConfigDict.
      steps_per_epoch: steps per epoch, because the published code counts in epochs.

    Raises:
      ValueError: if the published code does not support the model; the message says why.
    """
    model, training = config.model, config.train
    cells = (model.encoder_cell, model.decoder_cell)
    names = {pair: name for name, pair in CELLS.items()}
    if cells not in names:
        raise ValueError(f"the published code has no model of {cells[0]} and {cells[1]} cells")
    args = {published: model[ours] for published, ours in MODEL_KEYS.items()}
    args.update({name: config[part][key] for name, (part, key) in TRAINING_KEYS.items()})
    args.update(
        dataset=_export_dataset(config),
        arch_instance=names[cells],
        num_postprocess_blocks=model.process_blocks,
        num_x_bits=config.data.num_bits,
        num_mixture_dec=1 if model.likelihood == "gaussian" else model.num_mixtures,
        weight_decay_norm_anneal=bool(config.objective.spectral_init),
        weight_decay_norm_init=config.objective.spectral_init or 10.0,
        fast_adamax=True,
        batch_size=training.batch_size,
        epochs=max(round(training.num_steps / steps_per_epoch), 1),
        warmup_epochs=round(config.optimizer.warmup_steps / steps_per_epoch),
        seed=config.seed,
    )
    return args


def _export_dataset(config):
    """The name of a published data set with the same kind of images."""
    data, likelihood = config.data, config.model.likelihood
    names = {ours: published for published, ours in DATASETS.items()}
    published = names.get((data.name, data.image_size))
    padded = (data.image_size, data.channels, data.padding) == (32, 1, 2)
    if likelihood == "bernoulli":
        if not padded:
            raise ValueError(
                "the published code models binary images of 28x28 padded to 32x32 only, not of "
                f"{data.image_size}x{data.image_size} with padding {data.padding}"
            )
        return published if published in PADDED_DATASETS else "mnist"
    if data.channels != 3 or data.padding:
        raise ValueError(
            f"the published code models RGB images without padding only with {likelihood!r}, not "
            f"{data.channels} channel(s) with padding {data.padding}"
        )
    if data.num_bits > 8:
        raise ValueError(f"the published code supports values of up to 8 bits, not {data.num_bits}")
    if likelihood == "logistic_mixture" and config.model.num_mixtures == 1:
        raise ValueError("one mixture component means the Gaussian in the published code")
    return published or f"{data.name}_{data.image_size}"


def export_operations(config: ConfigDict) -> dict[str, list[str]]:
    """The description of the cells in published files: {kind of cell: its operations}."""
    encoder, decoder = OPERATIONS[config.model.encoder_cell], OPERATIONS[config.model.decoder_cell]
    places = {"normal_enc": encoder(6), "down_enc": encoder(6)}
    places.update(normal_dec=decoder(6), up_dec=decoder(6))
    places.update(normal_pre=encoder(3), down_pre=encoder(3))
    places.update(normal_post=decoder(3), up_post=decoder(3), ar_nn=[""])
    return places
