import numpy as np
import pytest

from nvae_jax.data import transforms
from nvae_jax.data.spec import DataError, DataSpec

ALL_VALUES = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


def rng(index=0):
    return transforms.example_rng(0, transforms.TRAIN_STREAM, 0, index)


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_quantize_is_the_formula_of_the_paper(num_bits):
    values = ALL_VALUES.astype(np.float64) / 255
    expected = np.floor(np.round(255 * values) / 2 ** (8 - num_bits)) / (2**num_bits - 1)
    result = transforms.quantize(ALL_VALUES, num_bits)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-7)
    assert result.min() == 0 and result.max() == 1 and len(np.unique(result)) == 2**num_bits


def test_binarisation_draws_ones_with_the_brightness_as_probability():
    image = np.tile(np.array([0, 64, 191, 255], np.uint8), (100, 100, 1)).reshape(100, 400, 1)
    drawn = transforms.binarize(image, rng()).reshape(100, 100, 4)
    assert set(np.unique(drawn)) == {0, 1}
    means = drawn.mean((0, 1))
    assert means[0] == 0 and means[3] == 1  # Black and white are never noise.
    # Five standard deviations of the mean of 10,000 draws are below 0.025.
    np.testing.assert_allclose(means[1:3], [64 / 255, 191 / 255], atol=0.025)


def test_half_of_the_images_are_mirrored():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    flipped = [transforms.flip(image, rng(i)) for i in range(400)]
    mirrored = [not np.array_equal(one, image) for one in flipped]
    assert 150 < sum(mirrored) < 250
    np.testing.assert_array_equal(flipped[mirrored.index(True)], image[:, ::-1])


def test_padding_surrounds_an_image_with_zeros():
    padded = transforms.pad(np.full((28, 28, 1), 7, np.uint8), 2)
    assert padded.shape == (32, 32, 1) and padded.sum() == 7 * 28 * 28
    assert (padded[2:30, 2:30] == 7).all()


def test_images_are_flipped_only_in_training():
    spec = DataSpec("x", image_size=16, horizontal_flip=True)
    plain = transforms.quantize(ALL_VALUES, 8)
    for index in range(8):
        np.testing.assert_array_equal(
            transforms.to_model(ALL_VALUES, spec, rng(index), train=False), plain
        )
    trained = [transforms.to_model(ALL_VALUES, spec, rng(i), train=True) for i in range(8)]
    assert any(not np.array_equal(one, plain) for one in trained)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"stream": transforms.EVAL_STREAM}, {"epoch": 1}, {"index": 1}],
    ids=lambda change: next(iter(change)),
)
def test_random_numbers_depend_on_seed_epoch_and_index(change):
    key = {"seed": 0, "stream": transforms.TRAIN_STREAM, "epoch": 0, "index": 0}
    first = transforms.example_rng(**key).random(4)
    np.testing.assert_array_equal(first, transforms.example_rng(**key).random(4))
    assert not np.array_equal(first, transforms.example_rng(**(key | change)).random(4))


def test_a_wrong_shape_is_an_error_with_both_shapes():
    spec = DataSpec("mnist", image_size=64, padding=2)
    with pytest.raises(DataError, match="28x28 .* 32x32; the config says image_size=64"):
        transforms.check_shape((28, 28, 1), spec)
    with pytest.raises(DataError, match="1 channel.*channels=3"):
        transforms.check_shape((32, 32, 1), DataSpec("x", channels=3))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"channels": 2},
        {"num_bits": 0},
        {"num_bits": 17},
        {"padding": -1},
        {"image_size": 4, "padding": 2},
        {"image_size": -32},
        {"workers": -1},
        {"threads": 0},
        {"binarize": True, "num_bits": 5},
    ],
    ids=str,
)
def test_impossible_specs_are_refused(fields):
    with pytest.raises(DataError, match="^data\\."):
        DataSpec(**({"name": "x"} | fields))
