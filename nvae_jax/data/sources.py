"""The data sets by name: their formats, published sizes and preprocessing.

This is the only file that names data sets. To add one, add a row to `SOURCES`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from nvae_jax.data import views
from nvae_jax.data.arrays import Arrays
from nvae_jax.data.celeba import CelebA
from nvae_jax.data.cifar import Cifar
from nvae_jax.data.digits import Digits
from nvae_jax.data.folder import Folder
from nvae_jax.data.idx import Idx
from nvae_jax.data.images import Box, Images
from nvae_jax.data.lmdb_folder import Lmdb
from nvae_jax.data.npz import Npz
from nvae_jax.data.spec import DataError
from nvae_jax.data.tfds_set import Tfds
from nvae_jax.data.tfrecords import TfRecords

# The default folder of prepared data sets, with one sub-folder per data set.
DEFAULT_ROOT = "~/nvae_data"


class Format(Protocol):
    """A format of image data in a folder.

    `looks_like` describes its files for messages. `find` returns for each split in the folder what
    `open` needs, without reading the images, or {} if the folder has another format. `open` gets
    the `DataSpec`'s channels and max_value, which some formats ignore; formats of `deep` sources
    also get num_bits if it is more than 8.
    """

    looks_like: str

    def find(self, directory: pathlib.Path) -> Mapping[str, Any]: ...

    def open(self, found: Any, split: str, channels: int, max_value: int = 0) -> Images: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
      formats: formats that it can be read from, in order of preference, besides its prepared form.
      sizes: published numbers of images by split; another number gives a warning. A split can have
        several, because not all copies in use have the same number of images.
      channels: 1 or 3; 0 uses that of the data.
      size: default height and width; 0 uses that of the data.
      resize: whether images are cropped and resized; otherwise another size is an error.
      deep: whether it can have more than 8 bits per value.
      boxes: {(H, W): crop (left, top, right, bottom)} before resizing; images of other sizes are
        cropped to the largest square in their centre.
      wrap: a further transformation of the images.
      place: a folder to search in addition to the one in `DEFAULT_ROOT`, if the user names none.
      twin: another data set with which it is often confused; the sizes tell them apart.
      advice: the easiest way to get it, for messages.
      by_hand: what to put into MANUAL_DIR if it cannot be downloaded, for messages.
    """

    formats: tuple[Format, ...]
    sizes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    channels: int = 3
    size: int = 0
    resize: bool = False
    deep: bool = False
    boxes: Mapping[tuple[int, int], Box] = dataclasses.field(default_factory=dict)
    wrap: Callable[[Images], Images] | None = None
    place: str = ""
    twin: str = ""
    advice: str = ""
    by_hand: str = ""

    @property
    def tfds(self) -> Tfds | None:
        """The format of tensorflow-datasets, if it supports this data set."""
        return next((one for one in self.formats if isinstance(one, Tfds)), None)


_TRAIN_TEST, _TRAIN_VALIDATION = ("train", "test"), ("train", "validation")
_MNIST_SIZES = {"train": (60_000,), "test": (10_000,)}
_MNIST = "its files are at https://storage.googleapis.com/cvdf-datasets/mnist/"
# tensorflow-datasets could download it, but reads it with a package that is no longer maintained.
_LSUN = (
    "take {0}_train_lmdb.zip and {0}_val_lmdb.zip from http://dl.yf.io/lsun/scenes/ and unpack "
    "both into MANUAL_DIR; choose a size with --image_size"
)

