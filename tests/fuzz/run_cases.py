"""Invalid config files, and damaged run directories."""

from pathlib import Path

import numpy as np

from tests.fuzz import damage
from tests.fuzz.case import EITHER, READERS, RIGHT, Case, call
from tests.fuzz.damage import ANY_FILE, CONTENT, FOLDER, REMOVED, appended, keys, text
from tests.fuzz.world import TINY

CONFIG_FILES = {
    "a dict": "def get_config():\n    return {'train': {}}",
    "None": "def get_config():\n    return None",
    "a number": "def get_config():\n    return 3",
    "an empty ConfigDict": "from ml_collections import ConfigDict\nget_config = ConfigDict",
    "no get_config": "config = 3",
    "no function": "get_config = 3",
    "empty file": "",
    "a section missing": "{config}    del config.train\n    return config",
    "a key missing": "{config}    del config.train.num_steps\n    return config",
    "a key more": "{config}    config.train.extra = 1\n    return config",
    "a section more": "{config}    config.extra = {'a': 1}\n    return config",
    "a section is a number": "{config}    config.train = 3\n    return config",
    "a section is None": "{config}    config.train = None\n    return config",
    "a section is empty": "{config}    config.train = type(config)()\n    return config",
    "a key is a section": "{config}    config.train.num_steps = {'a': 1}\n    return config",
    "a misspelt key": "{config}    config.lock().trian.num_steps = 1\n    return config",
    "raises": "def get_config():\n    raise RuntimeError('two\\nlines')",
    "divides by zero": "def get_config():\n    return 1 / 0",
    "asserts": "def get_config():\n    assert False",
    "stops": "def get_config():\n    raise StopIteration",
    "interrupts": "def get_config():\n    raise KeyboardInterrupt",
    "recurses": "def get_config():\n    return get_config()",
    "exits with 0": "import sys\n\n\ndef get_config():\n    sys.exit(0)",
    "exits with text": "import sys\n\n\ndef get_config():\n    sys.exit('text')",
    "exits at import": "import sys\n\nsys.exit(0)",
    "wants an argument": "def get_config(argument):\n    return argument",
    "syntax error": "def get_config(:",
    "indentation": "def get_config():\nreturn 3",
    "import error": "import nothing_of_that_name",
    "name error": "{config}    return cnofig",
    "null bytes": "\0",
    "not UTF-8": "\udcff",
    "a placeholder": "from ml_collections import config_dict\n{config}"
    "    config.train.num_steps = config_dict.placeholder(int)\n    return config",
}

JSONS = ("", "null", "[]", "3", '"text"', "{}", '{"a": 1}', "NaN", "[" * 10**5, "\udcff")
RUN_FILES = {
    "config.json": ANY_FILE
    | {f"now {content[:10]!r}": text(content) for content in JSONS[:-1]}
    | {
        "a key missing": keys(model__num_groups=REMOVED),
        "a section missing": keys(model=REMOVED),
        "a key more": keys(model__extra=1),
        "a section more": keys(extra={"a": 1}),
        "a number is text": keys(model__num_groups="two"),
        "a number is null": keys(model__num_groups=None),
        "a number is a list": keys(train__batch_size=[1]),
        "a whole number is not": keys(train__batch_size=1.5),
        "a number is NaN": keys(optimizer__learning_rate=float("nan")),
        "a section is a number": keys(train=3),
        "another width": keys(model__encoder_width=8),
        "a huge width": keys(model__encoder_width=10**9),
        "another likelihood": keys(model__likelihood="gaussian"),
        "a version to come": keys(version=10**6),
        "a version in words": keys(version="two"),
        "no version": keys(version=None),
        "a mesh of 2": keys(mesh__data=2),
        "data that moved": keys(data__name="folder", data__dir="/absent"),
    },
    "checkpoints": FOLDER | {"empty": damage.become_folder},
    "checkpoints/7": {"empty folder": Path.mkdir, "a file": text("x")},
    "checkpoints/notes": {"a folder": Path.mkdir, "a file": text("x")},
    "checkpoints/2": {"a file": damage.become_file, "emptied": damage.become_folder},
    "checkpoints/2/_CHECKPOINT_METADATA": CONTENT,
    "checkpoints/2/data/metadata": CONTENT | {"now 3": text("3"), "now {}": text("{}")},
    "checkpoints/2/evaluation/metadata": CONTENT | {"now []": text("[]"), "now 3": text("3")},
    "checkpoints/2/state/_METADATA": CONTENT | {"now []": text("[]")},
    "checkpoints/2/state/_sharding": CONTENT,
    "checkpoints/2/state/manifest.ocdbt": CONTENT,
    "checkpoints/2/state/ocdbt.process_0": FOLDER,
    "metrics.jsonl": ANY_FILE
    | {
        f"and {row[:10]!r}": appended(row.encode())
        for row in ("[]\n", "3\n", "null\n", '{"step": "two"}\n', '{"step": null}\n', "\0\n", "{")
    }
    | {"not UTF-8": appended(b"\xff\xff\n")},
    ".lock": {"a folder": damage.become_folder},
    "samples": {"a file": text("x")},
    "eval": {"a file": text("x")},
    "recalibration": {"a file": damage.become_file},
}
# Cached statistics of a run, which are computed again if they are damaged.
STATISTICS = ANY_FILE | {
    "no numbers": damage.every_array(lambda array: array + np.nan),
    "another shape": damage.every_array(lambda array: array[..., None]),
    "another type": damage.every_array(lambda array: array.astype(np.float64)),
    "pickled": damage.every_array(lambda array: np.array([{}])),
    "others": damage.arrays(other=np.zeros(3)),
    "a text": text("x"),
}
# Files that a resumed run can write again.
RESUMED = ("run/metrics.jsonl", "run/.lock", "run/checkpoints", "run/checkpoints/2*", "run/events*")

