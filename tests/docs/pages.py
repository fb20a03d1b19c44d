"""The pages, and the commands in them: in ```bash blocks and `inline`."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
# The command within a line, such as after "sbatch --nodes=4" or "local_cluster.sh 2 --".
PYTHON_COMMAND = re.compile(
    r"(?:nvae-jax|python -m nvae_jax|python (?:launch|nvae_jax/commands)/(?=\w+\.py))\s*([a-z]\w*)"
)
SCRIPT = re.compile(r"(?:launch/\w+\.(?:sh|sbatch)|benchmarks/\w+\.py)")


@dataclass(frozen=True)
class Line:
    """A command line of a page."""

    page: str
    text: str

    @property
    def command(self):
        """The command of `nvae-jax` in the line, or None."""
        found = PYTHON_COMMAND.search(self.text)
        return found and found.group(1)

    @property
    def arguments(self):
        """The words after the command."""
        return shlex.split(PYTHON_COMMAND.split(self.text)[-1].removeprefix(".py"), comments=True)

    @property
    def scripts(self):
        """The files of launch/ and benchmarks/ in the line."""
        return SCRIPT.findall(self.text)

    @property
    def script_options(self):
        """The options of a script, without those of the command that it runs."""
        own = SCRIPT.split(self.text)[1].partition(" -- ")[0]
        words = shlex.split(own, comments=True)
        return [word.partition("=")[0] for word in words if word.startswith("--")]


def command_lines(page):
    """Every `Line` of a page that calls a command or script of the project."""
    text = page.read_text()
    blocks = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    spans = [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]
    # Optional parts, which are in [brackets], are checked like the others.
    spans = [span.replace("[", "").replace("]", "").replace("\\|", "|") for span in spans]
    lines = [Line(page.name, text) for text in [*blocks, *spans]]
    return [line for line in lines if line.command or line.scripts]
