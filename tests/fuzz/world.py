"""The files that invalid calls use: a small run and inputs of every kind.

Every call gets a copy as its working directory:

run/           a run of two steps, with two checkpoints and recalibrated statistics
config.py      its config file
pictures/ prepared/ idx/ npz/    data sets                  empty/      an empty folder
images.npz images.npy picture.png samples.npz latents.npz   model.pt    inputs of the tools
"""

import gzip
import os
import shutil
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from nvae_jax import run_directory
from nvae_jax.build import build, build_model, resolve
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.data.prepare import prepare
from nvae_jax.interop.conversion import fresh_state
from nvae_jax.loading import load_run
from nvae_jax.loggers import Loggers
from nvae_jax.recalibrate import recalibrated_statistics
from tests.tools.conftest import random_variables_of

ROOT = Path(__file__).parents[2]
# Keys of the tiny model, as one would write them into a config file.
CONFIG = """
from nvae_jax.configs import digits


def get_config():
    config = digits.get_config()
    config.model.update(process_blocks=1, num_scales=1, num_groups=4, latent_channels=2)
    config.model.unroll = 1
    config.model.update(encoder_width=4, decoder_width=4)
    config.model.update(preprocess_cells=1, postprocess_cells=1, decoder_cell="residual")
    config.train.update(num_steps=2, batch_size=4)
    config.eval.update(recalibration_passes=2, recalibration_batch_size=2, batch_size=4)
    config.log.update(every_steps=1, num_images=4, images_every_steps=0)
    config.checkpoint.update(every_steps=1)
    return config
"""


# To be continued by lines that change `config`.
TINY = CONFIG.replace("    return config\n", "")


def tiny_config():
    namespace = {}
    exec(CONFIG, namespace)
    return resolve(namespace["get_config"]())


def make(folder):
    """Writes the undamaged world into a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    (folder / "config.py").write_text(CONFIG)
    (folder / "empty").mkdir()
    _write_run(folder / "run")
    images = (rng.random((4, 16, 16, 1)) > 0.5).astype(np.uint8) * 255
    np.savez(folder / "images.npz", images=images)
    np.save(folder / "images.npy", images)
    np.savez(folder / "samples.npz", images=images)
    Image.fromarray(images[0, ..., 0]).save(folder / "picture.png")
    shapes = build_model(tiny_config()).latent_shapes()
    latents = [rng.normal(size=(2, *shape)).astype(np.float32) for shape in shapes]
    kinds = {f"{kind}_{i:02d}": z for kind in ("mean", "sample") for i, z in enumerate(latents)}
    np.savez(folder / "latents.npz", images=images[:2] / 255, **kinds)
    shutil.copy(ROOT / "tests" / "golden" / "bernoulli_2scale.pt", folder / "model.pt")
    _write_data(folder, rng)
    os.symlink("loop", folder / "loop")


def _write_run(workdir):
    config = tiny_config()
    state = fresh_state(build(config), random_variables_of(config), 0)
    with (
        run_directory.open_for_training(workdir, config),
        Checkpoints(workdir) as saved,
        Loggers().started(workdir, config, 0) as loggers,
    ):
        for step in (1, 2):
            saved.save(state.replace(step=state.step + step), {"step": step, "num_examples": 1500})
            loggers.metrics(step, {"train/nelbo": 100.0})
    experiment, snapshot = load_run(workdir)
    recalibrated_statistics(workdir, experiment, snapshot, temperature=1.0)


def _write_data(folder, rng):
    for name in ("pictures", "idx", "npz", "npy"):
        (folder / name).mkdir()
    for i in range(12):
        picture = Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8))
        picture.save(folder / "pictures" / f"{i:02d}.png")
    prepare("folder", str(folder / "prepared"), manual_dir=str(folder / "pictures"), image_size=16)
    pixels = rng.integers(0, 256, (20, 16, 16), np.uint8)
    for stem in ("train", "t10k"):
        content = struct.pack(">HBB3I", 0, 8, 3, *pixels.shape) + pixels.tobytes()
        (folder / "idx" / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    for split in ("train", "test"):
        np.savez(folder / "npz" / f"{split}.npz", images=pixels[..., None])
        np.save(folder / "npy" / f"{split}.npy", pixels[..., None])
