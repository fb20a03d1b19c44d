"""Commands that use a trained model give the same results on several hosts as on one device."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from tests.local_cluster import finish, jax_variables, start
from tests.tools.conftest import ROOT

ALL = """
import sys
import time
import jax
from nvae_jax import analyze, api, encode, evaluate, inputs, interpolate, nearest, reconstruct
from nvae_jax import paths, sample, traverse
from nvae_jax.metrics import fid

workdir, out = paths.parse(sys.argv[1]), paths.parse(sys.argv[1]) / "out"
run = api.load(workdir, batch_size=6, join=True)
about = {"temperature": 0.7, "batch_size": 6}
sample.sample_run(workdir, run.experiment, run.state, out=out / "samples", num=10, **about)
images = inputs.select(run.experiment, num=7, seed=1)
encode.encode_run(run, images, out / "latents.npz")
latents = encode.load_latents(out / "latents.npz", groups=2)
encode.decode_run(run, latents, out / "decoded", seed=1)
reconstruct.reconstruct_run(run, images, out / "copies", groups=[0, 2])
interpolate.interpolate_run(run, out / "between", images=images, num_steps=3, animation="none")
traverse.traverse_run(run, out / "varied", num=3, group=1, num_steps=2)
samples, metadata = nearest.load_or_draw_samples(run, 5, recalibrate_bn=False)
nearest.nearest_run(run, samples, out / "nearest", num=2, metadata=metadata)
analyze.analyze_run(run, out / "latents", max_examples=21)
about = {"features": "pca", "components": 3, "reference": "test", "num": 10, "batch_size": 6}
fid.fid_run(workdir, run.experiment, run.state, out=out / "fid", temperature=0.7, **about)
about = {"split": "test", "num_iw_samples": 2, "max_examples": 21, "batch_size": 10, "seed": 3}
evaluate.evaluate_run(workdir, run.experiment, run.state, **about)
print("devices:", jax.device_count())
"""


def results(folder):
    """{path and name: array} of the arrays and JSON files in a run directory, without the digest of
    decoded latents, whose last bits can differ."""
    found = {}
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path) as file:
            found.update({f"{path.relative_to(folder)} {name}": file[name] for name in file.files})
    for path in [*folder.rglob("eval/*.json"), *folder.rglob("out/**/*.json")]:
        for name, value in json.loads(path.read_text()).items():
            found[f"{path.relative_to(folder)} {name}"] = np.asarray(jax.tree.leaves(value))
    found.pop("out/decoded/decoded.npz source_sha256")
    found.pop("out/fid/fid.json peak_memory_gb")
    return found


SMALL = {"num_scales": 1}  # of two groups


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, make_run):
    """The run directory of a small model."""
    return make_run(tmp_path_factory.mktemp("runs") / "run", model=SMALL)


def test_commands_give_the_same_results_on_a_cluster_as_on_one_device(
    commands, make_run, workdir, store, bucket, tmp_path, monkeypatch
):
    """The cluster has its run in a bucket."""
    monkeypatch.setenv("HOME", str(tmp_path))
    there = store / str(make_run(bucket / "run", model=SMALL)).removeprefix("gs://")
    runs = {}
    for processes, devices, run, folder in (
        (1, 1, workdir, workdir),
        (2, 2, bucket / "run", there),
    ):
        done = finish(start(commands, ALL, run, processes=processes, devices=devices))
        assert [status for status, _ in done] == [0] * processes, done
        assert all(f"devices: {processes * devices}" in output for _, output in done)
        assert ["written to" in output for _, output in done] == [True, False][:processes]
        runs[processes] = results(folder)
    assert runs[1].keys() == runs[2].keys() and len(runs[1]) > 80
    for name, expected in runs[1].items():
        found = runs[2][name]
        if expected.dtype == np.uint8:  # rounded values can differ by one
            assert np.abs(expected.astype(int) - found).max() <= 1, name
        elif expected.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=name)


def test_a_signal_to_one_host_ends_a_command_on_all_hosts_without_files(
    commands, workdir, tmp_path
):
    """The cluster is given by flags, as for `train`."""
    out, [address, *_] = tmp_path / "out", jax_variables()[0].values()
    command = [ROOT / "launch" / "sample.py", f"--workdir={workdir}", f"--out={out}"]
    command += ["--num=10000000", "--norecalibrate_bn", f"--coordinator_address={address}"]
    command += ["--num_processes=2"]
    processes = [
        *start(commands, *command, "--process_id=0", devices=2),
        *start(commands, *command, "--process_id=1", devices=2),
    ]
    deadline = time.monotonic() + 240
    while not any(path.stat().st_size > 10_000 for path in out.glob("*")):  # batches are arriving
        running = all(process.poll() is None for process in processes)
        assert running and time.monotonic() < deadline, finish(processes)
        time.sleep(0.05)
    processes[1].terminate()
    for status, output in finish(processes):
        assert status == 128 + signal.SIGTERM, output
        assert "stopped by SIGTERM: no file is half-written" in output
    assert not list(out.iterdir())
