import json
import multiprocessing

import pytest

from nvae_jax import run_directory
from tests.conftest import tiny_config


def test_config_survives_the_folder(tmp_path):
    config = tiny_config()
    with run_directory.open_for_training(tmp_path / "run", config):
        pass
    assert run_directory.load_config(tmp_path / "run").to_dict() == config.to_dict()
    with run_directory.open_for_training(tmp_path / "run") as again:
        assert again.to_dict() == config.to_dict()


def test_another_config_is_refused_and_named(tmp_path):
    with run_directory.open_for_training(tmp_path, tiny_config()):
        pass
    other = tiny_config(optimizer={"learning_rate": 0.5})
    with pytest.raises(ValueError, match="optimizer.learning_rate is 0.01 there and 0.5 here"):
        with run_directory.open_for_training(tmp_path, other):
            pass
    assert run_directory.load_config(tmp_path).optimizer.learning_rate == 0.01


def test_reporting_may_change(tmp_path):
    with run_directory.open_for_training(tmp_path, tiny_config()):
        pass
    with run_directory.open_for_training(tmp_path, tiny_config(log={"every_steps": 3})):
        pass
    assert run_directory.load_config(tmp_path).log.every_steps == 3


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and no run directory"):
        with run_directory.open_for_training(tmp_path, tiny_config()):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_no_run_is_named(tmp_path):
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


@pytest.mark.parametrize("text", ["", "{", '{"model": {"no_such_key": 1}}', '{"model": 3}', "[1]"])
def test_a_broken_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json cannot be read"):
        run_directory.load_config(tmp_path)


def test_keys_of_later_versions_take_their_default(tmp_path):
    stored = tiny_config().to_dict()
    del stored["train"]["max_nonfinite_steps"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = run_directory.load_config(tmp_path)
    assert config.train.max_nonfinite_steps == tiny_config().train.max_nonfinite_steps


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
