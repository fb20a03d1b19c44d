"""Images of users: which are accepted, how they are converted, and which are refused."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from nvae_jax import encode, inputs, nearest, pictures, score
from nvae_jax.data import images as images_lib
from nvae_jax.data.spec import DataSpec
from nvae_jax.restoration import masks, results

GREY = DataSpec("digits", image_size=20, padding=2, binarize=True)
COLOUR = DataSpec("folder", image_size=8, channels=3, num_bits=5)


def test_binary_images_are_only_padded():
    images = (np.random.default_rng(0).random((3, 16, 16, 1)) > 0.5).astype(np.float32)
    prepared = inputs.to_model(images, GREY)
    assert prepared.shape == (3, 20, 20, 1) and prepared.dtype == np.float32
    np.testing.assert_array_equal(prepared[:, 2:-2, 2:-2], images)
    assert prepared.sum() == images.sum()


def test_grey_images_are_binarised_with_the_seed():
    images = np.full((200, 16, 16, 1), 0.25, np.float32)
    prepared = inputs.to_model(images, GREY)
    assert set(np.unique(prepared)) == {0.0, 1.0}
    assert abs(prepared[:, 2:-2, 2:-2].mean() - 0.25) < 0.01
    np.testing.assert_array_equal(prepared, inputs.to_model(images, GREY))
    assert (prepared != inputs.to_model(images, GREY, seed=1)).any()


def test_images_are_reduced_to_the_models_bits_once():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    once = inputs.to_model(images, COLOUR)
    np.testing.assert_allclose(once, (images // 8) / 31, rtol=1e-6)
    for bits in range(1, 9):
        spec = dataclasses.replace(COLOUR, num_bits=bits)
        once = inputs.to_model(images, spec)
        np.testing.assert_array_equal(inputs.to_model(once, spec), once)


@pytest.mark.parametrize(
    "images, complaint",
    [
        (np.zeros((2, 20, 20, 1), np.float32), r"\(N, 16, 16, 1\), not \(2, 20, 20, 1\)"),
        (np.zeros((2, 16, 16, 3), np.float32), "of shape"),
        (np.zeros((16, 16, 1), np.float32), "of shape"),
        (np.zeros((0, 16, 16, 1), np.float32), "of shape"),
        (np.full((1, 16, 16, 1), 255.0), r"not \[255, 255\]: divide by 255"),
        (np.full((1, 16, 16, 1), -1.0), r"must be in \[0, 1\]"),
        (np.full((1, 16, 16, 1), np.nan), "not finite"),
        (np.zeros((1, 16, 16, 1), np.int64), "not int64"),
    ],
)
def test_invalid_images_are_refused(images, complaint):
    with pytest.raises(ValueError, match=complaint):
        inputs.to_model(images, GREY)


def test_arrays_and_pictures_are_read_from_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, step=3)
    np.save(tmp_path / "a.npy", images)
    Image.fromarray(images[0]).save(tmp_path / "a.PNG", "PNG")
    np.testing.assert_array_equal(inputs.load(tmp_path / "a.npz"), images)
    np.testing.assert_array_equal(inputs.load(tmp_path / "a.npy"), images)
    np.testing.assert_array_equal(inputs.load(tmp_path / "a.PNG")[0], images[0])


def test_pictures_are_cropped_resized_and_converted_like_the_runs_data(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (24, 40, 4), np.uint8)
    wide[..., 3] = 255
    wide[:, :10, 3] = 0  # Hidden, and cut off.
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    (tmp_path / "more").mkdir()
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide).save(tmp_path / "more" / "b.tif", exif=exif)
    Image.fromarray(wide[..., 0]).save(tmp_path / "more" / "c.BMP", "BMP")
    loaded = inputs.load(tmp_path, COLOUR)
    assert loaded.shape == (3, 8, 8, 3)
    whole = images_lib.read_file(tmp_path / "a.png", 3)
    expected = images_lib.fit(whole, 8)
    np.testing.assert_array_equal(loaded[0], expected)
    np.testing.assert_array_equal(loaded[1], images_lib.fit(np.rot90(whole, -1), 8))
    assert (loaded[2] == loaded[2][..., :1]).all()
    (one,) = inputs.load(tmp_path / "a.png", GREY)
    assert one.shape == (16, 16, 1)
    aligned = np.random.default_rng(0).integers(0, 256, (218, 178, 3), np.uint8)
    Image.fromarray(aligned).save(tmp_path / "celebrity.png")
    faces = DataSpec("celeba64", image_size=64, channels=3)
    (face,) = inputs.load(tmp_path / "celebrity.png", faces)
    np.testing.assert_array_equal(face, images_lib.fit(aligned, 64, (15, 40, 163, 188)))


def test_values_of_more_than_eight_bits_are_exact(tmp_path):
    """This holds for arrays, pictures and arguments of the API, also when files are written and
    read again."""
    values = np.random.default_rng(0).integers(0, 4096, (3, 8, 8, 1)).astype(np.uint16)
    deep = DataSpec("folder", image_size=8, channels=1, num_bits=12)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "own.npz", images=values, **pictures.value_metadata(12))
    expected = values.astype(np.float32) / np.float32(4095)
    pictures.save_png(tmp_path / "a.png", pictures.to_range(expected[0], 12))
    for spec in (deep, dataclasses.replace(deep, max_value=4095)):
        for given in ("a.npy", "own.npz", "a.png"):
            read = inputs.read(tmp_path / given, spec)
            np.testing.assert_array_equal(inputs.to_model(read, spec), expected[: len(read)])
    # The range in a file is used, whatever the range of the run's own pictures.
    for given in ("own.npz", "a.png"):
        read = inputs.read(tmp_path / given, dataclasses.replace(deep, max_value=5000, num_bits=12))
        np.testing.assert_array_equal(inputs.to_model(read, deep), expected[: len(read)])
    for given in (values, expected):
        np.testing.assert_array_equal(inputs.to_model(given, deep), expected)
    for given, message in [
        (values.astype(np.uint8), "float in .0, 1. or uint16, not uint8"),
        (values + np.uint16(1), "must be from 0 to 4095, but some reach 4096"),
        (values.astype(np.float32), "divide by 4095"),
    ]:
        given.flat[0] = 4096 if given.dtype == np.uint16 else given.flat[0]
        with pytest.raises(ValueError, match=message):
            inputs.to_model(given, deep)
    eight = inputs.read(
        tmp_path / "a.npy", dataclasses.replace(GREY, image_size=12, max_value=4095)
    )
    np.testing.assert_allclose(eight, expected)


def test_images_are_selected_from_a_folder_by_number(run, tmp_path):
    for i in range(5):
        picture = np.random.default_rng(i).integers(0, 256, (30, 40), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    chosen = inputs.select(run.experiment, images=tmp_path, num=None)
    assert chosen.shape == (5, 16, 16, 1)
    (tmp_path / "0.png").write_bytes(b"")  # A picture that is not selected is not read.
    some = inputs.select(run.experiment, images=tmp_path, num=2, first=2)
    np.testing.assert_array_equal(some, chosen[2:4])
    with pytest.raises(ValueError, match="no image number 5, only 5"):
        inputs.select(run.experiment, images=tmp_path, first=5)
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 image\(s\) cannot be read: .*0.png.*3.png.*remove"):
        inputs.select(run.experiment, images=tmp_path)


def test_faulty_files_are_errors_that_name_them(tmp_path):
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    for name in ("torn.npz", "torn.npy", "torn.png"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    for name in ("script.eps", "disguised.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name, "EPS")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "animation.gif")
    os.mkfifo(tmp_path / "fifo.png")
    os.mkfifo(tmp_path / "fifo.npz")
    (tmp_path / "empty").mkdir()
    complaints = {
        "absent.npz": "there is no file",
        "other.npz": "no array `images`, only pictures",
        "pickled.npy": "cannot be read",
        "torn.npz": "cannot be read",
        "torn.npy": "cannot be read",
        "torn.png": "not a PNG, JPEG, WebP, BMP or TIFF",
        "script.eps": "no images of a known type",
        "animation.gif": "no images of a known type",
        "disguised.png": "not a PNG, JPEG, WebP, BMP or TIFF",
        "fifo.png": "is a FIFO, not a file",
        "fifo.npz": "is a FIFO, not a file",
        "empty": "no images of a known type",
    }
    for name, complaint in complaints.items():
        with pytest.raises(ValueError, match=complaint):
            inputs.load(tmp_path / name, COLOUR)[0]


@pytest.mark.parametrize("command", ["select", "nearest", "score", "decode", "restore", "mask"])
def test_an_error_about_the_content_of_a_file_names_the_file(run, tmp_path, command):
    path, nan = str(tmp_path / "nan.npy"), np.full((3, 16, 16, 1), np.nan, np.float32)
    np.save(path, nan)
    latents = [np.full((3, *shape), np.nan) for shape in run.latent_shapes]
    out = tmp_path / "out"
    calls = {
        "select": lambda: inputs.select(run.experiment, images=path),
        "nearest": lambda: nearest.load_or_draw_samples(run, 3, file=path),
        "score": lambda: score.score_run(run, out, images=path),
        "decode": lambda: encode.decode_run(run, latents, out, source=path),
        "restore": lambda: results.restore_run(run, nan, out, source=path, noise=0.1),
        "mask": lambda: masks.load(path, 16, 3),
    }
    with pytest.raises(ValueError, match=r"nan.npy: (images|latents|mask) must be"):
        calls[command]()


def test_images_are_selected_from_the_data_set_by_number(run, images):
    chosen = inputs.select(run.experiment, num=3, first=2)
    assert chosen.shape == (3, 16, 16, 1)
    np.testing.assert_array_equal(chosen, inputs.select(run.experiment, num=5)[2:])
    with pytest.raises(ValueError, match="no image number 297"):
        inputs.select(run.experiment, num=3, first=297)
    with pytest.raises(ValueError, match="no split 'validation'"):
        inputs.select(run.experiment, split="validation")


def test_commands_start_from_images_or_samples(run):
    same, images = inputs.starting_images(run, samples=False, num=2)
    assert same is run and len(images) == 2
    assert inputs.starting_images(run, samples=True) == (run, None)
    recalibrated, images = inputs.starting_images(run, samples=True, temperature=[0.9])
    assert (
        images is None
        and recalibrated.recalibration == "pooled, 3 passes of 4 images at temperature 0.9"
    )
