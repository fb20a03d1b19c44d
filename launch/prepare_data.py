"""Prepares a data set for training, from files or by download.

python launch/prepare_data.py --name=cifar10 --data_dir=DIR
python launch/prepare_data.py --name=folder --manual_dir=PICTURES --data_dir=DIR --image_size=64
"""

import math

from absl import flags

from nvae_jax import cli, options
from nvae_jax.data import limits, sources
from nvae_jax.data.prepare import prepare

_NAME = flags.DEFINE_string(
    "name", None, f"data set: one of {', '.join(sorted(sources.SOURCES))}", required=True
)
_DATA_DIR = options.define_path(
    "data_dir", sources.DEFAULT_ROOT, "output folder; the data set is a subfolder"
)
_MANUAL_DIR = options.define_path("manual_dir", None, "folder with files that you already have")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    0,
    "height and width to crop and resize to; 0 keeps the data set's size",
    0,
    math.isqrt(limits.MAX_PIXELS),
)
_CHANNELS = flags.DEFINE_integer(
    "channels", 0, "for your own pictures: 1 converts to grey, 3 to colour, 0 keeps what they have"
)
_SKIP_CORRUPT = flags.DEFINE_bool("skip_corrupt", False, "leave out images that cannot be read")
_MAX_VALUE = flags.DEFINE_integer(
    "max_value", 0, "value of white in 16-bit pictures; 0: as they state, or 65535", 0
)


def main(argv):
    del argv
    print(
        prepare(
            _NAME.value,
            _DATA_DIR.value,
            manual_dir=_MANUAL_DIR.value or "",
            image_size=_IMAGE_SIZE.value,
            channels=_CHANNELS.value,
            skip_corrupt=_SKIP_CORRUPT.value,
            max_value=_MAX_VALUE.value,
        )
    )


if __name__ == "__main__":
    cli.run(main)
