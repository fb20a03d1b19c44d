import math

import pytest

from nvae_jax.models.hierarchy import Hierarchy

FFHQ = dict(
    image_size=256,
    num_scales=5,
    num_groups=16,
    latent_channels=20,
    process_blocks=1,
    adaptive_groups=True,
    min_groups=4,
)


def test_groups_halve_down_to_the_minimum():
    assert Hierarchy(**FFHQ).groups == (16, 8, 4, 4, 4)


def test_without_adaptive_groups_every_scale_has_all_groups():
    assert Hierarchy(**{**FFHQ, "adaptive_groups": False}).groups == (16,) * 5


def test_latent_shapes_are_top_down():
    shapes = Hierarchy(**FFHQ).latent_shapes()
    assert shapes[0] == (8, 8, 20) and shapes[-1] == (128, 128, 20) and len(shapes) == 36
    assert sum(math.prod(shape) for shape in shapes) == 6_005_760


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 100}, "not divisible by 32"),
        ({"num_groups": 0}, "model.num_groups must be at least 1"),
        ({"num_scales": 0}, "model.num_scales must be at least 1"),
        ({"latent_channels": -1}, "model.latent_channels must be at least 1"),
        ({"process_blocks": -1}, "process_blocks"),
    ],
)
def test_impossible_shapes_are_errors_that_name_them(change, message):
    with pytest.raises(ValueError, match=message):
        Hierarchy(**{**FFHQ, **change})
