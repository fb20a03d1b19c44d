import json
import multiprocessing

import pytest
from flax import traverse_util

from nvae_jax import build, run_directory, schema
from nvae_jax.configs import base
from nvae_jax.objective import kl_weight
from tests.conftest import tiny_config


def test_a_config_is_saved_and_loaded_unchanged(tmp_path):
    config = tiny_config()
    with run_directory.open_for_training(tmp_path / "run", config):
        pass
    assert run_directory.load_config(tmp_path / "run").to_dict() == config.to_dict()
    with run_directory.open_for_training(tmp_path / "run") as again:
        assert again.to_dict() == config.to_dict()


def begin(folder):
    """Makes the files of a run that has trained a step."""
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')


def test_another_config_is_refused_with_the_difference(tmp_path):
    with run_directory.open_for_training(tmp_path, tiny_config()):
        begin(tmp_path)
    other = tiny_config(optimizer={"learning_rate": 0.5})
    with pytest.raises(ValueError, match="optimizer.learning_rate is 0.01 in the run and 0.5 now"):
        with run_directory.open_for_training(tmp_path, other):
            pass
    assert run_directory.load_config(tmp_path).optimizer.learning_rate == 0.01


def test_the_config_of_a_start_that_failed_before_its_first_step_can_be_replaced(tmp_path):
    with pytest.raises(MemoryError), run_directory.open_for_training(tmp_path, tiny_config()):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "metrics.jsonl").touch()
        raise MemoryError
    other = tiny_config(optimizer={"learning_rate": 0.5})
    with run_directory.open_for_training(tmp_path, other) as config:
        assert config.optimizer.learning_rate == 0.5
    assert run_directory.load_config(tmp_path).optimizer.learning_rate == 0.5


def test_changeable_keys_change_for_one_start_and_not_in_the_file(tmp_path):
    with run_directory.open_for_training(tmp_path, tiny_config()):
        begin(tmp_path)
        written = (tmp_path / "config.json").read_bytes()
    free = {"log": {"every_steps": 3}, "train": {"max_nonfinite_steps": 9}, "model": {"unroll": 2}}
    with run_directory.open_for_training(tmp_path, tiny_config(**free)) as config:
        assert config.log.every_steps == 3 and config.train.max_nonfinite_steps == 9
    assert (tmp_path / "config.json").read_bytes() == written


