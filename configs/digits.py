"""The quickstart: scikit-learn's 1,797 handwritten digits, which need no download.

bash launch/quickstart.sh
"""

from configs import base


def get_config():
    """16×16 binarised digits; 3 scales of 2 groups, the coarsest 2×2: it sees whole digits."""
    config = base.get_config()
    config.data.update(name="digits", image_size=16, binarize=True)
    config.model.update(
        num_scales=3,
        num_groups=2,
        adaptive_groups=False,
        latent_channels=4,
        encoder_width=16,
        decoder_width=16,
        process_blocks=1,
        preprocess_cells=2,
        postprocess_cells=2,
        encoder_cells_per_group=1,
        decoder_cells_per_group=1,
    )
    config.optimizer.warmup_steps = 50
    config.train.update(num_steps=1100, batch_size=50)
    config.eval.update(recalibration_passes=100)
    config.log.update(every_steps=100, images_every_steps=500)
    return config
