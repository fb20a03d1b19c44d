"""New runs that start from the variables of others: what is copied, and what is refused."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from nvae_jax import build, regularizers, run_directory, train, warm_start
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.checkpoint_reader import CheckpointReader
from nvae_jax.interop import torch_file
from nvae_jax.settings import StartSettings
from nvae_jax.trees import by_name
from tests.conftest import tiny_config
from tests.published import Golden
from tests.test_regularizers import penalties


def config_for(**sections):
    sections["model"] = {"unroll": 1, **sections.get("model", {})}
    return tiny_config(**sections)


def write_source(workdir, config, step=5, bad=()):
    """Writes a run with a checkpoint of random numbers and returns them; arrays named in `bad` are
    NaN."""
    abstract, rng = build.build(config).abstract_state(), np.random.default_rng(step)

    def array(path, a):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        values = np.full(a.shape, step) if a.dtype == np.int32 else rng.normal(0, 0.1, a.shape)
        values = 1 + abs(values) if name.endswith("/var") else values
        values = np.full(a.shape, np.nan) if name in bad else values
        return jax.device_put(values.astype(a.dtype), a.sharding)

    state = jax.tree_util.tree_map_with_path(array, abstract)
    workdir.mkdir(exist_ok=True)
    run_directory.save_config(workdir, config)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, {"step": step, "num_examples": 1500})
    return by_name(state.stored())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(workdir, {name: array}) of a run with a moving average."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    return workdir, write_source(workdir, config_for(train={"ema_decay": 0.9}))


def read(config, workdir, init_from, **options):
    experiment = build.build(config)
    start = StartSettings(init_from=str(init_from), **options)
    return warm_start.read(dataclasses.replace(experiment, start=start), workdir)


def zeros(config):
    """A training state of zeros."""
    abstract = build.build(config).abstract_state()
    return jax.tree.map(lambda a: jax.device_put(np.zeros(a.shape, a.dtype), a.sharding), abstract)


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def part(arrays, *fields):
    return {name: a for name, a in arrays.items() if name.partition("/")[0] in fields}


def test_variables_are_copied_and_the_optimiser_starts_anew(source, tmp_path):
    warm = read(config_for(), tmp_path, source[0])
    assert warm.step == 5 and not warm.fresh and not warm.unused and warm.has_spectral_vectors
    found = by_name(warm.apply_to(zeros(config_for())).stored())
    ours = ("params", "batch_stats", "spectral")
    assert_same(part(found, *ours), part(source[1], *ours))
    assert not any(np.any(a) for a in part(found, "opt_state", "step", "key").values())


def test_with_init_optimizer_moments_are_copied_and_the_schedule_starts_anew(source, tmp_path):
    warm = read(config_for(), tmp_path, f"{source[0]}@5", init_optimizer=True)
    found = by_name(warm.apply_to(zeros(config_for())).stored())
    moments, expected = part(found, "opt_state"), part(source[1], "opt_state")
    assert moments.pop("opt_state/2/count") == 0 and expected.pop("opt_state/2/count") == 5
    assert_same(moments, expected)
    assert found["opt_state/1/count"] == 5 and found["step"] == 0


def test_averages_are_copied_or_start_as_the_variables(source, tmp_path):
    averaged = config_for(train={"ema_decay": 0.5})
    found = by_name(read(averaged, tmp_path, source[0]).apply_to(zeros(averaged)).stored())
    assert_same(part(found, "average"), part(source[1], "average"))
    plain = tmp_path / "plain"
    arrays = write_source(plain, config_for())
    found = by_name(read(averaged, tmp_path, plain).apply_to(zeros(averaged)).stored())
    variables = part(arrays, "params", "batch_stats")
    assert_same(part(found, "average"), {f"average/{name}": a for name, a in variables.items()})


HEAD = {"likelihood": "gaussian"}
GROUPS = {"num_groups": 3, "adaptive_groups": False}


@pytest.mark.parametrize(
    ("model", "message", "fresh"),
    [
        (
            HEAD,
            r"\d of \d+ arrays do not fit: params/image_head/.* is \(.*\) in the source and "
            r"\(.*\) in this run; .*set train.init_differences=fresh",
            {"params/image_head"},
        ),
        (
            GROUPS,
            r"\d+ of \d+ arrays do not fit: .* is \(2,.* in the source and \(3,.* in this run; "
            r".*; and \d+ more: ",
            {"params/bottom_up/scale_0", "params/top_down/scale_1", "batch_stats/top_down/scale_0"},
        ),
    ],
)
def test_arrays_of_other_shapes_are_refused_or_start_anew(source, tmp_path, model, message, fresh):
    config = config_for(model=model)
    with pytest.raises(ValueError, match=message) as caught:
        read(config, tmp_path, source[0])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    warm = read(config, tmp_path, source[0], init_differences="fresh")
    assert fresh <= {
        "/".join(name.split("/")[: len(one.split("/"))]) for name in warm.fresh for one in fresh
    }
    assert warm.fresh[0] in warm.describe() and "initialised afresh" in warm.describe()
    state = zeros(config)
    found, wanted = (by_name(s.stored()) for s in (warm.apply_to(state), state))
    variables = part(found, "params", "batch_stats")
    taken = {name: a for name, a in variables.items() if name not in warm.fresh}
    assert len(taken) > 10
    assert_same(taken, {name: source[1][name] for name in taken})
    assert_same({n: variables[n] for n in warm.fresh}, {n: wanted[n] for n in warm.fresh})
    assert {n: a.shape for n, a in found.items()} == {n: a.shape for n, a in wanted.items()}


def test_arrays_that_the_new_run_does_not_use_are_refused_or_named(source, tmp_path):
    config = config_for(model={"squeeze_excitation": False})
    with pytest.raises(ValueError, match="/se/.* in the source and not in this run"):
        read(config, tmp_path, source[0])
    warm = read(config, tmp_path, source[0], init_differences="fresh")
    assert warm.unused and all("/se/" in name for name in warm.unused) and not warm.fresh
    assert "not used: " in warm.describe()
    other = config_for(model={"encoder_width": 12, "decoder_width": 12, "latent_channels": 5})
    with pytest.raises(ValueError, match="none of its parameters fits"):
        read(other, tmp_path, tmp_path / write_tiny(tmp_path), init_differences="fresh")


def write_tiny(tmp_path):
    """Writes a run whose arrays have other shapes."""
    run_directory.save_config(tmp_path, config_for())
    state = zeros(config_for())
    state = state.replace(params={"alone": jax.numpy.zeros(1)}, batch_stats={})
    (tmp_path / "tiny").mkdir()
    run_directory.save_config(tmp_path / "tiny", config_for())
    with Checkpoints(tmp_path / "tiny") as checkpoints:
        checkpoints.save(state, {"step": 0, "num_examples": 3})
    return "tiny"


def test_a_run_can_start_from_a_published_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    golden = Golden("bernoulli_2scale")
    path = tmp_path / "published.pt"
    content = {"state_dict": {n: torch.tensor(a) for n, a in golden.state.items()}}
    torch.save({**content, "args": dict(golden.args), "global_step": 7}, path)
    config, variables = warm_start.torch_checkpoint.convert_state(
        torch_file.read(path).state, golden.args
    )
    warm = read(config, tmp_path, path)
    assert warm.step == 7 and not warm.fresh and not warm.has_spectral_vectors
    assert_same(warm.arrays, by_name(variables))
    for init_from, options, message in [
        (path, {"init_optimizer": True}, "has no optimiser state for init_optimizer"),
        (f"{path}@3", {}, "has only one checkpoint"),
        (tmp_path / "absent.pt", {}, "there is no file .*absent.pt"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(config, tmp_path, init_from, **options)
    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match="is not a PyTorch checkpoint"):
        read(config, tmp_path, path)


def test_invalid_sources_are_refused(source, tmp_path):
    def refused(init_from, message):
        with pytest.raises(ValueError, match=message) as caught:
            read(config_for(), tmp_path / "new", init_from)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()

    refused(
        tmp_path / "absent", "neither a run directory nor a published .pt file: it does not exist"
    )
    refused(tmp_path, "neither a run directory nor a published .pt file$")
    refused(f"{source[0]}@6", "has no checkpoint of step 6; it has 5")
    refused(f"{source[0]}@best", "there is no best one")
    refused("az://bucket/run", "az:// is not supported")
    with pytest.raises(ValueError, match="this is the run's own folder"):
        read(config_for(), source[0], source[0])
    empty = tmp_path / "empty"
    empty.mkdir()
    run_directory.save_config(empty, config_for())
    refused(empty, "has no checkpoint yet")
    nan = tmp_path / "nan"
    write_source(nan, config_for(), bad=["params/image_head/bias"])
    refused(nan, r"NaN or infinity in 1 array\(s\) of step 5, first params/image_head/bias")
    damaged = shutil.copytree(nan, tmp_path / "damaged")
    shutil.rmtree(damaged / "checkpoints" / "5" / "state")
    refused(damaged, "no checkpoint in .* can be read .step 5: ")


def test_the_settings_of_a_start_are_checked():
    with pytest.raises(ValueError, match="init_differences is 'some'; it must be one of: refuse, "):
        build.build_start(config_for(train={"init_differences": "some"}))
    with pytest.raises(ValueError, match="init_optimizer needs the other run: name it with"):
        build.build_start(config_for(train={"init_optimizer": True}))
    assert warm_start.parse("a@b/run@best")[1] == "best"
    assert warm_start.parse("a@b/run")[1] == "latest" and warm_start.parse("run@12")[1] == 12


def test_a_run_needs_its_source_only_at_the_start(tmp_path, monkeypatch):
    """An interrupted run is resumed after its source was deleted, with the same result."""
    sections = {"train": {"num_steps": 2, "batch_size": 16}, "checkpoint": {"every_steps": 0}}
    config = config_for(model={"num_scales": 1}, **sections)
    write_source(tmp_path / "source", config)
    config.train.init_from = f"{tmp_path / 'source'}@5"
    train.train(config, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["train"]["init_from"] == config.train.init_from
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "2")
    shutil.rmtree(tmp_path / "source")
    monkeypatch.setattr(warm_start, "read", lambda *_: pytest.fail("read again"))
    train.train(None, tmp_path / "run")
    train.train(None, tmp_path / "cut")
    states = []
    for name in ("run", "cut"):
        checkpoints = CheckpointReader(tmp_path / name)
        states.append(checkpoints.restore(build.build(config).abstract_state()))
    assert int(states[0][0].step) == 2 and states[0][1] == states[1][1]
    jax.tree.map(np.testing.assert_array_equal, *(state for state, _ in states))


def test_when_only_parameters_are_copied_the_power_iteration_starts_anew(tiny):
    experiment, state, _ = tiny
    other = jax.tree.map(
        lambda a: a + 0.1 * np.cos(np.arange(a.size)).reshape(a.shape), state.params
    )
    state = experiment.settle_spectral_vectors(state.replace(params=other))
    penalty = partial(penalties(experiment.model), other, state.spectral)
    np.testing.assert_allclose(penalty(regularizers.ROUNDS), penalty(400), rtol=2e-3)
