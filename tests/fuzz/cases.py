"""All cases: those of the tables, and random mixtures of them."""

import random

from tests.fuzz import flag_cases, input_cases, run_cases, script_cases
from tests.fuzz.case import CALLS, EITHER, READERS, Case


def every(flags_of, options_of, *, count=100, seed=0):
    """{id: case}.

    Args:
      flags_of: {command: {flag: its type, or the list of its choices}}.
      options_of: {script: names of its --name=VALUE options}.
      count: how many mixtures.
      seed: of these.
    """
    found = [*flag_cases.of_flags(flags_of), *flag_cases.of_keys(), *run_cases.of_config_files()]
    found += [
        *run_cases.of_runs(),
        *run_cases.of_starts(),
        *input_cases.of_inputs(),
        *input_cases.of_data(),
    ]
    found += [*input_cases.of_outputs(), *script_cases.of_scripts(options_of)]
    found += mixed(found, count, seed)
    return {case.id: case for case in found}


def mixed(cases, count, seed):
    """Calls of the tools with two errors at once."""
    draw = random.Random(seed)
    wrong = {command: [case for case in cases if case.command == command] for command in READERS}
    for _ in range(count):
        command = draw.choice(READERS)
        one, other = draw.sample(wrong[command], 2)
        flags = (*one.flags, *other.flags[len(CALLS[command].split()) :])
        what = "; ".join(filter(None, (one.what, other.what)))
        yield Case(
            command,
            flags,
            EITHER,
            damage={**one.damage, **other.damage},
            what=what,
            changes=(*one.changes, *other.changes),
        )
