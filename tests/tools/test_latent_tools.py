"""Encode, decode, reconstruct, interpolate, traverse: arrays and pictures."""

import numpy as np
import pytest
from PIL import Image

from nvae_jax import encode, interpolate, reconstruct, traverse
from nvae_jax.models.hierarchy import Hierarchy


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_written_latents_can_be_decoded(run, images, tmp_path):
    encode.encode_run(run, images, tmp_path / "latents.npz", seed=4)
    latents = encode.load_latents(tmp_path / "latents.npz")
    for ours, expected in zip(latents, run.encode(images, seed=4), strict=True):
        np.testing.assert_array_equal(ours, expected)
    means = encode.load_latents(tmp_path / "latents.npz", "mean", groups=2)
    np.testing.assert_array_equal(means[1], run.encode(images, temperature=0.0, seed=4)[1])
    encode.decode_run(run, latents, tmp_path)
    decoded = arrays(tmp_path / "decoded.npz")["images"]
    np.testing.assert_array_equal(decoded, np.round(run.reconstruct(images, seed=4) * 255))
    assert (tmp_path / "decoded.png").exists()
    with pytest.raises(ValueError, match="latents of 4 groups, not of 5"):
        encode.load_latents(tmp_path / "latents.npz", groups=5)
    with pytest.raises(ValueError, match="no latents sample_00"):
        encode.load_latents(tmp_path / "decoded.npz")


def test_reconstructions_equal_those_of_the_api(run, images, tmp_path):
    reconstruct.reconstruct_run(run, images, tmp_path, temperature=0.7, seed=1)
    found = arrays(tmp_path / "reconstructions.npz")
    assert found["groups"].tolist() == [0, 2, 4]
    assert found["reconstructions"].shape == (3, *images.shape)
    expected = run.reconstruct(images, groups=2, temperature=0.7, seed=1)
    np.testing.assert_array_equal(found["reconstructions"][1], expected)
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert picture.text["groups"] == "[0, 2, 4]"
        width, height = picture.size
        assert height / width == 5 / 4  # each row has an image and its three reconstructions
    with pytest.raises(ValueError, match="groups must be from 0 to 4, not 9"):
        reconstruct.reconstruct_run(run, images, tmp_path / "other", groups=[9])
    with pytest.raises(ValueError, match="whole numbers"):
        reconstruct.parse_groups(["1", "two"])
    with pytest.raises(ValueError, match="whole numbers"):
        reconstruct.parse_groups([])


def test_the_numbers_of_groups_are_those_of_whole_scales():
    hierarchy = Hierarchy(32, 3, 4, 2, 1, adaptive_groups=True)
    assert reconstruct.groups_by_scale(hierarchy) == [0, 1, 3, 7]


def test_slerp_follows_the_circle_and_interpolates_norms():
    east, north = np.array([[2.0, 0.0]]), np.array([[0.0, 4.0]])
    np.testing.assert_allclose(interpolate.slerp(east, north, 0.0), east, atol=1e-6)
    np.testing.assert_allclose(interpolate.slerp(east, north, 1.0), north, atol=1e-6)
    half = interpolate.slerp(east, north, 0.5)
    np.testing.assert_allclose(half, 3 * np.sqrt([[0.5, 0.5]]), rtol=1e-6)
    np.testing.assert_allclose(interpolate.slerp(east, east, 0.3), east, rtol=1e-6)


def test_interpolation_starts_and_ends_at_its_images(run, images, tmp_path):
    interpolate.interpolate_run(run, tmp_path, images=images, num_steps=3, seed=2)
    ways = arrays(tmp_path / "interpolation.npz")["images"].astype(int)
    assert ways.shape == (2, 3, 16, 16, 1)  # the fifth image has no partner
    copies = np.round(run.reconstruct(images, seed=2) * 255)
    for found, expected in ((ways[:, 0], copies[0:4:2]), (ways[:, -1], copies[1:4:2])):
        assert np.abs(found - expected).max() <= 1
    with Image.open(tmp_path / "interpolation.gif") as picture:
        assert picture.n_frames == 46


def test_interpolations_between_samples_start_and_end_at_samples(run, tmp_path):
    options = {"num": 2, "num_steps": 2, "temperature": 0.7, "animation": "none", "seed": 3}
    interpolate.interpolate_run(run, tmp_path, **options)
    ways = arrays(tmp_path / "interpolation.npz")["images"].astype(int)
    samples = np.round(run.sample(4, temperature=0.7, seed=3) * 255)
    assert np.abs(ways.reshape(-1, 16, 16, 1) - samples).max() <= 1
    assert not list(tmp_path.glob("*.gif"))


def test_invalid_interpolations_are_errors(run, images, tmp_path):
    with pytest.raises(ValueError, match="at least two images"):
        interpolate.interpolate_run(run, tmp_path, images=images[:1])
    with pytest.raises(ValueError, match="num_steps must be at least 2"):
        interpolate.interpolate_run(run, tmp_path, num_steps=1)


def test_a_traversal_changes_one_group(run):
    noise = run.draw_noise(2, seed=1)
    moved = traverse.traverse(run, noise, 1, 3, channel=0, span=2.0)
    assert moved.shape == (2, 3, 16, 16, 1)
    at_zero = [n.copy() for n in noise]
    at_zero[1][..., 0] = 0.0
    np.testing.assert_allclose(moved[:, 1], run.from_noise(at_zero), atol=1e-5)
    assert np.abs(moved[:, 0] - moved[:, 2]).max() > 1e-3


def test_a_traversal_can_fix_the_finer_latents(run):
    noise = run.draw_noise(2, seed=1)
    follow = traverse.traverse(run, noise, 0, 2, seed=5)
    fixed = traverse.traverse(run, noise, 0, 2, seed=5, others="latents")
    assert np.abs(follow - fixed).max() > 1e-3
    last = [traverse.traverse(run, noise, 3, 2, seed=5, others=o) for o in traverse.OTHERS]
    np.testing.assert_allclose(*last, atol=1e-4)  # no group is finer than the last


def test_a_traversal_writes_its_start_images_and_variations(run, images, tmp_path):
    traverse.traverse_run(run, tmp_path, images=images, group=3, num_steps=2, channel=None)
    rows = arrays(tmp_path / "traversal_03.npz")["images"]
    assert rows.shape == (5, 3, 16, 16, 1)
    assert np.abs(rows[:, 0] - np.round(run.reconstruct(images) * 255)).max() <= 1


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ({"group": 4}, r"from 0 \(coarsest\) to 3, not 4"),
        ({"group": -1}, "group must be"),
        ({"group": 0, "channel": 2}, "channel must be from 0 to 1, not 2"),
        ({"group": 0, "num_steps": 0}, "must be positive"),
        ({"group": 0, "span": -1.0}, "must be positive"),
        ({"group": 0, "temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_invalid_traversals_are_errors(run, tmp_path, wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        traverse.traverse_run(run, tmp_path, **wrong)
