"""Patches of colour photographs: a small model that trains on one CPU core, for restoration.

python benchmarks/photographs.py --out=DATA
python launch/train.py --config=configs/photographs.py --workdir=DIR --config.data.dir=DATA
python benchmarks/restoration.py --workdir=DIR --config.data.dir=DATA
"""

from nvae_jax.configs import base


def get_config():
    """2 scales of 3 groups and 1; pixels are Gaussian, and restoration uses their variance."""
    config = base.get_config()
    config.data.update(name="arrays", image_size=16, channels=3)
    config.model.update(
        num_groups=3,
        latent_channels=8,
        encoder_width=16,
        decoder_width=16,
        process_blocks=1,
        preprocess_cells=1,
        postprocess_cells=2,
        encoder_cells_per_group=1,
        decoder_cells_per_group=1,
        likelihood="gaussian",
    )
    config.objective.kl_anneal = 0.1
    config.optimizer.warmup_steps = 100
    config.train.update(num_steps=5000, batch_size=32, ema_decay=0.999)
    config.eval.update(every_steps=1000, max_examples=300)
    config.log.update(every_steps=100, images_every_steps=0)
    config.checkpoint.keep = 1
    return config
