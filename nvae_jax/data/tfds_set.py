"""Reads data sets prepared by tensorflow-datasets, without TensorFlow."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from nvae_jax import extras
from nvae_jax.data import images as images_lib
from nvae_jax.data import views
from nvae_jax.data.spec import CorruptError, DataError


class Tfds:
    """The format of a folder in which tensorflow-datasets has prepared a data set.

    Args:
      name: its name in tensorflow-datasets, with the configuration, such as "celeb_a_hq/256".
      splits: the splits to use.
      validation_tenth: whether there is only a "train" split, of which a fixed permutation holds
        out one in ten for "validation".
    """

    def __init__(self, name: str, splits: tuple[str, ...], validation_tenth: bool = False):
        self.name, self._splits, self._validation_tenth = name, splits, validation_tenth
        self.looks_like = f"{name} as array_record files of tensorflow-datasets"

    def find(self, directory: pathlib.Path) -> Mapping[str, pathlib.Path]:
        """Finds the splits of the data set; {} if it was not prepared in this folder."""
        prepared = any((directory / self.name).glob("*/dataset_info.json"))
        return dict.fromkeys(self._splits, directory) if prepared else {}

    def open(
        self, found: pathlib.Path, split: str, channels: int, max_value: int = 0
    ) -> images_lib.Images:
        """Opens a split; with `channels` 1 colour images are converted to grey."""
        del max_value
        if not self._validation_tenth:
            return TfdsImages(self.builder(found), split, channels)
        images = TfdsImages(self.builder(found), "train", channels)
        indices = views.validation_tenth(len(images), held_out=split == "validation")
        return views.Subset(images, indices)

    def builder(self, directory: pathlib.Path, **options: Any) -> Any:
        """The `tfds.core.DatasetBuilder` of this data set in `directory`."""
        tfds = extras.load("tensorflow_datasets", "tfds", f"data set {self.name}")  # takes seconds
        return tfds.builder(self.name, data_dir=directory, **options)


class TfdsImages:
    """The images of one split."""

    def __init__(self, builder: Any, split: str, channels: int):
        self._where = f"{builder.data_path} split {split}"
        try:
            self._examples = builder.as_data_source(split=split)
            count = len(self._examples)
        except Exception as error:  # the library raises exceptions of several packages
            raise DataError(f"{self._where}: cannot be opened ({_brief(error)})") from error
        self.shape = (count, 0, 0, channels)
        if count:
            self.shape = (count, *images_lib.probe(self))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            image = self._examples[index]["image"]
        except Exception as error:  # as above
            raise CorruptError(f"{self._where} example {index}: {_brief(error)}") from error
        return images_lib.convert(image, self.shape[-1])


def _brief(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
