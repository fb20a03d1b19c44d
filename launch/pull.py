"""Makes a run directory from a trained model: a shipped one, or one that was pushed.

NAME is a shipped model (digits, fashion_mnist_small), hf://OWNER/NAME[@REVISION] on the Hugging
Face Hub, or a folder written by `push`. No code from it is executed.

python launch/pull.py NAME [--workdir=DIR]
"""

from nvae_jax import cli, options
from nvae_jax.hub import transfer
from nvae_jax.interrupt import raise_on_sigterm

ARGUMENTS = ("NAME",)
WORKDIR = options.define_path("workdir", None, "run directory to make; default: runs/NAME")


@raise_on_sigterm()
def main(argv):
    """Flags in, one call out."""
    name = argv[1]
    workdir = WORKDIR.value or f"runs/{transfer.title(name)}"
    step = transfer.pull(name, workdir).snapshot.step
    print(f"{workdir}: a run at step {step}, ready for evaluate, sample, train and other commands")


if __name__ == "__main__":
    cli.run(main)
