"""Restores images with unknown parts, low resolution or noise.

Writes OUT/restored.png and OUT/restored.npz. Images of a split are degraded first, for comparison.

python launch/restore.py --workdir=DIR --out=OUT --scale=2 --images=FILE_OR_FOLDER
python launch/restore.py --workdir=DIR --out=OUT --mask=center [--images=FILE --degrade]
"""

from absl import flags

from nvae_jax import api, cli, inputs, noise, options
from nvae_jax.interrupt import raise_on_sigterm
from nvae_jax.restoration import masks, results
from nvae_jax.restoration.degradation import smaller
from nvae_jax.restoration.restore import MAX_STEPS, METHODS

RUN = options.define_run(join=False)
IMAGES = options.define_images()
SPLIT = flags.DEFINE_string("split", "test", "split of the data set")
NUM = flags.DEFINE_integer("num", 8, "number of images", 1)
DEGRADE = flags.DEFINE_bool("degrade", False, "--images are originals: degrade them first")
MASK = flags.DEFINE_string("mask", None, f"known pixels: a file, or {', '.join(masks.NAMES)}")
SCALE = flags.DEFINE_integer("scale", 1, "the size is reduced by this factor", 1)
NOISE = flags.DEFINE_float("noise", 0.0, "standard deviation of the noise; white is 1", 0)
METHOD = flags.DEFINE_enum("method", None, sorted(METHODS), "default: optimize for noise, or mix")
SAMPLES = flags.DEFINE_integer("samples", 8, "samples per image", 1)
STEPS = flags.DEFINE_integer("steps", None, "repetitions of mix, or steps of Adam", 1, MAX_STEPS)
ALPHA = flags.DEFINE_list("alpha", None, "mix: weight of the prior; one number, or one per scale")
TEMPERATURE = flags.DEFINE_list("temperature", None, "of draws; mix: one number, or one per scale")
TRUST = flags.DEFINE_float("trust", None, "mix: deviation of guesses over the noise's", 0, 10)
LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "optimize: initial learning rate of Adam")
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of all draws")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = api.load(**RUN(), batch_size=BATCH.value)
    small = smaller(run.experiment.data, SCALE.value)
    if IMAGES.value and not DEGRADE.value:
        images = inputs.read(IMAGES.value, small, 0, NUM.value)
    else:
        source = {"images": IMAGES.value, "split": SPLIT.value, "seed": SEED.value}
        images = inputs.select(run.experiment, num=NUM.value, **source)
    mask = MASK.value and masks.load(MASK.value, small.image_size, len(images), SEED.value)
    words = {"alpha": ALPHA.value, "temperature": TEMPERATURE.value}
    lists = {name: w and noise.parse_temperatures(w, name) for name, w in words.items()}
    numbers = {"steps": STEPS, "trust": TRUST, "learning_rate": LEARNING_RATE}
    settings = {**lists, **{name: flag.value for name, flag in numbers.items()}}
    results.restore_run(
        run,
        images,
        OUT.value,
        source=IMAGES.value or SPLIT.value,
        whole=DEGRADE.value or IMAGES.value is None,
        mask=mask,
        scale=SCALE.value,
        noise=NOISE.value,
        method=METHOD.value,
        num_samples=SAMPLES.value,
        settings=settings,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
