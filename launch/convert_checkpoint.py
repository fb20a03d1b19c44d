"""Turns a published PyTorch checkpoint into a run; --export goes back.

python launch/convert_checkpoint.py --torch=FILE.pt --workdir=DIR [--num_devices=N]
python launch/convert_checkpoint.py --export --workdir=DIR --torch=NEW_FILE.pt
"""

from absl import flags

from nvae_jax import cli, options, schema
from nvae_jax.interop import conversion
from nvae_jax.interrupt import raise_on_sigterm

TORCH = options.define_path("torch", None, "the .pt file", required=True)
RUN = options.define_run(join=False)
EXPORT = flags.DEFINE_bool("export", False, "from the run directory to the file")
DEVICES = flags.DEFINE_integer(
    "num_devices",
    1,
    "that the model was trained on: the published batch size is that of one",
    1,
    schema.MANY,
)
DATA_DIR = options.define_path("data_dir", None, "folder of its data set, for evaluation")


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
        raise flags.Error("--checkpoint and --config.KEY=VALUE are of a run: they go with --export")
    step = conversion.convert_file(
        TORCH.value, workdir, num_devices=DEVICES.value, data_dir=DATA_DIR.value or ""
    )
    print(f"{workdir}: a run at step {step}; evaluate, sample and train take it")


if __name__ == "__main__":
    cli.run(main)
