import numpy as np
import pytest
from sklearn.datasets import load_digits

from nvae_jax.data import sources
from nvae_jax.data.spec import DataError, DataSpec


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match="unknown data set 'mnits'; known: .*digits.*mnist"):
        sources.open_images(DataSpec("mnits"), "train")


def test_unknown_split_lists_the_known_ones(idx_dir):
    with pytest.raises(DataError, match="no split 'validation', only train, test"):
        sources.open_images(DataSpec("mnist", dir=str(idx_dir)), "validation")


@pytest.mark.parametrize("name", sorted(set(sources.SOURCES) - {"digits"}))
def test_missing_data_says_where_it_looked_and_what_to_do(name, tmp_path):
    missing = tmp_path / "absent"
    with pytest.raises(DataError) as caught:
        sources.open_images(DataSpec(name, dir=str(missing)), "train")
    message = str(caught.value)
    assert f"{missing}/{name} or {missing} (no such folder)" in message
    assert "--config.data.dir=DIR" in message and "launch/prepare_data.py" in message
    assert "\n" not in message


def test_default_places_are_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"not in {tmp_path}/nvae_data/mnist"):
        sources.open_images(DataSpec("mnist"), "train")


def test_other_than_published_size_is_a_warning(idx_dir, monkeypatch):
    said = []
    monkeypatch.setattr(
        sources.logging, "warning", lambda text, *values: said.append(text % values)
    )
    sources.open_images(DataSpec("mnist", dir=str(idx_dir)), "train")
    sources.open_images(DataSpec("digits"), "train")
    assert len(said) == 1 and "23 images in split train, where 60000" in said[0]


def test_digits_are_whole_disjoint_and_recognisable():
    train, test = (sources.open_images(DataSpec("digits"), split) for split in ("train", "test"))
    assert train.shape == (1500, 16, 16, 1) and test.shape == (297, 16, 16, 1)
    assert train.dtype == np.uint8 and train.max() == 255 and train.min() == 0
    # Shrunk again, each is most like the original digit it was made of: all are there, once.
    # (Enlarging blurs, so one or two may be as like to another.)
    small = np.concatenate([train, test]).reshape(-1, 8, 2, 8, 2).mean((2, 4)).reshape(-1, 64)
    original = load_digits().data[np.random.RandomState(0).permutation(1797)]
    small, original = (x - x.mean(1, keepdims=True) for x in (small, original))
    small, original = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (small, original))
    likeness = small @ original.T
    assert (likeness.argmax(1) == np.arange(1797)).sum() >= 1790
    assert likeness.diagonal().min() > 0.8
