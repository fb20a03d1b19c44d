"""What real processes on this machine do together."""

import re

from PIL import Image

from tests.local_cluster import WRONG_INPUT, LocalCluster, jax_variables

TOGETHER = """
import pathlib
from nvae_jax import run_directory
from tests.conftest import tiny_config
text = "é" * 600 * index  # too long for one row of bytes
assert processes.all_gather([index, text]) == [[0, ""], [1, "é" * 600]]

def fails_with(message, check):
    try:
        with processes.raise_together():
            check()
    except ValueError as error:
        return str(error) == message or str(error)

def only_in_one():
    if index == 1:
        raise OSError("no such disk")

def in_all():
    raise ValueError("no such key")

def inner():
    with processes.raise_together():
        only_in_one()

assert fails_with("process 1: no such disk", only_in_one) is True
assert fails_with("no such key", in_all) is True
assert fails_with("process 1: no such disk", inner) is True
assert fails_with("", lambda: None) is None

def open_run(workdir):
    with run_directory.open_for_training(workdir, tiny_config()) as config:
        return config.train.num_steps

folder = pathlib.Path(os.environ['FOLDER'])
print("opened", open_run(folder / "shared"))
run_directory.SHARING_SECONDS = 0
try:
    open_run(folder / f"of_{index}")
except ValueError as error:
    print(error)

from nvae_jax import cli, train
data = {"name": "folder", "dir": str(folder / f"pictures_{index}"), "channels": 1}
try:
    train.train(tiny_config(data=data), folder / "new")
except ValueError as error:
    print(error, flush=True)
cli.run(lambda _: train.train(tiny_config(train={"batch_size": 16 - index}), folder / "new"))
"""


def test_an_error_in_one_process_is_raised_in_all(commands, tmp_path):
    """This includes errors about run directories and data that differ between processes."""
    for index in (0, 1):
        (tmp_path / f"pictures_{index}").mkdir()
        for name in range(40 + 20 * index):
            picture = Image.new("L", (16, 16), 100 * index)
            picture.save(tmp_path / f"pictures_{index}" / f"{name}.png")
    variables = [{**each, "FOLDER": str(tmp_path)} for each in jax_variables()]
    with LocalCluster(commands, TOGETHER, variables) as cluster:
        results = cluster.finish(200)
    assert [status for status, *_ in results] == [WRONG_INPUT] * 2, results
    for _, output, error in results:
        opened, elsewhere, other_data = output.splitlines()[-3:]
        assert opened == "opened 6"
        assert re.fullmatch(
            r"process 1: \S+/of_1 on \S+ is not the same folder .* shared file system", elsewhere
        )
        assert re.search(r"images that processes 0 to 1 find are (\d+), (?!\1)\d+$", other_data)
        different = "the same config: train.batch_size is 16 in process 0 and 15 in process 1"
        assert different in error.splitlines()[-1]
    assert not (tmp_path / "new").exists() and not list((tmp_path / "of_1").glob("*"))
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [".lock", "config.json"]
