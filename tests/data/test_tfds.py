"""Data sets of tensorflow-datasets: small ones made here, and the library's mock data."""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from nvae_jax.data import pipeline, sources, splits
from nvae_jax.data.spec import DataError, DataSpec

tfds = pytest.importorskip("tensorflow_datasets")

pytestmark = pytest.mark.usefixtures("no_bucket")

VERSIONS = {"cifar10": "3.0.2", "omniglot": "3.0.0"}


def prepare(directory, name, images):
    """Prepares encoded images under the name of another data set, without TensorFlow."""

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSIONS[name])

        def _info(self):
            features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in images}

        def _generate_examples(self, split):
            for i, content in enumerate(images[split]):
                yield i, {"image": io.BytesIO(content)}

    Small.name = name
    Small(data_dir=directory, file_format="array_record").download_and_prepare()


@pytest.fixture
def cifar10(tmp_path, colour_images, encode):
    images = {"train": colour_images(9), "test": colour_images(4, seed=1)}
    contents = {split: [encode(x) for x in some] for split, some in images.items()}
    prepare(tmp_path, "cifar10", contents)
    return images, DataSpec("cifar10", dir=str(tmp_path), channels=3)


def test_prepared_data_sets_are_read(cifar10):
    images, spec = cifar10
    for split, expected in images.items():
        opened = splits.open_images(spec, split)
        assert opened.shape == expected.shape
        # tensorflow-datasets shuffles.
        assert {opened[i].tobytes() for i in range(len(opened))} == {x.tobytes() for x in expected}


def test_worker_processes_give_the_same_batches(cifar10):
    _, spec = cifar10
    batches = []
    for workers in (0, 1):
        parallel = DataSpec("cifar10", dir=spec.dir, channels=3, workers=workers)
        iterator = pipeline.train_iterator(parallel, batch_size=4, seed=0)
        batches.append(next(iterator)["image"])
        iterator.close()
    np.testing.assert_array_equal(*batches)


def test_reading_needs_no_tensorflow(cifar10):
    _, spec = cifar10
    code = f"""if True:
        import sys
        from nvae_jax.data import pipeline
        from nvae_jax.data.spec import DataSpec
        iterator = pipeline.train_iterator(
            DataSpec("cifar10", dir={spec.dir!r}, channels=3), batch_size=4, seed=0)
        print(next(iterator)["image"].shape, "tensorflow" in sys.modules)
        iterator.close()"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "(4, 32, 32, 3) False", done.stderr


def test_omniglot_becomes_bright_strokes_on_black(tmp_path, encode):
    drawing = np.full((105, 105, 3), 255, np.uint8)
    drawing[40:60] = 0
    contents = {"train": [encode(drawing)] * 3, "test": [encode(drawing)]}
    prepare(tmp_path, "omniglot", contents)
    spec = DataSpec("omniglot", dir=str(tmp_path), padding=2)
    image = splits.open_images(spec, "train")[0]
    assert image.shape == (28, 28, 1)
    assert (image[0] == 0).all() and (image[13] == 255).all()


@pytest.fixture
def stand_in(tmp_path):
    """A function that makes a folder in which a data set of the library seems to be prepared."""

    def make(name):
        folder = tmp_path / name / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
        return str(tmp_path)

    return make


def test_without_a_validation_split_one_image_in_ten_is_held_out(stand_in):
    directory = stand_in("celeb_a_hq/256")
    spec = DataSpec("celebahq256", dir=directory, image_size=256, channels=3)
    with tfds.testing.mock_data(num_examples=30):
        assert pipeline.num_examples(spec, "train") == 27
        assert pipeline.num_examples(spec, "validation") == 3


@pytest.mark.parametrize("length", [0, 1000, -1])
def test_truncated_files_are_a_one_line_error(cifar10, length):
    _, spec = cifar10
    (path,) = (pathlib.Path(spec.dir) / "cifar10/3.0.2").glob("*train.array_record*")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="cifar10.*split train") as caught:
        images = splits.open_images(spec, "train")
        for i in range(len(images)):
            images[i]
    assert "\n" not in str(caught.value)


SPECS = {
    "mnist": {"padding": 2, "binarize": True},
    "fashion_mnist": {"padding": 2, "binarize": True},
    "stacked_mnist": {"padding": 2, "channels": 3},
    "omniglot": {"padding": 2, "binarize": True},
    "cifar10": {"channels": 3, "horizontal_flip": True},
    "celeba64": {"channels": 3, "image_size": 64, "horizontal_flip": True},
    "imagenet32": {"channels": 3, "horizontal_flip": True},
    "imagenet32_downsampled": {"channels": 3, "horizontal_flip": True},
    "celebahq256": {"channels": 3, "image_size": 256, "num_bits": 5},
    "lsun_bedroom": {"channels": 3, "image_size": 64},
    "lsun_church": {"channels": 3, "image_size": 64},
}


@pytest.mark.parametrize("name", SPECS)
def test_every_data_set_of_tensorflow_datasets_trains_two_steps(
    name, stand_in, colour_images, train_two_steps
):
    directory = stand_in(sources.SOURCES[name].tfds.name)
    stand_ins = {}
    if name == "imagenet32":  # Its declared shape is open, so mock images could have any size.
        examples = [{"image": image} for image in colour_images(12)]
        stand_ins["as_data_source_fn"] = lambda *_, **__: examples
    spec = DataSpec(name, dir=directory, **SPECS[name])
    with tfds.testing.mock_data(num_examples=12, **stand_ins):
        train_two_steps(spec)
        split = pipeline.resolve_split(spec, "test")
        assert split == ("test" if "test" in splits.names(spec) else "validation")
        batches = list(pipeline.eval_batches(spec, split=split, batch_size=8, seed=0))
        assert sum(batch["mask"].sum() for batch in batches) == pipeline.num_examples(spec, split)
