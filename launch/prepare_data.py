"""Builds a data set that needs building, from files or by download.

python launch/prepare_data.py --name=cifar10 --data_dir=DIR
python launch/prepare_data.py --name=folder --manual_dir=PICTURES --data_dir=DIR --image_size=64
"""

import math

from absl import flags

from nvae_jax import cli, options
from nvae_jax.data import limits, sources
from nvae_jax.data.prepare import prepare

_NAME = flags.DEFINE_string(
    "name", None, f"The data set: one of {', '.join(sorted(sources.SOURCES))}.", required=True
)
_DATA_DIR = options.define_path(
    "data_dir", sources.DEFAULT_ROOT, "Where to build it, in a folder of its name."
)
_MANUAL_DIR = options.define_path("manual_dir", None, "Folder with files that you already have.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    0,
    "Height and width to crop and resize to; 0 is the data set's own.",
    0,
    math.isqrt(limits.MAX_PIXELS),
)
_CHANNELS = flags.DEFINE_integer(
    "channels", 0, "1 makes your own pictures grey, 3 coloured; 0 leaves them as they are."
)
_SKIP_CORRUPT = flags.DEFINE_bool("skip_corrupt", False, "Leave out images that cannot be read.")
_MAX_VALUE = flags.DEFINE_integer(
    "max_value", 0, "White in pictures of 16 bits; 0 takes what they state, else 65535.", 0
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
