import os

import numpy as np
import pytest

from nvae_jax.data import folder, pipeline, splits
from nvae_jax.data.folder import Folder
from nvae_jax.data.spec import DataError, DataSpec


def names(directory, **options):
    found = Folder(**options).find(directory)
    return {
        split: {path.name for path in paths} for split, paths in found[next(iter(found))].items()
    }


def test_splits_hold_every_picture_once(pictures):
    found = names(pictures)
    assert set(found) == {"train", "validation"}
    assert not found["train"] & found["validation"]
    assert len(found["train"] | found["validation"]) == 60
    assert 1 <= len(found["validation"]) <= 15


def test_pictures_stay_in_their_split_when_others_come_and_go(pictures, encode, colour_images):
    before = names(pictures)
    next(pictures.rglob("005.*")).unlink()
    for i, image in enumerate(colour_images(20)):
        (pictures / f"new{i}.png").write_bytes(encode(image))
    after = names(pictures)
    for split in before:
        assert before[split] - {"005.webp"} <= after[split]


def test_exact_split_holds_out_one_in_ten(pictures):
    found = names(pictures, exact=True)
    assert len(found["train"]) == 54 and len(found["validation"]) == 6


def test_folders_named_like_splits_are_the_splits(tmp_path, encode, colour_images):
    for split in ("train", "val"):
        (tmp_path / split / "cats").mkdir(parents=True)
        for i, image in enumerate(colour_images(3)):
            (tmp_path / split / "cats" / f"{split}{i}.png").write_bytes(encode(image))
    assert names(tmp_path) == {
        "train": {f"train{i}.png" for i in range(3)},
        "validation": {f"val{i}.png" for i in range(3)},
    }


def test_hidden_and_other_files_are_ignored(pictures):
    before = names(pictures)
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "._001.png").write_bytes(b"what macOS leaves behind")
    (pictures / ".cache").mkdir()
    (pictures / ".cache" / "thumbnail.png").write_bytes(b"")
    assert names(pictures) == before


def test_ignored_files_are_counted_in_one_warning(pictures, tmp_path, monkeypatch):
    for name in ("a.gif", "b.GIF", "c.heic", "d.txt", "e"):
        (pictures / name).write_bytes(b"")
    (pictures / "link").symlink_to(tmp_path)
    (pictures / ".hidden.gif").write_bytes(b"")
    said = []
    monkeypatch.setattr(folder.logging, "warning", lambda text, *values: said.append(text % values))
    for _ in range(2):
        Folder().find(pictures)
    assert len(said) == 1 and said[0].startswith(f"{pictures}: ignored 2 .gif, ")
    for kind in ("1 .heic", "1 .txt", "1 without an ending", "1 linked folder"):
        assert kind in said[0]
    assert "image files are .bmp, .jpeg" in said[0]


def test_bmp_and_tiff_are_read(tmp_path, encode, colour_images):
    for i, image in enumerate(colour_images(30)):
        kind, suffix = (("BMP", ".bmp"), ("TIFF", ".tif"), ("TIFF", ".TIFF"))[i % 3]
        (tmp_path / f"{i:02d}{suffix}").write_bytes(encode(image, kind))
    found = Folder().find(tmp_path)["train"]["train"]
    images = Folder().open({"train": found, "validation": []}, "train", 0)
    assert {path.suffix for path in found} == {".bmp", ".tif", ".TIFF"}
    for i, path in enumerate(found):
        np.testing.assert_array_equal(images[i], colour_images(30)[int(path.stem)])


def test_max_value_of_the_config_is_used_for_pictures(tmp_path, encode):
    for i in range(30):
        values = np.full((16, 16, 1), 100 * i, np.uint16)
        (tmp_path / f"{i:02d}.png").write_bytes(encode(values))
    spec = DataSpec("folder", dir=str(tmp_path), image_size=16, max_value=4095)
    batch = next(pipeline.eval_batches(spec, split="train", batch_size=20, seed=0))
    assert batch["image"][batch["mask"]].max() > 0.5


def test_size_and_channels_default_to_those_of_the_pictures(pictures):
    spec = pipeline.describe(DataSpec("folder", dir=str(pictures), image_size=0, channels=0))
    assert (spec.image_size, spec.channels) == (16, 3)  # The shorter side is 24.


def test_a_folder_of_grey_pictures_has_one_channel(tmp_path, encode, colour_images):
    for i, image in enumerate(colour_images(30)):
        (tmp_path / f"{i}.png").write_bytes(encode(image[..., :1]))
    spec = DataSpec("folder", dir=str(tmp_path), image_size=0, channels=0)
    assert pipeline.describe(spec).channels == 1
    (tmp_path / "colour.png").write_bytes(encode(colour_images(1)[0]))
    assert pipeline.describe(spec).channels == 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32])
def test_a_folder_can_be_read_at_any_size_and_number_of_channels(pictures, size, channels):
    spec = DataSpec("folder", dir=str(pictures), image_size=size, channels=channels)
    iterator = pipeline.train_iterator(spec, batch_size=4, seed=0)
    assert next(iterator)["image"].shape == (4, size, size, channels)
    iterator.close()


def test_pictures_are_cropped_in_the_centre(pictures, colour_images):
    spec = DataSpec("folder", dir=str(pictures), image_size=24, channels=3)
    opened = {split: splits.open_images(spec, split) for split in ("train", "validation")}
    found = Folder().find(pictures)["train"]
    originals = colour_images(60, 40)[:, 8:32, :24]
    checked = 0
    for split, images in opened.items():
        for i, path in enumerate(found[split]):
            if path.suffix == ".png":
                np.testing.assert_array_equal(images[i], originals[int(path.stem)])
                checked += 1
    assert checked == 20


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="'folder' is not in .*it can hold pictures"):
        splits.open_images(DataSpec("folder", dir=str(tmp_path)), "train")


def test_an_empty_split_is_an_error(tmp_path, encode, colour_images):
    (tmp_path / "train").mkdir()
    (tmp_path / "validation").mkdir()
    (tmp_path / "train" / "one.png").write_bytes(encode(colour_images(1)[0]))
    with pytest.raises(DataError, match="split 'validation' is empty"):
        splits.open_images(DataSpec("folder", dir=str(tmp_path), channels=3), "validation")


def test_a_corrupt_picture_is_named(pictures):
    victim = next(pictures.rglob("003.png"))
    victim.write_bytes(victim.read_bytes()[:60])
    spec = DataSpec("folder", dir=str(pictures), image_size=16, channels=3)
    with pytest.raises(DataError, match=f"{victim}: damaged"):
        for split in ("train", "validation"):
            list(pipeline.eval_batches(spec, split=split, batch_size=8, seed=0))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_named(pictures):
    (pictures / "album1").chmod(0)
    try:
        with pytest.raises(DataError, match="album1: cannot be listed"):
            Folder().find(pictures)
    finally:
        (pictures / "album1").chmod(0o755)