SOURCES: dict[str, Source] = {
    "digits": Source((Digits(),), {"train": (1500,), "test": (297,)}, channels=1),
    "mnist": Source(
        (Idx(), Npz(), Tfds("mnist", _TRAIN_TEST)), _MNIST_SIZES, channels=1, advice=_MNIST
    ),
    "fashion_mnist": Source(
        (Idx(), Npz(), Tfds("fashion_mnist", _TRAIN_TEST)),
        _MNIST_SIZES,
        channels=1,
        place="/usr/share/datasets/fashion-mnist",
        advice="on Debian, run apt-get install dataset-fashion-mnist",
    ),
    "stacked_mnist": Source(
        (Idx(), Npz(), Tfds("mnist", _TRAIN_TEST)),
        _MNIST_SIZES,
        channels=1,
        wrap=views.Stacked,
        advice=_MNIST,
    ),
    "omniglot": Source(
        (Tfds("omniglot", _TRAIN_TEST),),
        {"train": (19_280,), "test": (13_180,)},
        channels=1,
        size=28,
        resize=True,
        wrap=views.Inverted,  # Its strokes are dark on white, unlike those of MNIST.
    ),
    "cifar10": Source(
        (Cifar(), Lmdb(), Npz(), Tfds("cifar10", _TRAIN_TEST)),
        {"train": (50_000,), "test": (10_000,)},
        advice="unpack www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    ),
    "celeba64": Source(
        (CelebA(), Tfds("celeb_a", ("train", "validation", "test")), Lmdb(), Npz()),
        {"train": (162_770,), "validation": (19_867,), "test": (19_962,)},
        size=64,
        resize=True,
        boxes={(218, 178): (15, 40, 163, 188)},  # for the aligned images as distributed
    ),
    "imagenet32": Source(
        (Tfds("downsampled_imagenet/32x32", _TRAIN_VALIDATION), TfRecords(5), Lmdb(), Folder()),
        # Glow's copy, which published results use, and the original archives.
        {"train": (1_281_147, 1_281_149), "validation": (50_000, 49_999)},
        twin="imagenet32_downsampled",
        by_hand="ImageNet's terms must be accepted: with an account at image-net.org, take "
        "train_32x32.tar and valid_32x32.tar of 'Downsampled ImageNet' and unpack both into "
        "MANUAL_DIR, so that MANUAL_DIR/train_32x32/*.png and MANUAL_DIR/valid_32x32/*.png are "
        "there; or unpack Glow's imagenet-oord-tfr.tar there (train/, validation/)",
    ),
    "imagenet32_downsampled": Source(
        (Tfds("imagenet_resized/32x32", _TRAIN_VALIDATION), Npz(), Lmdb()),
        {"train": (1_281_167,), "validation": (50_000,)},
        twin="imagenet32",
        by_hand="ImageNet's terms must be accepted: with an account at image-net.org, take "
        "Imagenet32_train_npz.zip and Imagenet32_val_npz.zip and unpack both into MANUAL_DIR, so "
        "that MANUAL_DIR/train_data_batch_1.npz to _10.npz and MANUAL_DIR/val_data.npz are there",
    ),
    "celebahq256": Source(
        (
            TfRecords(8),
            Lmdb(),
            Tfds("celeb_a_hq/256", _TRAIN_VALIDATION, validation_tenth=True),
            Folder(exact=True),
        ),
        {"train": (27_000,), "validation": (3_000,)},
        size=256,
        resize=True,
        by_hand="its owners ask for an agreement: get the 30,000 images as "
        "github.com/tkarras/progressive_growing_of_gans describes and put them, as PNG files of "
        "256x256 or more, into MANUAL_DIR; or unpack Glow's celeba-tfr.tar there, so that "
        "MANUAL_DIR/train/*-r08-s-*.tfrecords and MANUAL_DIR/validation/ are there, which has the "
        "27,000/3,000 split of published results",
    ),
    "ffhq256": Source(
        (Lmdb(), Folder(exact=True)),
        {"train": (63_000,), "validation": (7_000,)},
        size=256,
        resize=True,
        by_hand="download images1024x1024 (70,000 PNG files, 89 GB) into MANUAL_DIR as "
        "github.com/NVlabs/ffhq-dataset describes, sub-folders as they come; a copy of any size "
        "from 256x256 up will do",
    ),
    "lsun_bedroom": Source(
        (Lmdb(), Tfds("lsun/bedroom", _TRAIN_VALIDATION), Folder()),
        {"train": (3_033_042,), "validation": (300,)},
        resize=True,
        by_hand=_LSUN.format("bedroom"),
    ),
    "lsun_church": Source(
        (Lmdb(), Tfds("lsun/church_outdoor", _TRAIN_VALIDATION), Folder()),
        {"train": (126_227,), "validation": (300,)},
        resize=True,
        by_hand=_LSUN.format("church_outdoor"),
    ),
    "folder": Source(
        (Folder(),),
        channels=0,
        resize=True,
        deep=True,
        by_hand="put your pictures into MANUAL_DIR, in sub-folders as you like",
    ),
    "arrays": Source(
        (Arrays(),),
        channels=0,
        deep=True,
        by_hand="put train.npy, and validation.npy or test.npy, into MANUAL_DIR",
    ),
}


def get_source(name: str) -> Source:
    """Returns the row of a data set. Raises DataError, listing the known names, if unknown."""
    if name not in SOURCES:
        known = ", ".join(sorted(SOURCES))
        raise DataError(
            f"data.name: unknown data set {name!r}; known: {known}; own images: "
            "data.name=folder; own arrays: data.name=arrays"
        )
    return SOURCES[name]


def describe_formats(source: Source) -> str:
    """Describes the formats of a data set for a message."""
    return "; or ".join(form.looks_like for form in source.formats)
