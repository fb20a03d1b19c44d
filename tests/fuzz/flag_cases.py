"""Invalid flags and config keys of every command."""

from nvae_jax import schema
from tests.fuzz.case import CALLS, EITHER, READERS, REFUSED, RIGHT, Case, call
from tests.fuzz.damage import text
from tests.fuzz.world import TINY

# By the type of a flag, which is a word in its --help: {value: statuses}.
NUMBERS = {"": REFUSED, "nan": REFUSED, "two": REFUSED}
INTEGERS = NUMBERS | {"1.5": REFUSED, "1e30": REFUSED, "-1": REFUSED, "0": EITHER, "True": REFUSED}
INTEGERS |= {"1000000000": EITHER, "100000000000000": EITHER, f"{10**30}": EITHER}
REALS = NUMBERS | {"inf": REFUSED, "-inf": REFUSED, "-1": REFUSED, "1e30": EITHER, "0": EITHER}
LISTS = NUMBERS | {"inf": REFUSED, "-1": REFUSED, "0.5,,1": REFUSED, "1,2,3,4,5,6,7": REFUSED}
LISTS |= {"1;2": REFUSED, "1e30": EITHER}
CHOICES = {"": REFUSED, "nothing": REFUSED, "None": REFUSED, "1": REFUSED}
BOOLEANS = {"two": REFUSED, "2": REFUSED, "None": REFUSED}
LONG, STRANGE, INVALID = "x" * 300, "näïve ☃/run", "\udcff"
SCHEMES = ("gs://", "s3://bucket/../run", "file:///tmp/run", "hdfs://a/run")
NO_FILES = ("", "absent", "fifo", "/dev/zero", "/dev/null", LONG, INVALID, "loop", "config.py/a")
INPUTS = dict.fromkeys((*SCHEMES, *NO_FILES, "empty", "run/config.json", "~/absent"), REFUSED)
OUTPUTS = dict.fromkeys((*SCHEMES, "", "images.npz/a", "fifo", "/dev/null", LONG, "loop"), REFUSED)
OUTPUTS |= {"/proc/out": REFUSED, INVALID: EITHER, STRANGE: EITHER, "~/out": EITHER}
FOLDERS = OUTPUTS | {"images.npz": REFUSED}
TEXTS = {"": REFUSED, "nothing": REFUSED, "-1": REFUSED, "99": REFUSED, "1.5": REFUSED}
BY_TYPE = {"integer": INTEGERS, "number": REALS, "list": LISTS, "boolean": BOOLEANS}
BY_NAME = {
    "seed": INTEGERS | {"-1": EITHER},
    "span": REALS | {"-1": EITHER},
    "temperatures": LISTS | {"1,2,3,4,5,6,7": EITHER},
    "groups": LISTS | {"1.5": REFUSED, "99": REFUSED},
    "platforms": {"": REFUSED, "nothing": REFUSED, "cpu,,": REFUSED, "cpu,cpu": EITHER},
    "checkpoint": TEXTS | {"1": RIGHT, "best": EITHER, "0": REFUSED, "LATEST": EITHER},
    "topology": TEXTS | {"v5e:0x0": REFUSED, "v5e:9999x9999": REFUSED, "h100:x": REFUSED},
    "out": OUTPUTS,
    "data_dir": OUTPUTS | {"": EITHER},
    "manual_dir": INPUTS | {"": EITHER},
    "images": INPUTS | {"empty": REFUSED, "": EITHER},
    "workdir": INPUTS,
    "config": INPUTS,
}
OF_FILES = ("encode", "reconstruct", "restore", "interpolate", "traverse")
# ... and values that are invalid for this command only.
BY_COMMAND = {
    ("train", "workdir"): FOLDERS | {"pictures": REFUSED},
    ("convert_checkpoint", "workdir"): FOLDERS | {"run": REFUSED, "pictures": REFUSED},
    ("pull", "workdir"): FOLDERS | {"run": REFUSED, "pictures": REFUSED},
    ("push", "license"): dict.fromkeys(TEXTS, EITHER),
    ("push", "note"): dict.fromkeys(TEXTS, EITHER),
    ("convert_checkpoint", "data_dir"): {"absent": EITHER, "gs://": REFUSED},
    # This flag needs --export, which the valid call does not have.
    ("convert_checkpoint", "checkpoint"): {"1": REFUSED, "best": REFUSED},
    ("decode", "groups"): INTEGERS,
    # Their valid calls take images from a file, not from a split.
    **{(command, "split"): dict.fromkeys(TEXTS, EITHER) for command in OF_FILES},
}

