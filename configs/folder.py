"""Your own images: any folder of PNG, JPEG, WebP, BMP or TIFF files, including subfolders.

    python launch/prepare_data.py --name=folder --manual_dir=PICTURES --data_dir=DATA
    python launch/train.py --config=configs/folder.py --workdir=DIR --config.data.dir=DATA

The first command is optional: with --config.data.dir=PICTURES the images are decoded and resized
again in every epoch. Image size, channels and likelihood are determined by the data. The model is
small; see configs/celeba64.py and configs/ffhq256.py for those of the paper.
"""

from nvae_jax.configs import base


def get_config():
    """3 scales of 8, 4 and 2 groups, at half the images' resolution and below."""
    config = base.get_config()
    config.data.update(name="folder", image_size=0, channels=0, horizontal_flip=True)
    config.model.update(
        num_scales=3,
        num_groups=8,
        min_groups=2,
        encoder_width=24,
        decoder_width=24,
        process_blocks=1,
        preprocess_cells=2,
        postprocess_cells=2,
        likelihood="auto",
    )
    config.optimizer.warmup_steps = 500
    config.train.update(num_steps=50_000, batch_size=16)
    return config
