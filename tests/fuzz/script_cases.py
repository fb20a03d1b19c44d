"""Invalid calls of the launchers, with --dry-run."""

from tests.fuzz.case import EITHER, REFUSED, RIGHT, Case
from tests.fuzz.flag_cases import INVALID

SCRIPT_RUN = "--config=configs/digits.py --workdir=/shared/run --dry-run"
SCRIPT_CALLS = {
    "tpu_pod.sh": f"--name=a --zone=z --accelerator=v5litepod-16 {SCRIPT_RUN}",
    "gke.sh": "--name=a --image=me/nvae:1 --accelerator=tpu-v5-lite-podslice --topology=2x2 "
    f"--volume-claim=a --mount=/shared {SCRIPT_RUN}",
    "slurm.sbatch": SCRIPT_RUN,
    "local_cluster.sh": "2 --dry-run -- true",
}

WRONG_NUMBERS = (
    "",
    "two words",
    "-1",
    "1.5",
    "nan",
    "1e30",
    "$(touch pwned)",
    "'",
    "\n",
    f"{10**30}",
)
STRANGE_TEXTS = ("two words", "-1", "$(touch pwned)", "'", "\n", "x" * 300)
NUMBERS = ("restarts", "chips-per-host", "devices-per-process", "grace")
WRONG_RUNS = (
    *("--workdir=s3://bucket/run", "--workdir=file:///run", "--workdir=", "--config=absent.py"),
    *("--config=", "--config=configs", "--config=launch/train.py", "--config.trian.num_steps=1"),
    *("--config.train.num_steps=two", "--config.data.name=mnits", "--config.seed=nan"),
)


def of_scripts(options_of):
    """The launchers, which only print what they would do.

    Args:
      options_of: {script: names of its --name=VALUE options}.
    """
    for script in ("quickstart.sh", "test.sh"):
        yield Case(script, ("--no-such-flag",), names=("no-such-flag",))
    for script, words in SCRIPT_CALLS.items():
        right = words.split()
        yield Case(script, (*right,), RIGHT)
        yield Case(script, ("--help",), RIGHT)
        yield Case(script, ())
        for wrong in ("--no-such-flag=1", "--nosuchflag", "-", INVALID):
            yield Case(script, (wrong, *right))
        for option in options_of[script]:
            number = option in NUMBERS
            for value in WRONG_NUMBERS if number else ("", *STRANGE_TEXTS):
                statuses = REFUSED if number or value == "" else EITHER
                flags = (
                    (f"--{option}={value}", *right)
                    if "--" in right
                    else (*right, f"--{option}={value}")
                )
                yield Case(script, flags, statuses, (option,))
        if "--" not in right:
            for wrong in WRONG_RUNS:
                yield Case(
                    script,
                    (*right, wrong),
                    names=(wrong.strip("-").split("=")[0].removeprefix("config."),),
                )
