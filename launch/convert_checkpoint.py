"""Turns a published PyTorch checkpoint into a run directory, or with --export a run into one.

python launch/convert_checkpoint.py --torch=FILE.pt --workdir=DIR [--num_devices=N]
python launch/convert_checkpoint.py --export --workdir=DIR --torch=NEW_FILE.pt
"""

from absl import flags

from nvae_jax import cli
from nvae_jax.interop import conversion
from nvae_jax.interrupt import ended_by_sigterm

TORCH = flags.DEFINE_string("torch", None, "the .pt file", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
EXPORT = flags.DEFINE_bool("export", False, "from the run directory to the file")
DEVICES = flags.DEFINE_integer(
    "num_devices", 1, "that the model was trained on: the published batch size is that of one", 1
)
DATA_DIR = flags.DEFINE_string("data_dir", "", "folder of its data set, for evaluation")


@ended_by_sigterm()
def main(_):
    """Flags in, one call out."""
    if EXPORT.value:
        step = conversion.export_run(WORKDIR.value, TORCH.value)
        print(f"{TORCH.value}: step {step} of {WORKDIR.value}")
        return
    step = conversion.convert_file(
        TORCH.value, WORKDIR.value, num_devices=DEVICES.value, data_dir=DATA_DIR.value
    )
    print(f"{WORKDIR.value}: a run at step {step}; evaluate, sample and train take it")


if __name__ == "__main__":
    cli.run(main)
