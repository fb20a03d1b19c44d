"""The quickstart: scikit-learn's 1,797 handwritten digits, which need no download.

bash launch/quickstart.sh
"""

from configs import base


def get_config():
    """16×16 binarised digits; 2 scales of 2 groups."""
    config = base.get_config()
    config.data.update(name="digits", image_size=16, binarize=True)
    config.model.update(
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
    config.train.update(num_steps=500, batch_size=50)
    config.eval.update(recalibration_passes=100)
    config.log.update(every_steps=50, images_every_steps=250)
    return config
