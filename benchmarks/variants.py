"""Training steps to time, each with a config, a batch size, changed keys and compiler options."""

import pathlib
import re
from dataclasses import dataclass, field

import jax

from nvae_jax import build, config_file, schema
from nvae_jax.models import remat

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
BATCHES = {"mnist": 200, "cifar10": 32, "celeba64": 16, "ffhq256": 4}
OPTION = "xla_"  # prefix of the names of compiler options


@dataclass(frozen=True)
class Variant:
    """One training step; `changes` are keys of the config, `options` those of the compiler."""

    name: str
    config: str
    batch: int
    changes: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)

    def experiment(self):
        """Builds the experiment for the first device, in bfloat16 unless `changes` has another
        type."""
        config = config_file.load(CONFIGS / f"{self.config}.py")
        fixed = {"model.dtype": "bfloat16", "train.batch_size": self.batch}
        config = build.resolve(schema.changed(config, {**fixed, **self.changes}))
        return build.build(config, jax.devices()[:1])


def published(name, changes, batch):
    """The `Variant` of a published config, at the batch of one device."""
    return Variant(name, name, batch or BATCHES[name], changes)


def by_policy(name, changes, batch):
    """One `Variant` for each policy of rematerialisation."""
    return [
        Variant(
            f"{name} {policy}", name, batch or BATCHES[name], {**changes, "model.remat": policy}
        )
        for policy in remat.POLICIES
    ]


STEPS = {name: lambda *given, name=name: [published(name, *given)] for name in BATCHES}
STEPS["ffhq256"] = lambda *given: by_policy("ffhq256", *given)


def parse(text, changes, batch):
    """Parses text such as NAME:config=mnist,batch=200,model.unroll=5,xla_gpu_autotune_level=2.

    Args:
      text: a comma separates pairs only before KEY=; config and batch are optional.
      changes: changes of keys that the text does not name.
      batch: the default batch size; None takes it from `BATCHES`.

    Raises:
      ValueError: for text that is not KEY=VALUE, or a key that no config has.
    """
    name, _, rest = text.partition(":")
    pairs = dict(_pair(text, pair) for pair in re.split(r",(?=[\w.]+=)", rest) if pair)
    config = pairs.pop("config", "mnist")
    batch = int(pairs.pop("batch", batch or BATCHES.get(config, 32)))
    options = {key: _option(v) for key, v in pairs.items() if key.startswith(OPTION)}
    keys = {key: _value(key, v) for key, v in pairs.items() if key not in options}
    return Variant(name, config, batch, {**changes, **keys}, options)


def _pair(text, pair):
    key, equals, value = pair.partition("=")
    if not equals:
        raise ValueError(f"--variant={text}: {pair!r} is not KEY=VALUE")
    return key, value


def _value(key, text):
    if key not in schema.DEFAULTS:
        raise ValueError(f"--variant: no config has the key {key!r} (see configs/base.py)")
    kind = type(schema.DEFAULTS[key])
    return text.lower() == "true" if kind is bool else kind(text)


def _option(text):
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.lstrip("-").isdigit() else text