# Keys of the config that are tried as --config.KEY=VALUE, by the type of their default.
KEY_VALUES = ("None", "two", "1.5", "NaN", "inf", "1e30", "1000000000", "-1", "True", "")
KEY_STATUSES = {
    int: {"1000000000": EITHER},
    float: {"1.5": EITHER, "1e30": EITHER, "1000000000": EITHER},
    bool: {"True": RIGHT},
    str: {},
}
RIGHT_KEYS = {
    ("seed", "-1"): EITHER,
    ("mesh.data", "-1"): RIGHT,
    ("train.init_from", ""): RIGHT,
    ("train.init_optimizer", "True"): REFUSED,  # an empty list
}
UNREAD = ("data.dir",)  # any value is valid for the data set of the config
ENDLESS = (("train.num_steps", "1000000000"),)
# Values of Python, in a config file.
FILE_VALUES = dict.fromkeys(("None", '"two"', "float('nan')", "[]", "{}", "'a\\0b'"), REFUSED)
FILE_VALUES |= {"10**30": EITHER, "-1": EITHER}

NO_FLAGS = ("--no-such-flag=1", "--nosuchflag", "word", "---", "-", "--=1", "-x", INVALID)
NO_KEYS = ("trian.num_steps=1", "train=3", "train.num_steps.x=1", "=1", ".=1", "seed")
NO_VALUES = ("train.num_steps", "train.num_steps=1=2", "train.num_steps=[1]")


def of_flags(flags_of):
    """Every flag of every command with every invalid value of its type.

    Args:
      flags_of: {command: {flag: its type, or the list of its choices}}.
    """
    for command in CALLS:
        yield call(command, statuses=RIGHT)
        yield call(command, "--help", statuses=RIGHT)
        yield Case(command, ())
        for wrong in NO_FLAGS:
            yield call(command, wrong)
        for flag, kind in flags_of[command].items():
            if kind != "boolean":
                yield call(command, f"--{flag}", statuses=EITHER, names=(flag,))
            for value, statuses in _values(command, flag, kind).items():
                names = (flag, value.removeprefix("~/") or flag) if value != INVALID else ()
                yield call(command, f"--{flag}={value}", statuses=statuses, names=names)
    for command in ("train", "evaluate"):
        for flag in ("--num_processes=2", "--process_id=5", "--coordinator_address=nothing"):
            yield call(command, flag, statuses=EITHER)
        for flag in ("--num_processes=0", "--num_processes=two", "--process_id=-1"):
            yield call(command, flag)


def _values(command, flag, kind):
    if isinstance(kind, list):
        return CHOICES
    known = BY_COMMAND.get((command, flag)) or BY_NAME.get(flag) or BY_TYPE.get(kind)
    return known or (INPUTS if f"--{flag}=" in CALLS[command] else TEXTS)


def of_keys():
    """Every key of the config with every invalid value, as a flag and in a config file."""
    for key, default in schema.DEFAULTS.items():
        for value in KEY_VALUES:
            if key not in UNREAD and (key, value) not in ENDLESS:
                statuses = KEY_STATUSES[type(default)].get(value, REFUSED)
                statuses = RIGHT_KEYS.get((key, value), statuses)
                command = _trainer(key, statuses)
                yield call(command, f"--config.{key}={value}", statuses=statuses, names=(key,))
        for value, statuses in FILE_VALUES.items():
            line = f"config.{key} = {value}"
            damage = {"config.py": text(f"{TINY}    {line}\n    return config\n")}
            statuses = EITHER if key in ("seed", *UNREAD) else statuses
            # The name of the error that the file itself raises.
            names = (key, repr(key.split(".")[-1]))
            command = _trainer(key, statuses)
            yield call(command, statuses=statuses, names=names, damage=damage, what=line)
    for value in INPUTS:
        if value:
            yield call("train", f"--config.train.init_from={value}", names=("train.init_from",))
    for wrong in NO_KEYS:
        yield call("train", f"--config.{wrong}")
    for wrong in NO_VALUES:
        yield call("train", f"--config.{wrong}", names=("train.num_steps",))
    for command in READERS:
        for wrong in ("trian.num_steps=1", "data.workers=two", "data.workers=1000000000"):
            yield call(command, f"--config.{wrong}", names=(wrong.split("=")[0],))


def _trainer(key, statuses):
    """The command that checks a key: `plan` if `train` would compile another program."""
    same_program = key.startswith(("data.", "eval.", "distributed.", "log.", "checkpoint."))
    return "train" if statuses == REFUSED or same_program else "plan"
