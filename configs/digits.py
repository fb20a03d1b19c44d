"""The quickstart: 1,797 handwritten digits that come with the package.

bash launch/quickstart.sh
"""

from nvae_jax.configs import base


def get_config():
    """16×16 binarised digits; 6 groups of 2×2. All latents see the whole digit, so that samples
    have few strokes that do not belong together."""
    config = base.get_config()
    config.data.update(name="digits", image_size=16, binarize=True)
    config.model.update(
        num_scales=1,
        num_groups=6,
        adaptive_groups=False,
        latent_channels=4,
        encoder_width=4,
        decoder_width=8,
        process_blocks=3,
        preprocess_cells=1,
        postprocess_cells=1,
        encoder_cells_per_group=1,
        decoder_cells_per_group=1,
    )
    config.objective.kl_anneal = 0.2
    config.optimizer.update(learning_rate=0.015, warmup_steps=50)
    config.train.update(num_steps=3000, batch_size=25)
    config.eval.update(recalibration_passes=100)
    config.log.update(every_steps=200, images_every_steps=1000)
    return config
