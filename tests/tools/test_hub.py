"""Models as files are pushed to a folder or the Hub and pulled to a run directory; wrong files are
refused."""

import json
import shutil
from pathlib import Path
from unittest import mock

import huggingface_hub
import numpy as np
import pytest
from safetensors import numpy as safetensors

from nvae_jax import api, loading, run_directory
from nvae_jax.hub import locations, model_folder, transfer
from tests.tools.conftest import ROOT

RESULT = {"split": "test", "num_examples": 297, "nelbo": 50.25, "neg_log_p": 49.5}
RESULT |= {"num_iw_samples": 10, "bits_per_dim": 0.278965, "step": 0}


@pytest.fixture(scope="module")
def trained(make_run, tmp_path_factory):
    """A run with rows of metrics, results of its own and of other weights, and private paths."""
    folder = make_run(tmp_path_factory.mktemp("hub") / "run", data={"dir": "/home/me/secret"})
    rows = [{"step": step, "train/nelbo": 60.0 - step} for step in (0, 1)]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "metrics.jsonl").write_text(f'{text}{{"step": 1, "cut in tw')
    (folder / "eval").mkdir()
    own = loading.load_run(folder)[1].fingerprint
    for name, weights in (("own", own), ("other", "0" * 16)):
        (folder / "eval" / f"{name}.json").write_text(json.dumps({**RESULT, "weights": weights}))
    return folder


@pytest.fixture(scope="module")
def pushed(trained, tmp_path_factory):
    """That run's model, in a folder."""
    folder = tmp_path_factory.mktemp("pushed") / "small"
    transfer.push(trained, str(folder), license="apache-2.0", note="Made for a test.")
    return folder


@pytest.fixture
def copy(pushed, tmp_path):
    """A copy of the pushed model, for tests to damage."""
    return shutil.copytree(pushed, tmp_path / "copy")


def test_a_pushed_folder_has_no_private_data(pushed):
    names = sorted(str(path.relative_to(pushed)) for path in pushed.rglob("*") if path.is_file())
    assert names == ["README.md", "config.json", "eval/own.json", "metrics.jsonl"] + [
        "model.safetensors"
    ]
    assert "secret" not in "".join((pushed / name).read_text() for name in names[:-1])
    assert (pushed / "metrics.jsonl").read_text() == '{"step": 0, "train/nelbo": 60.0}\n'


def test_the_model_card_has_the_numbers_of_the_run(pushed):
    card = huggingface_hub.ModelCard.load(pushed / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "nvae_jax")
    numbers = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert numbers == {"NELBO, nats": 50.25, "-log p, nats": 49.5}
    assert "| test | 297 | 50.25 | 49.50 (K = 10) | 0.2790 |" in card.text
    assert "Made for a test." in card.text and "NELBO of the last row 60.00 nats" in card.text
    assert "| latents | groups: 2 of 4×4×2, 2 of 8×8×2 |" in card.text
    assert "nvae-jax pull small --workdir=runs/small" in card.text


def test_a_pulled_model_equals_the_run(pushed, trained, tmp_path):
    workdir = tmp_path / "runs" / "small"
    workdir.mkdir(parents=True)
    transfer.pull(str(pushed), workdir)
    there, here = (loading.load_run(folder)[1] for folder in (trained, workdir))
    assert (there.step, there.fingerprint) == (here.step, here.fingerprint)
    config = run_directory.load_config(workdir)
    assert config.data.dir == "" and config.model == run_directory.load_config(trained).model
    for name in ("metrics.jsonl", "README.md", "eval/own.json"):
        assert (workdir / name).read_text() == (pushed / name).read_text()
    assert sorted(path.name for path in workdir.parent.iterdir()) == ["small"]
    before = (workdir / "checkpoints").stat().st_mtime_ns
    transfer.pull(str(pushed), workdir)  # this file exists already
    assert (workdir / "checkpoints").stat().st_mtime_ns == before


