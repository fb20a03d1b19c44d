"""Unreadable images are one error, or with skip_corrupt are skipped and counted."""

import dataclasses
import shutil

import numpy as np
import pytest

from nvae_jax.data import faults, pipeline
from nvae_jax.data.spec import DataError, DataSpec

COUNT, BROKEN = 12, {2, 3, 11}


@pytest.fixture
def spec(tmp_path, encode, colour_images):
    """Twelve pictures for training and twelve for validation; three of each cannot be read."""
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        for i, image in enumerate(colour_images(COUNT)):
            content = encode(image)
            path = tmp_path / split / f"{i:02d}.png"
            path.write_bytes(content[:50] if i in BROKEN else content)
    return DataSpec("folder", dir=str(tmp_path), channels=3, skip_corrupt=True)


def test_without_skip_corrupt_training_and_evaluation_stop(spec):
    strict = dataclasses.replace(spec, skip_corrupt=False)
    with pytest.raises(DataError, match=r"(02|03|11)\.png: damaged"):
        iterator = pipeline.train_iterator(strict, batch_size=COUNT, seed=0)
        next(iterator)
    with pytest.raises(DataError, match=r"02\.png: damaged"):
        list(pipeline.eval_batches(strict, split="validation", batch_size=4, seed=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_one_error_names_all_unreadable_images_and_skip_corrupt(spec, workers):
    strict = dataclasses.replace(spec, skip_corrupt=False, workers=workers)
    with pytest.raises(DataError) as caught:
        iterator = pipeline.train_iterator(strict, batch_size=COUNT, seed=0)
        next(iterator)
    message = str(caught.value)
    assert message.startswith("3 image(s) cannot be read: ") and "\n" not in message
    assert all(f"train/{i:02d}.png: damaged" in message for i in BROKEN)
    assert message.endswith("--config.data.skip_corrupt=true")


def test_the_error_names_at_most_ten_images(spec, tmp_path):
    for path in (tmp_path / "validation").iterdir():
        path.write_bytes(b"nothing")
    for i in range(20, 28):
        shutil.copy(tmp_path / "train" / "02.png", tmp_path / "train" / f"{i}.png")
    strict = dataclasses.replace(spec, skip_corrupt=False)
    with pytest.raises(DataError, match="11 image.s. cannot be read: .*; and 1 more; ") as caught:
        next(pipeline.train_iterator(strict, batch_size=20, seed=0))
    assert str(caught.value).count("damaged") == 10


def test_each_skipped_image_is_reported_once(spec, monkeypatch):
    said = []
    monkeypatch.setattr(faults.logging, "warning", lambda text, *values: said.append(values[0]))
    faults.warn_skipped.cache_clear()
    iterator = pipeline.train_iterator(spec, batch_size=COUNT, seed=0)
    for _ in range(3):
        next(iterator)
    iterator.close()
    assert len(said) == len(set(said)) == len(BROKEN)


def test_training_counts_skipped_images_and_takes_the_next_ones(spec):
    iterator = pipeline.train_iterator(spec, batch_size=COUNT, seed=0)
    batch = next(iterator)
    assert set(batch) == {"image", "id"}
    seen = batch["id"].tolist()
    assert set(seen) == set(range(COUNT)) - BROKEN
    # 2 and 3 are replaced by 4, 11 by 0: two skips for 2, one each for 3 and 11.
    assert seen.count(4) == 3 and seen.count(0) == 2 and iterator.skipped == 4
    iterator.close()


def test_evaluation_masks_and_counts_skipped_images(spec, monkeypatch):
    said = []
    monkeypatch.setattr(
        pipeline.logging, "warning", lambda text, *values: said.append(text % values)
    )
    batches = list(pipeline.eval_batches(spec, split="validation", batch_size=5, seed=0))
    ids = np.concatenate([batch["id"] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert set(ids[mask]) == set(range(COUNT)) - BROKEN
    assert set(ids[~mask]) == BROKEN | {-1}
    assert said[-1].endswith("3 unreadable image(s) skipped")


def test_a_folder_that_disappears_is_an_error_even_with_skip_corrupt(spec, tmp_path):
    iterator = pipeline.train_iterator(spec, batch_size=4, seed=0)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(
        DataError, match="20 images in a row cannot be read, the last: .*train.*png: cannot be read"
    ):
        next(iterator)
