"""An invalid call, and what the answer must be."""

import dataclasses
import shlex
import zlib
from collections.abc import Callable

REFUSED, RIGHT, EITHER = (2,), (0,), (0, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
      command: a script of launch/.
      flags: its arguments.
      statuses: the exit statuses that are right.
      names: words of which a refusal must say one.
      damage: what is done to the world first, {path: function of the path}.
      what: this damage in words.
      changes: patterns of files that the call may change, or leave where it is refused.
    """

    command: str
    flags: tuple[str, ...]
    statuses: tuple[int, ...] = REFUSED
    names: tuple[str, ...] = ()
    damage: dict[str, Callable] = dataclasses.field(default_factory=dict, hash=False)
    what: str = ""
    changes: tuple[str, ...] = ()

    def __str__(self):
        words = " ".join(shlex.quote(flag) if len(flag) < 120 else "LONG" for flag in self.flags)
        what = f"  [{self.what}]" if self.what else ""
        line = f"{self.id}  {self.command} {words}{what}".replace("\n", "\\n")
        return line.encode("ascii", "replace").decode()

    @property
    def id(self):
        """The command line that runs this case only."""
        words = "\0".join((self.command, *self.flags, self.what))
        return f"{zlib.crc32(words.encode(errors='surrogateescape')):08x}"


# A valid call of each command. Later flags override earlier ones.
CALLS = {
    "train": "--config=config.py --workdir=new",
    "evaluate": "--workdir=run --max_examples=4",
    "sample": "--workdir=run --out=out --num=2 --norecalibrate_bn",
    "encode": "--workdir=run --out=out.npz --images=images.npz",
    "decode": "--workdir=run --out=out --latents=latents.npz",
    "reconstruct": "--workdir=run --out=out --images=images.npz --num=2",
    "restore": "--workdir=run --out=out --images=images.npz --num=2 --mask=half --steps=2",
    "interpolate": "--workdir=run --out=out --images=images.npz --pairs=1 --steps=3",
    "traverse": "--workdir=run --out=out --images=images.npz --num=2 --steps=3 --group=0",
    "nearest": "--workdir=run --out=out --samples=samples.npz --rows=2",
    "analyze": "--workdir=run --out=out --max_examples=4",
    "report": "--workdir=run --out=out.html --max_examples=4 --num=2 --nonearest",
    "export": "--workdir=run --out=out --norecalibrate_bn --platforms=cpu --batch_size=2",
    "convert_checkpoint": "--torch=model.pt --workdir=new",
    "pull": "digits --workdir=new",
    "push": "pushed --workdir=run",
    "prepare_data": "--name=folder --manual_dir=pictures --data_dir=new --image_size=16",
    "plan": "--config=config.py --devices=1",
}
READERS = [command for command, flags in CALLS.items() if "--workdir=run" in flags]


def call(command, *flags, statuses=REFUSED, **fields):
    """A valid call of a command, changed to an invalid one."""
    return Case(command, (*CALLS[command].split(), *flags), statuses, **fields)