def test_only_changeable_keys_of_a_run_can_be_changed(tmp_path):
    run_directory.save_config(tmp_path, tiny_config())
    changes = {"data.dir": "/elsewhere", "eval.batch_size": 7, "model.remat": "cell"}
    changed = run_directory.chosen_config(tmp_path, None, changes)
    assert (changed.data.dir, changed.eval.batch_size) == ("/elsewhere", 7)
    assert run_directory.load_config(tmp_path).data.dir == ""
    for changes, message in [
        (
            {"train.num_steps": 7},
            "train.num_steps cannot change: drop it, or name another",
        ),
        ({"data.directory": "x"}, "unknown keys: data.directory"),
        ({"eval.batch_size": "two"}, "eval.batch_size must be an integer from 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_directory.load_config(tmp_path, changes)


def longer(workdir, num_steps, config=None, **changes):
    """Starts a run with --extend, as `train` does."""
    changes = {"train.num_steps": num_steps, **changes}
    chosen = run_directory.chosen_config(workdir, config, changes, extend=True)
    with run_directory.open_for_training(workdir, chosen, extend=True) as config:
        return config


def history(workdir):
    path = workdir / "config_history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def finished(tmp_path):
    """A finished run of six steps."""
    with run_directory.open_for_training(tmp_path, tiny_config()):
        begin(tmp_path)
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    return tmp_path


def test_a_finished_run_can_be_extended_and_keeps_its_schedules(finished):
    first = run_directory.load_config(finished)
    config = longer(finished, 20, **{"data.workers": 1})
    assert (config.train.num_steps, config.objective.schedule_steps) == (20, 6)
    assert config.data.workers == 1
    stored = run_directory.load_config(finished)
    assert (stored.train.num_steps, stored.objective.schedule_steps) == (20, 6)
    assert stored.data.workers == 0  # for that start only
    assert history(finished) == [{"until_step": 6, "config": first.to_dict()}]
    # The same command again, such as after an interruption, also with a config file.
    assert longer(finished, 20) == longer(finished, 20, tiny_config()) == stored
    with run_directory.open_for_training(
        finished, run_directory.chosen_config(finished, tiny_config(train={"num_steps": 20}))
    ) as config:
        assert config == stored
    (finished / "checkpoints" / "20").mkdir()
    assert (
        longer(finished, 30).objective.schedule_steps == 6
    )  # the number of steps of its first start
    assert [row["until_step"] for row in history(finished)] == [6, 20]


def test_invalid_extensions_are_refused(finished):
    before = (finished / "config.json").read_bytes()
    for call, message in [
        (lambda: longer(finished, 5), "a run of 6 steps: --extend cannot shorten it to 5 steps"),
        (
            lambda: longer(finished, 20, **{"optimizer.learning_rate": 0.5}),
            "optimizer.learning_rate is 0.01 in the run and 0.5 now: name another --workdir",
        ),
        (
            lambda: longer(finished, 20, tiny_config(data={"padding": 1})),
            "data.padding is 0 in the run and 1 now",
        ),
        (
            lambda: run_directory.chosen_config(finished, None, {"seed": 1}, extend=True),
            "--extend needs the new number of steps: --config.train.num_steps=N",
        ),
        (
            lambda: run_directory.chosen_config(finished, None, {"train.num_steps": 20}),
            "train.num_steps cannot change: .*; --extend trains a finished run for more steps",
        ),
        (
            lambda: run_directory.open_for_training(
                finished, tiny_config(train={"num_steps": 20})
            ).__enter__(),
            "train.num_steps is 6 in the run and 20 now: .*; --extend trains a finished run",
        ),
        (lambda: longer(finished / "new", 20), "is not a run directory"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    (finished / "checkpoints" / "6").rename(finished / "checkpoints" / "4")
    with pytest.raises(ValueError, match="is at step 4 of 6: --extend needs a finished run"):
        longer(finished, 20)
    assert (finished / "config.json").read_bytes() == before and not history(finished)
    assert not (finished / "new").exists()


def test_a_power_cut_during_an_extension_leaves_the_run_unchanged(finished, monkeypatch):
    before = run_directory.load_config(finished)
    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "save_config", lambda *_: pytest.fail("power cut"))
        with pytest.raises(pytest.fail.Exception):
            longer(finished, 20)
    assert run_directory.load_config(finished) == before and len(history(finished)) == 1
    with run_directory.open_for_training(finished) as config:
        assert config == before
    assert longer(finished, 20).train.num_steps == 20
    assert history(finished) == [{"until_step": 6, "config": before.to_dict()}]


def test_an_extended_run_keeps_its_kl_weight_and_has_a_new_learning_rate_schedule(finished):
    config = longer(finished, 60)
    objective, (_, rate) = build.build_objective(config), build.build_optimizer(config)
    assert kl_weight(6, objective) == 1
    assert kl_weight(6, build.build_objective(tiny_config(train={"num_steps": 60}))) < 1
    _, planned = build.build_optimizer(tiny_config(train={"num_steps": 60}))
    assert rate(6) == planned(6)


def test_every_changeable_key_is_a_key_of_the_config():
    keys = set(schema.DEFAULTS) | set(tiny_config())
    assert set(run_directory.CHANGEABLE) <= keys
    assert not any(
        map(run_directory.is_changeable, ("seed", "version", "data.name", "model.dtype"))
    )


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and not a run directory"):
        with run_directory.open_for_training(tmp_path, tiny_config()):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="is not a run directory: it has no config.json"):
        run_directory.load_config(tmp_path)
    with pytest.raises(ValueError, match="holds no run to resume"):
        with run_directory.open_for_training(tmp_path / "new"):
            pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        with run_directory.open_for_training(tmp_path / "file", tiny_config()):
            pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is not valid JSON, or truncated, at line 1, column 1"),
        ("{", "it is not valid JSON, or truncated, at line 1, column 2"),
        ("[1]", "it is not a JSON object"),
        ("[" * 100_000, "recursion"),
        ("{}", "it lacks checkpoint.every_steps, .* more: "),
        ('{"model": 3}', "it lacks "),
        ('{"version": 99}', "version must be an integer from 0 to"),
        ('{"version": -1}', "version must be an integer from 0 to"),
        ('{"version": "two"}', "version must be an integer from 0 to"),
        ({"model.no_such_key": 1}, "unknown keys: model.no_such_key"),
        ({"train.num_steps": float("nan")}, "train.num_steps must be an integer from 1"),
    ],
)
def test_a_damaged_config_is_an_error_that_names_it(tmp_path, text, message):
    if isinstance(text, dict):
        flat = {**schema.flatten(tiny_config()), **text}
        text = json.dumps(traverse_util.unflatten_dict(flat, sep="."))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json cannot be used: .*{message}"):
        run_directory.load_config(tmp_path)


def test_a_missing_key_is_an_error_and_not_filled_in(tmp_path):
    stored = tiny_config().to_dict()
    del stored["train"]["num_steps"], stored["optimizer"]["epsilon"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="it lacks optimizer.epsilon, train.num_steps: "):
        run_directory.load_config(tmp_path)


def test_configs_of_older_versions_are_converted(tmp_path, monkeypatch):
    """A key that an older version lacked gets the value with which that version computed."""
    before = tiny_config().to_dict()
    del before["version"], before["train"]["ema_decay"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    begin(tmp_path)
    monkeypatch.setitem(run_directory.ADDED, 1, {"train.ema_decay": 0.0})
    config = run_directory.load_config(tmp_path)
    assert config.to_dict() == tiny_config().to_dict() and config.version == base.VERSION
    with run_directory.open_for_training(tmp_path, tiny_config()):
        assert json.loads((tmp_path / "config.json").read_text()) == before


def test_every_version_has_an_entry_of_its_changes():
    told = [*run_directory.ADDED, *run_directory.RENAMED]
    assert sorted(told) == list(range(1, base.VERSION + 1))


def test_renamed_values_of_older_versions_are_converted(tmp_path):
    config = json.loads(tiny_config(model={"implementation": "portable"}).to_json())
    config["version"], config["model"]["implementation"] = 1, "library"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run_directory.load_config(tmp_path).model.implementation == "portable"


def _hold(path, entered, leave):
    with run_directory.open_for_training(path, tiny_config()):
        entered.set()
        leave.wait(60)


def test_a_second_process_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    entered, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, entered, leave))
    process.start()
    try:
        assert entered.wait(60)
        with pytest.raises(ValueError, match="another process is training in"):
            with run_directory.open_for_training(tmp_path, tiny_config()):
                pass
    finally:
        leave.set()
        process.join()
    with run_directory.open_for_training(tmp_path, tiny_config()):
        pass
