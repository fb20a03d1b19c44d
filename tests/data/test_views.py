import numpy as np
import pytest

from nvae_jax.data import images, views

CELEBA = {(218, 178): (15, 40, 163, 188)}


def test_a_crop_box_is_used_only_for_images_of_its_size():
    random = np.random.default_rng(0)
    aligned = random.integers(0, 256, (2, 218, 178, 3), np.uint8)
    expected = images.fit(aligned[1], 64, CELEBA[218, 178])
    np.testing.assert_array_equal(views.Resized(aligned, 64, CELEBA)[1], expected)
    other = random.integers(0, 256, (2, 300, 300, 3), np.uint8)
    np.testing.assert_array_equal(views.Resized(other, 64, CELEBA)[1], images.fit(other[1], 64))


def test_images_of_the_right_size_are_not_resized(colour_images):
    small = colour_images(3, 64)
    fitted = views.Resized(small, 64, CELEBA)
    assert fitted.shape == (3, 64, 64, 3)
    np.testing.assert_array_equal(fitted[1], small[1])


def test_a_stacked_digit_has_three_digits_fixed_by_its_index(grey_images):
    digits = grey_images[..., None]
    stacked = views.Stacked(digits)
    assert stacked.shape == (30, 28, 28, 3) and len(stacked) == 30
    known = {digit.tobytes() for digit in digits}
    seen = set()
    for i in range(30):
        np.testing.assert_array_equal(stacked[i], views.Stacked(digits)[i])
        colours = [stacked[i][..., c].tobytes() for c in range(3)]
        assert set(colours) <= known
        seen |= set(colours)
    assert len(seen) > 20  # 90 draws of 30 digits: 28.6 different ones are expected.


@pytest.mark.parametrize("count", [10, 19, 30_000, 70_000])
def test_one_image_in_ten_is_held_out_exactly(count):
    out, rest = views.validation_tenth(count, True), views.validation_tenth(count, False)
    assert len(out) == count // 10
    assert sorted([*out, *rest]) == list(range(count))


def test_inversion_exchanges_black_and_white(grey_images):
    inverted = views.Inverted(grey_images[..., None])
    np.testing.assert_array_equal(inverted[3][..., 0].astype(int) + grey_images[3], 255)
