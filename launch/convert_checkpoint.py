"""Converts a published PyTorch checkpoint to a run; --export does the reverse.

python launch/convert_checkpoint.py --torch=FILE.pt --workdir=DIR [--num_devices=N]
python launch/convert_checkpoint.py --export --workdir=DIR --torch=NEW_FILE.pt
"""

from absl import flags

from nvae_jax import cli, options, schema
from nvae_jax.interop import conversion
from nvae_jax.interrupt import raise_on_sigterm

TORCH = options.define_path("torch", None, "the .pt file", required=True)
RUN = options.define_run(join=False)
EXPORT = flags.DEFINE_bool("export", False, "convert the run to the file")
DEVICES = flags.DEFINE_integer(
    "num_devices",
    1,
    "how many it was trained on: the checkpoint states the batch size of one device",
    1,
    schema.MANY,
)
DATA_DIR = options.define_path("data_dir", None, "folder of the data set, for evaluation")


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = RUN()
    workdir = run["workdir"]
    if EXPORT.value:
        step = conversion.export_run(torch_path=TORCH.value, **run)
        print(f"{TORCH.value}: step {step} of {workdir}")
        return
    if run["which"] != "latest" or run["changes"]:
        raise flags.Error("--checkpoint and --config.KEY=VALUE can only be used with --export")
    step = conversion.convert_file(
        TORCH.value, workdir, num_devices=DEVICES.value, data_dir=DATA_DIR.value or ""
    )
    print(f"{workdir}: a run at step {step}, ready for evaluate, sample and train")


if __name__ == "__main__":
    cli.run(main)
