import numpy as np
import pytest

from nvae_jax.data import pipeline, splits
from nvae_jax.data.celeba import CelebA
from nvae_jax.data.images import fit, read_file
from nvae_jax.data.spec import DataError, DataSpec


@pytest.fixture
def celeba(tmp_path, encode):
    pictures = np.random.default_rng(0).integers(0, 256, (6, 218, 178, 3), np.uint8)
    (tmp_path / "img_align_celeba").mkdir()
    for i, picture in enumerate(pictures):
        path = tmp_path / "img_align_celeba" / f"{i + 1:06d}.jpg"
        path.write_bytes(encode(picture, "JPEG"))
    lines = [f"{i + 1:06d}.jpg {split}" for i, split in enumerate((0, 0, 0, 1, 2, 0))]
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_celeba_has_its_own_splits_and_crop(celeba):
    spec = DataSpec("celeba64", dir=str(celeba), image_size=64, channels=3)
    counts = {split: pipeline.num_examples(spec, split) for split in splits.names(spec)}
    assert counts == {"train": 4, "validation": 1, "test": 1}
    image = read_file(celeba / "img_align_celeba" / "000006.jpg")
    expected = fit(image, 64, (15, 40, 163, 188))
    np.testing.assert_array_equal(splits.open_images(spec, "train")[3], expected)


@pytest.mark.parametrize("line", ["", "000001.jpg", "000001.jpg 3", "../../etc/passwd 0", "a b c"])
def test_a_damaged_partition_file_is_an_error_with_its_line(celeba, line):
    with (celeba / "list_eval_partition.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match="list_eval_partition.txt line 7: "):
        CelebA().find(celeba)


def test_a_missing_partition_file_is_an_error(celeba):
    (celeba / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match="list_eval_partition.txt: cannot be read"):
        CelebA().find(celeba)