def test_only_parameters_are_rounded_and_overflow_is_refused(run):
    half = model_folder.rounded(run.state, "float16").variables
    full = run.state.variables
    name = "image_head"
    kernel = np.asarray(full["params"][name]["kernel"])
    assert (half["params"][name]["kernel"] == kernel.astype(np.float16)).all()
    for own, other in zip(
        *(model_folder.by_name(v["batch_stats"]).values() for v in (half, full)), strict=True
    ):
        assert (own == np.asarray(other)).all()
    full["params"][name] = {**full["params"][name], "kernel": kernel + 1e6}
    with pytest.raises(
        ValueError, match="--dtype=float16: params/image_head/kernel exceeds its range"
    ):
        model_folder.rounded(model_folder.Snapshot(0, full), "float16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_read_as_written(run, tmp_path, dtype):
    snapshot = model_folder.rounded(run.state, dtype)
    model = model_folder.Model(run_directory.load_config(run.workdir), snapshot)
    model_folder.write(tmp_path, model, "", dtype)
    found = read_weights(tmp_path, run)
    assert (found.step, found.fingerprint) == (snapshot.step, snapshot.fingerprint)
    half, full = (tmp_path / "model.safetensors").stat().st_size, 4 * count(run)
    assert half < 0.8 * full


def count(run):
    return sum(np.size(a) for a in model_folder.by_name(run.state.collections).values())


def read_weights(folder, run):
    wanted = run.experiment.abstract_variables()
    return model_folder._read_weights(folder / "model.safetensors", wanted)


def change(arrays, name, value):
    return {**arrays, name: value}


FAULTS = {
    "lacks params/image_head/bias": lambda a: {k: v for k, v in a.items() if k != BIAS},
    "also has params/extra": lambda a: change(a, "params/extra", np.zeros(1, np.float32)),
    r"bias is F32 \(3,\), not F32 \(1,\)": lambda a: change(a, BIAS, np.zeros(3, np.float32)),
    r"bias is I32 \(1,\), not F32": lambda a: change(a, BIAS, np.zeros(1, np.int32)),
    "NaN or infinity in 1 array": lambda a: change(a, BIAS, np.full(1, np.nan, np.float32)),
    "is damaged or was changed": lambda a: change(a, BIAS, np.full(1, 9, np.float32)),
}
BIAS = "params/image_head/bias"


@pytest.mark.parametrize("message", FAULTS)
def test_arrays_of_another_model_are_refused(copy, run, message):
    path = copy / "model.safetensors"
    metadata, arrays = model_folder.read_metadata(path), safetensors.load_file(path)
    safetensors.save_file(FAULTS[message](arrays), path, metadata)
    with pytest.raises(ValueError, match=message) as error:
        read_weights(copy, run)
    assert "\n" not in str(error.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def pickled(path):
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")


def of_another_program(path):
    safetensors.save_file({"weight": np.zeros(3, np.float32)}, path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", cut, "not a safetensors file, or damaged"),
        ("model.safetensors", pickled, "not a safetensors file, or damaged"),
        ("model.safetensors", of_another_program, "metadata have no nvae_jax.step"),
        ("model.safetensors", Path.unlink, "holds no model: it has no model.safetensors"),
        ("config.json", Path.unlink, "holds no model: it has no config.json"),
        (
            "config.json",
            lambda p: p.write_text("{"),
            "config.json cannot be used: it is not valid JSON",
        ),
        (
            "config.json",
            lambda p: p.write_text(p.read_text().replace('"digits"', '"nothing"')),
            "nothing",
        ),
        ("metrics.jsonl", lambda p: p.write_text("[1]\n"), "metrics.jsonl, line 1"),
        ("eval/own.json", lambda p: p.write_text("<html>"), "own.json is not the result"),
    ],
)
def test_every_wrong_file_is_a_one_line_error_and_makes_no_run(
    copy, tmp_path, name, damage, message
):
    damage(copy / name)
    with pytest.raises(ValueError, match=message) as error:
        transfer.pull(str(copy), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "no folder 'digit', and no shipped model of that name; known: digits"),
        ("someone/model", "write hf://someone/model"),
        ("hf://someone", "write hf://OWNER/NAME"),
        ("", "empty"),
    ],
)
def test_invalid_names_are_errors(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        transfer.pull(name, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_existing_folders_are_not_overwritten(pushed, trained, copy, tmp_path):
    for folder, message in ((trained, "no model that was pushed"), (tmp_path, "not empty")):
        with pytest.raises(ValueError, match=message):
            locations.publish(pushed, str(folder), overwrite=True)
    with pytest.raises(ValueError, match="not empty: name a new folder"):
        transfer.pull(str(pushed), tmp_path)
    locations.publish(pushed, str(copy))  # the same model
    safetensors.save_file({"weight": np.zeros(3, np.float32)}, copy / "model.safetensors")
    with pytest.raises(ValueError, match="holds another model"):
        locations.publish(pushed, str(copy))
    locations.publish(pushed, str(copy), overwrite=True)
    assert model_folder.read_metadata(copy / "model.safetensors")


@pytest.mark.parametrize("name", locations.names())
def test_shipped_models_are_small_and_documented(name):
    """Their cards have the numbers of their results, and they need no network."""
    folder = ROOT / "models" / name
    assert (folder / "model.safetensors").stat().st_size < 4e6
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    (result,) = model_folder.read_results(folder).values()
    metadata = model_folder.read_metadata(folder / "model.safetensors")
    assert result["weights"] == metadata[model_folder.FINGERPRINT]
    assert f"| {result['nelbo']:.2f} | {result['neg_log_p']:.2f} (K" in card.text
    with locations.fetched(name) as found:
        assert found.samefile(folder)


def test_a_shipped_model_draws_images(tmp_path):
    transfer.pull("digits", tmp_path / "digits")
    run = api.load(tmp_path / "digits", batch_size=4)
    images = run.sample(4, temperature=0.5)
    assert images.shape == (4, 16, 16, 1) and 0.1 < images.mean() < 0.6


def test_only_the_files_of_a_model_are_downloaded(pushed, monkeypatch):
    download = mock.create_autospec(huggingface_hub.snapshot_download, return_value=str(pushed))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with locations.fetched("hf://me/small@v1") as folder:
        assert folder == pushed
    patterns = list(model_folder.PATTERNS)
    download.assert_called_once_with("me/small", revision="v1", allow_patterns=patterns)
    download.side_effect = huggingface_hub.errors.LocalEntryNotFoundError("no way\nto there")
    with pytest.raises(ValueError, match=r"^hf://me/small: LocalEntryNotFoundError: no way$"):
        locations.fetched("hf://me/small").__enter__()


def test_a_pushed_folder_is_uploaded(pushed, monkeypatch):
    hub = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    hub.upload_folder.return_value.commit_url = "https://hub/me/small/commit/1"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda library_name: hub)
    place = locations.publish(pushed, "hf://me/small", private=True)
    assert place == "https://hub/me/small/commit/1"
    hub.create_repo.assert_called_once_with("me/small", private=True, exist_ok=True)
    (call,) = hub.upload_folder.call_args_list
    assert (call.kwargs["repo_id"], call.kwargs["folder_path"]) == ("me/small", pushed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "NAME is missing"),
        (("a", "b"), "unexpected argument 'b'"),
        (("digit", "--workdir=W"), "known: digits"),
    ],
)
def test_wrong_calls_are_one_line_errors(commands, words, message, tmp_path):
    done = commands.run("pull", *words, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())
