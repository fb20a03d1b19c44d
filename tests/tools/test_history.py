"""Metrics over the steps of a run."""

import numpy as np

from nvae_jax import history


def test_columns_are_read_up_to_a_step(tmp_path):
    rows = ['{"step": 1, "a": 2.5, "k_01": 1, "k_00": 3}', '{"step": 4, "a": null, "k_00": 5}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 9, "a": 7}', '{"ste']))
    found = history.read(tmp_path, last_step=5)
    assert {name: values.tolist() for name, (_, values) in found.items()} == {
        "a": [2.5],
        "k_01": [1],
        "k_00": [3, 5],
    }
    np.testing.assert_array_equal(found["k_00"][0], [1, 4])
    assert [steps.tolist() for steps, _ in history.numbered(found, "k")] == [[1, 4], [1]]


def test_a_run_without_metrics_has_no_columns(tmp_path):
    assert history.read(tmp_path) == {}
