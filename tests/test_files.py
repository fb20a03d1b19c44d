import json
from pathlib import Path

import numpy as np

import nvae_jax
from nvae_jax import files


def strict(text):
    """Reads JSON like a parser that refuses NaN."""

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    value = {
        "a": [1.0, float("nan"), (float("-inf"), np.float64("inf"))],
        "b": {"c": 2},
        "d": "NaN",
    }
    expected = {"a": [1.0, None, [None, None]], "b": {"c": 2}, "d": "NaN"}
    assert strict(files.to_json(value)) == expected
    files.write_json(tmp_path / "new" / "value.json", value)
    assert strict((tmp_path / "new" / "value.json").read_text()) == expected


def test_all_json_is_written_by_one_function():
    folder = Path(nvae_jax.__file__).parent
    writing = {path.name for path in folder.rglob("*.py") if "json.dump" in path.read_text()}
    # These send JSON to processes or a page, or put it into a report.
    assert writing - {"processes.py", "server.py", "sections.py"} == {"files.py"}
