"""Every flag of every command is used in a call that runs to its end."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from nvae_jax import build, pictures, run_directory

LAUNCH = Path(__file__).parents[1] / "launch"
TINY = """--config.model.num_scales=1 --config.model.num_groups=2 --config.model.encoder_width=4
 --config.model.decoder_width=4 --config.model.process_blocks=1 --config.model.preprocess_cells=1
 --config.model.postprocess_cells=1 --config.model.latent_channels=2 --config.model.unroll=1
 --config.model.decoder_cell=residual --config.model.squeeze_excitation=False
 --config.train.batch_size=16 --config.train.num_steps=1 --config.log.num_images=2
 --config.eval.recalibration_batch_size=2 --config.eval.recalibration_passes=1"""
RUN = "--workdir={run} --checkpoint=latest --config.data.workers=0"
COMMON = f"{RUN} --batch_size=2 --seed=1 --overwrite"
# Command: the flags of its calls. {run} is a run of one step, {in} has inputs, {out} is empty.
CALLS = {
    "train": [
        "--config=configs/digits.py --workdir={out}/run --check --restart",
        f"--config=configs/digits.py --workdir={{out}}/run {TINY} --log=tensorboard",
        "--workdir={out}/run --extend --config.train.num_steps=1 --config.log.every_steps=2",
    ],
    # With a reader process, which takes seconds to start.
    "evaluate": [
        f"{COMMON} --split=test --num_iw_samples=2 --max_examples=3 --config.data.workers=1"
    ],
    "sample": [
        f"{COMMON} --out={{out}} --num=3 --temperature=0.9 --recalibrate_bn --passes=1 --png_files"
        " --recalibration=published --decoder=sample --decoder_temperature=0.9"
    ],
    "encode": [
        f"{COMMON} --out={{out}}/latents.npz --images={{in}}/images.npz --split=test --num=2"
    ],
    "decode": [
        f"{COMMON} --out={{out}} --latents={{in}}/latents.npz --kind=mean --groups=1"
        " --temperature=0.9"
    ],
    "reconstruct": [
        f"{COMMON} --out={{out}} --images={{in}}/images.npz --split=test --num=2 --groups=0,2"
        " --temperature=0.9"
    ],
    "restore": [
        f"{COMMON} --out={{out}} --images={{in}}/images.npz --degrade --split=test --num=2"
        " --mask=center --scale=1 --noise=0.1 --method=mix --alpha=0.5 --trust=0.3"
        " --samples=2 --steps=1",
        f"{COMMON} --out={{out}} --num=2 --mask=half --samples=1 --steps=1"
        " --method=optimize --learning_rate=0.1 --temperature=0.9",
    ],
    "interpolate": [
        f"{COMMON} --out={{out}} --between=images --images={{in}}/images.npz --split=test"
        " --pairs=1 --steps=2 --temperature=0.9 --norecalibrate_bn --animation=webp"
    ],
    "traverse": [
        f"{COMMON} --out={{out}} --group=1 --channel=0 --span=2 --others=latents --of=samples"
        " --images={in}/images.npz --split=test --num=2 --steps=2 --temperature=0.9"
        " --norecalibrate_bn"
    ],
    "nearest": [
        f"{COMMON} --out={{out}} --samples={{in}}/images.npz --num=2 --neighbours=2 --crop=0.5"
        " --rows=1 --split=test --temperature=0.9 --recalibrate_bn"
    ],
    "analyze": [f"{COMMON} --out={{out}} --split=test --max_examples=3"],
    "report": [
        f"{COMMON} --out={{out}}/run.html --split=test --max_examples=3 --temperatures=1,0.7"
        " --num=2 --nonearest --passes=1"
    ],
    "fid": [
        f"{COMMON} --out={{out}} --features=pca --components=2 --reference=test --num=5"
        " --temperature=0.9 --protocol=standard --decoder=mean --recalibrate_bn --passes=1"
        " --recalibration=published"
    ],
    "score": [
        f"{COMMON} --out={{out}} --images={{in}}/images.npz --split=test --num_iw_samples=2"
        " --max_examples=2",
        f"{COMMON} --out={{out}} --against={{in}}/images.npz --num_iw_samples=1 --max_examples=2",
    ],
    "export": [
        f"{RUN} --out={{out}} --overwrite --batch_size=2 --temperature=0.9 --norecalibrate_bn"
        " --platforms=cpu"
    ],
    "convert_checkpoint": [
        "--torch=tests/golden/bernoulli_2scale.pt --workdir={out}/run --num_devices=2"
        " --data_dir={in}",
        "--export --workdir={out}/run --torch={out}/a.pt --checkpoint=latest",
    ],
    "pull": ["digits --workdir={out}/run"],
    "push": [
        f"{{out}}/model {RUN} --overwrite --dtype=bfloat16 --license=mit --note=tiny --private"
    ],
    "prepare_data": [
        "--name=folder --manual_dir={in}/pictures --data_dir={out} --image_size=4 --channels=1"
        " --skip_corrupt --max_value=255"
    ],
    "plan": [f"--config=configs/digits.py --devices=1 --hbm=16 --rate=1 {TINY}"],
}
# A compiler takes minutes: tests/planning. The run has one scale: tests/tools/test_scores.py; the
# network is an extra: tests/tools/test_fid.py.
ELSEWHERE = {
    "train": {"profile"},
    "plan": {"topology"},
    "score": {"scales"},
    "fid": {"weights", "weights_sha256"},
}


CALLED_BELOW = ("train", "evaluate")  # used by `places` and the test of the printed result


@pytest.fixture(scope="module")
def places(commands, tmp_path_factory):
    """{name: folder} of a run and of inputs."""
    root = tmp_path_factory.mktemp("flags")
    run, inputs = root / "run", root / "in"
    said = ""
    for call in CALLS["train"]:
        done = commands.run("train", *call.format(out=root).split())
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert "step 1/1  NELBO" in said and "already trained for 1 steps" in said
    rng = np.random.default_rng(0)
    (inputs / "pictures").mkdir(parents=True)
    images = rng.integers(0, 256, (3, 16, 16, 1), np.uint8)
    pictures.save_arrays(inputs / "images.npz", images=images)
    for number in range(12):
        pictures.save_png(inputs / "pictures" / f"{number}.png", images[number % 3])
    shapes = build.build_model(run_directory.load_config(run)).latent_shapes()
    draws = {f"mean_{i:02d}": rng.normal(size=(2, *shape)) for i, shape in enumerate(shapes)}
    pictures.save_arrays(inputs / "latents.npz", **draws)
    return {"run": run, "in": inputs}


@pytest.mark.parametrize("command", [name for name in CALLS if name not in CALLED_BELOW])
def test_all_flags_of_a_command_work(commands, places, command, tmp_path):
    if command in ("export", "convert_checkpoint"):
        pytest.importorskip({"export": "flatbuffers"}.get(command, "torch"))
    for call in CALLS[command]:
        done = commands.run(command, *call.format(**places, out=tmp_path).split())
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    if command == "sample":
        images = np.load(tmp_path / "samples.npz")["images"]
        assert images.shape == (3, 16, 16, 1) and images.dtype == np.uint8 and images.std() > 0
        assert (tmp_path / "samples.png").exists() and (tmp_path / "images/000002.png").exists()


def test_evaluate_prints_and_writes_its_result(commands, places, undocumented):
    done = commands.run("evaluate", *CALLS["evaluate"][0].format(**places).split())
    assert done.returncode == 0, done.stderr
    (path,) = (places["run"] / "eval").iterdir()
    result = json.loads(path.read_text())
    assert result["num_examples"] == 3 and result["step"] == 1 and result["split"] == "test"
    assert not undocumented(result)
    assert f"NELBO {result['nelbo']:.4f} nats" in done.stdout
    assert result["neg_log_p"] <= result["nelbo"]
    np.testing.assert_allclose(result["bits_per_dim"], result["neg_log_p"] / 256 / np.log(2))


def test_this_file_has_a_call_of_every_command_and_flag(commands):
    served = {"explore"}  # it runs until it is stopped; see tests/tools/explore
    assert set(CALLS) | served == {path.stem for path in LAUNCH.glob("[a-z]*.py")}
    unused = {}
    for command, calls in CALLS.items():
        shown = commands.run(command, "--help").stdout
        # Keys of the config are not listed there; RUN has one of them.
        known = set(re.findall(r"^ +--(?:\[no\])?(\w+):", shown, re.MULTILINE))
        assert {"workdir", "data_dir", "config"} & known, shown
        used = {word.lstrip("-").partition("=")[0] for word in " ".join(calls).split()}
        used |= {name.removeprefix("no") for name in used} | ELSEWHERE.get(command, set())
        unused[command] = known - used
    assert not any(unused.values()), unused


def test_a_missing_split_is_a_one_line_error(commands, places):
    done = commands.run("evaluate", f"--workdir={places['run']}", "--split=validation")
    assert done.returncode == 2 and "validation" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_another_config_and_a_run_without_checkpoint_are_refused(commands, places, tmp_path):
    run, flags = places["run"], ["--config=configs/digits.py", *TINY.split()]
    done = commands.run("train", *flags, f"--workdir={run}", "--config.train.num_steps=4")
    assert done.returncode == 2 and "train.num_steps is 1 in the run and 4 now" in done.stderr
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    done = commands.run("evaluate", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "has no checkpoint yet" in done.stderr


def test_changeable_keys_are_changed_without_a_config_file(commands, places):
    flag = f"--workdir={places['run']}"
    written = (places["run"] / "config.json").read_bytes()
    done = commands.run("train", flag, "--config.log.every_steps=20")
    assert done.returncode == 0 and "already trained for 1 steps" in done.stdout, done.stderr
    done = commands.run("train", flag, "--config.train.num_steps=20")
    assert done.returncode == 2
    assert "train.num_steps cannot change: drop it, or name another" in done.stderr
    assert (places["run"] / "config.json").read_bytes() == written