BAD_RUNS = {
    "both checkpoints garbled": {
        f"run/checkpoints/{step}/state/manifest.ocdbt": damage.garble for step in (1, 2)
    },
    "no checkpoints": {"run/checkpoints": damage.remove},
    "config.json cut": {"run/config.json": damage.cut},
}


def of_config_files():
    """Invalid config files."""
    for what, code in CONFIG_FILES.items():
        damaged = {"config.py": text(code.replace("{config}", TINY))}
        for command in ("train", "plan"):
            yield call(command, damage=damaged, what=what)
    for what, function in ANY_FILE.items():
        yield call("train", names=("config.py",), damage={"config.py": function}, what=what)


WRONG_LENGTHS = {  # flags of a call with --extend: words of its refusal
    (): ("--extend",),
    ("--config.train.num_steps=1",): ("--extend",),
    ("--config.train.num_steps=9", "--config.seed=3"): ("seed",),
    ("--config.train.num_steps=9", "--restart"): ("--extend",),
    ("--config.train.num_steps=9", "--workdir=new"): ("new",),
}


def of_starts():
    """Runs that start from others, and runs that are extended."""
    source = "--config.train.init_from=run"
    for file, functions in RUN_FILES.items():
        for name, function in functions.items():
            damaged = {"damage": {f"run/{file}": function}, "what": f"{file}: {name}"}
            yield call("train", source, statuses=EITHER, changes=("new*",), **damaged)
    for what, damaged in BAD_RUNS.items():
        if what != "config.json cut":  # which is not read
            yield call("train", source, names=("run",), damage=damaged, what=what)
    for which, name in {"@7": "7", "@best": "best", "@word": "run@word"}.items():
        yield call("train", source + which, names=(name,))
    yield call("train", source, "--config.model.encoder_width=8", names=("train.init_differences",))
    yield Case("train", ("--config=config.py", "--workdir=run", source), names=("init_from",))
    for flags, names in WRONG_LENGTHS.items():
        yield Case("train", ("--workdir=run", "--extend", *flags), names=names)
    cut = {"run/checkpoints/2": damage.remove}
    flags = ("--workdir=run", "--extend", "--config.train.num_steps=9")
    yield Case("train", flags, names=("--extend",), damage=cut, what="not finished")
    yield Case("train", flags[:1] + flags[2:], names=("--extend",))


def of_runs():
    """Damaged run directories, read and resumed."""
    for file, functions in RUN_FILES.items():
        for name, function in functions.items():
            damaged = {"damage": {f"run/{file}": function}, "what": f"{file}: {name}"}
            for command in ("evaluate", "sample", "export"):
                yield call(command, statuses=EITHER, **damaged)
            for flags in (("--workdir=run",), ("--config=config.py", "--workdir=run")):
                changes = (*RESUMED, f"run/{file}*")
                yield Case("train", flags, EITHER, changes=changes, **damaged)
    for what, function in STATISTICS.items():
        damaged = {"run/recalibration": damage.each("*.npz", function)}
        for command in ("sample", "export"):
            yield call(
                command,
                "--recalibrate_bn",
                statuses=RIGHT,
                changes=("run/recalibration*",),
                damage=damaged,
                what=f"statistics: {what}",
            )
    for command in READERS:
        for what, damaged in BAD_RUNS.items():
            yield call(command, names=("run",), damage=damaged, what=what)
