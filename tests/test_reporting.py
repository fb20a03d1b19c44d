from nvae_jax import reporting


def test_a_row_of_nan_is_json(tmp_path):
    with reporting.MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"train/loss": float("nan"), "train/kl": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "train/loss": null, "train/kl": 2.0}\n'
    )


def test_rows_after_the_step_are_dropped(tmp_path):
    with reporting.MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"train/loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "tra')
    with reporting.MetricWriter(tmp_path, step=2):
        pass
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
