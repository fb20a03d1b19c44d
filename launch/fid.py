"""Compares samples with images: FID, KID, precision and recall, or a distance without weights.

python launch/fid.py --workdir=DIR --out=OUT --weights=FILE [--num=50000] [--temperature=1]
  [--protocol=standard|published] [--reference=train]
python launch/fid.py --workdir=DIR --out=OUT --features=pca [--components=64]

The features are torch-fidelity's, whose weights are at
https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth
and are never downloaded automatically. Repeat the command to resume an interrupted one.
"""

from absl import flags

from nvae_jax import cli, loading, options, schema
from nvae_jax.interrupt import raise_on_sigterm
from nvae_jax.metrics import fid

RUN = options.define_run()
FEATURES = flags.DEFINE_enum(
    "features", "inception", ["inception", "pca"], "features of images; pca needs no weights"
)
WEIGHTS = options.define_path("weights", None, "file of the Inception network's weights")
SHA256 = flags.DEFINE_string(
    "weights_sha256", None, "SHA-256 of that file, or at least 8 digits; default: the published one"
)
COMPONENTS = flags.DEFINE_integer(
    "components", 64, "for pca: principal components of training images", 1, schema.MANY
)
REFERENCE = options.define_path(
    "reference", "train", "split, .npz, .npy, picture, folder, data set, or stored statistics"
)
NUM = flags.DEFINE_integer("num", 50_000, "number of samples", 1, schema.LARGEST_INT)
SAMPLING = options.define_sampling()
PROTOCOL = flags.DEFINE_enum(
    "protocol", "standard", list(fid.PROTOCOLS), "standard: uint8; published: float, temperature 1"
)
DECODER = flags.DEFINE_enum("decoder", "mean", ["mean", "sample"], "mean or sample of the pixels")
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of the samples")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = RUN()
    fid.fid_run(
        run["workdir"],
        *loading.load_run(**run),
        out=OUT.value,
        features=FEATURES.value,
        weights=WEIGHTS.value,
        weights_sha256=SHA256.value,
        components=COMPONENTS.value,
        reference=REFERENCE.value,
        num=NUM.value,
        **SAMPLING(),
        protocol=PROTOCOL.value,
        decoder=DECODER.value,
        batch_size=BATCH.value,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
