"""A command overwrites only files that it has made with the same settings, and no inputs."""

import json

import numpy as np
import pytest

from nvae_jax import encode, files, outputs, pictures

SETTINGS = {"model": "a model", "seed": 3, "temperature": [0.7, 1.0], "span": 2.5, "kept": False}
PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def written(tmp_path):
    """Files of every kind with metadata, and one without."""
    paths = [tmp_path / f"a.{ending}" for ending in ("json", "npz", "png", "txt")]
    files.write_json(paths[0], {**SETTINGS, "result": 1.5})
    pictures.save_arrays(paths[1], images=PIXELS, **SETTINGS)
    pictures.save_png(paths[2], PIXELS, SETTINGS)
    paths[3].write_text("usage")
    return paths


def test_files_of_the_same_settings_can_be_written_again(written):
    outputs.check(written, SETTINGS)
    for path in written[:3]:
        outputs.check([path], SETTINGS)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("name, value", [("seed", 4), ("temperature", [0.7]), ("span", 2.0)])
def test_files_of_other_settings_are_not_overwritten(written, index, name, value):
    other = {**SETTINGS, name: value}
    order = [written[0], written[index]] if index == 3 else [written[index]]
    with pytest.raises(
        ValueError, match=f"holds another result: {name} is .* in the file and .* now"
    ):
        outputs.check(order, other)
    outputs.check(order, other, overwrite=True)


@pytest.mark.parametrize("name", ["a.npz", "a.png", "a.json", "a.txt"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"no such thing"])
def test_files_of_another_origin_are_not_overwritten(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="was not made by this command"):
        outputs.check([tmp_path / "first.npz", tmp_path / name], SETTINGS)


def test_an_input_is_refused_as_an_output(run, images, tmp_path):
    path, link = tmp_path / "decoded.npz", tmp_path / "link.npz"
    latents = {f"sample_{i:02d}": z for i, z in enumerate(run.encode(images))}
    np.savez(path, images=images, **latents)
    link.symlink_to(path)
    before = path.read_bytes()
    for out in (path, link):
        with pytest.raises(ValueError, match="is an input, so it cannot be an output"):
            encode.encode_run(run, images, out, source=path, overwrite=True)
    with pytest.raises(ValueError, match="is an input, so it cannot be an output"):
        loaded = encode.load_latents(path)
        encode.decode_run(run, loaded, tmp_path, source=path, overwrite=True)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="is an input, so it cannot be an output"):
        outputs.check([path], SETTINGS, inputs=[tmp_path], overwrite=True)  # a folder of inputs


def test_an_evaluation_of_another_seed_has_another_name(run, workdir, commands):
    flags = [f"--workdir={workdir}", "--max_examples=3", "--batch_size=4"]
    for seed, size, code in ((0, 4, 0), (1, 4, 0), (1, 3, 2)):
        flags[2] = f"--batch_size={size}"
        done = commands.run("evaluate", *flags, f"--seed={seed}")
        assert done.returncode == code, done.stderr
    assert "batch_size is 4 in the file and 3 now" in done.stderr
    results = [json.loads(path.read_text()) for path in (workdir / "eval").glob("*_first3*.json")]
    assert sorted(result["seed"] for result in results) == [0, 1]
    assert {result["weights"] for result in results} == {run.state.fingerprint}
