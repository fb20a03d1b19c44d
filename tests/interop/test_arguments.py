"""Published arguments to configs and back."""

import pytest

from nvae_jax.configs import celeba64, celebahq256, cifar10, digits, ffhq256, imagenet32, mnist
from nvae_jax.interop.arguments import CELLS, convert_args, export_args, export_operations

PUBLISHED = (mnist, cifar10, celeba64, imagenet32, celebahq256, ffhq256)


@pytest.mark.parametrize("module", PUBLISHED)
def test_published_configs_survive_export_and_conversion(module):
    config = module.get_config()
    again = convert_args(export_args(config))
    assert again.model == config.model
    assert again.data == config.data
    assert again.objective == config.objective


def test_golden_arguments_survive_conversion_and_export(golden):
    exported = export_args(convert_args(golden.args))
    shared = set(exported) & set(golden.args)
    assert len(shared) > 15
    assert {key: exported[key] for key in shared} == {key: golden.args[key] for key in shared}


def test_missing_arguments_take_the_published_defaults():
    args = export_args(cifar10.get_config())
    for name in ("ada_groups", "min_groups_per_scale", "num_mixture_dec"):
        del args[name]
    model = convert_args(args).model
    assert (model.adaptive_groups, model.min_groups, model.num_mixtures) == (False, 1, 10)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"dataset": "svhn"}, "unknown data set 'svhn'"),
        ({"arch_instance": "vit"}, "unknown arch_instance 'vit'"),
        ({"num_latent_scales": None}, "num_latent_scales"),
        ({"num_latent_scales": "two"}, "wrong type"),
        ({"num_postprocess_blocks": 5}, "must be equal"),
    ],
)
def test_bad_arguments_are_named(change, complaint):
    args = {**export_args(cifar10.get_config()), **change}
    args = {key: value for key, value in args.items() if value is not None}
    with pytest.raises(ValueError, match=complaint):
        convert_args(args)


@pytest.mark.parametrize(
    "section, change, complaint",
    [
        ("model", {"encoder_cell": "residual_elu"}, "residual_elu and inverted_residual"),
        ("data", {"image_size": 16, "padding": 0}, "28x28 padded to 32x32"),
        ("model", {"likelihood": "gaussian"}, "RGB images"),
    ],
)
def test_settings_that_the_published_code_lacks_are_not_exported(section, change, complaint):
    config = mnist.get_config()
    config[section].update(change)
    with pytest.raises(ValueError, match=complaint):
        export_args(config)


def test_a_data_set_that_the_published_code_lacks_is_not_exported():
    with pytest.raises(ValueError, match="28x28"):
        export_args(digits.get_config())


@pytest.mark.parametrize("pair", CELLS.values())
def test_the_exported_cell_types_cover_every_place_in_the_model(pair):
    config = mnist.get_config()
    config.model.update(encoder_cell=pair[0], decoder_cell=pair[1])
    operations = export_operations(config)
    assert len(operations) == 9
    if pair == ("residual", "inverted_residual"):  # the golden files' own words
        assert operations["down_pre"] == ["res_bnswish", "res_bnswish"]
        assert operations["up_dec"], operations["up_post"] == (["mconv_e6k5g0"], ["mconv_e3k5g0"])
