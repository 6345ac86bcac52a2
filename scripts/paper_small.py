"""Makes the small twins of the GREATS paper's figures and tables, and the page that shows them.

    python scripts/paper_small.py             all of them; stopped, the same command goes on
    python scripts/paper_small.py mmlu taylor some of them; the page keeps the others

Reads the configurations below configs/paper and the folder data/ (docs/paper.md says what is in it); writes the runs
below runs/paper-small, pictures below docs/images/paper, and the page docs/paper-results.md.
"""

import argparse
import datetime
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

RUNS, IMAGES, PAGE = Path("runs/paper-small"), Path("docs/images/paper"), Path("docs/paper-results.md")
MADE = {
    "shuffled.jsonl": "scripts/make_noise.py data/text/state_union.txt.gz runs/paper-small/shuffled.jsonl --share 1",
    "dialogues": "scripts/make_dialogues.py runs/paper-small/dialogues",
}
"""Data of the twins' own, and how each is made."""


class Twin(NamedTuple):
    """One figure or table of the paper, made small.

    Attributes:
        title: What it shows.
        command: Arguments of Python that make it.
        pictures: Pictures, as patterns from the twin's folder, and what each shows; of a comparison with a changing
            setting there is one for each value.
        compared: Whether it is a comparison, which goes on where it was stopped and writes its own tables.
    """

    title: str
    command: str
    pictures: dict[str, str]
    compared: bool = True


def _comparison(name: str, title: str, *pictures: str) -> Twin:
    words = {
        "test_loss-steps": "test perplexity by updates",
        "validation_loss-steps": "validation perplexity by updates",
        "test_loss-seconds": "test perplexity by training time",
        "by-source": "sources of what was chosen",
        "settings": "last test perplexity by the changing setting",
    }
    shown = {f"report_files/{file}*.png": f"{title}: {words[file]}" for file in pictures}
    return Twin(title, f"-m greats_jax compare configs/paper/{name}-small.yaml", shown)


TWINS = {
    "mmlu": _comparison("mmlu", "Instruction mix toward subjects of MMLU", "test_loss-steps", "validation_loss-steps"),
    "tydiqa": _comparison("tydiqa", "Instruction mix toward TyDiQA", "test_loss-steps", "validation_loss-steps"),
    "samsum": _comparison("samsum", "Instructions toward summaries", "test_loss-steps", "test_loss-seconds"),
    "pretraining": _comparison(
        "pretraining", "Pretraining a GPT-2", "test_loss-steps", "test_loss-seconds", "validation_loss-steps",
        "by-source",
    ),
    "validation-size": _comparison("validation-size", "How many validation examples", "settings"),
    "taylor": Twin(
        "How well the Taylor terms predict the change of the validation loss",
        "-m greats_jax analyze taylor configs/paper/training/pretraining-small.yaml --after 100 "
        "--output runs/paper-small/taylor",
        {
            "predictions-gradient-descent.png": "Predicted and actual change: gradient descent",
            "predictions-optimizer.png": "Predicted and actual change: AdamW",
        },
        compared=False,
    ),
    "throughput": Twin(
        "Throughput of ghost and direct selection",
        "scripts/benchmark_step.py paper-small --rounds 15",
        {},
        compared=False,
    ),
}  # fmt: skip


def make(name: str) -> None:
    """Make one twin, going on where it was stopped; what it prints at the end is kept in its folder."""
    twin, printed = TWINS[name], RUNS / f"{name}.txt"
    if printed.exists():
        return
    for made, command in MADE.items():
        if not (RUNS / made).exists():
            subprocess.run([sys.executable, *command.split()], check=True)
    part = printed.with_suffix(".part")
    with part.open("w") as file:
        print(_circumstances(), file=file, flush=True)
        subprocess.run([sys.executable, *twin.command.split()], check=True, stdout=file)
    part.replace(printed)


def _circumstances() -> str:
    """Date, commit and machine, in one line."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    made = f" at commit {commit.stdout.strip()}" if commit.returncode == 0 else ""
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}"
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}{made}, {machine}, jax {version('jax')}"


def section(name: str) -> list[str]:
    """The part of the page that shows a twin."""
    twin = TWINS[name]
    circumstances, _, printed = (RUNS / f"{name}.txt").read_text().partition("\n")
    lines = [
        f"## {twin.title}",
        "",
        "```bash",
        f"python {twin.command}".replace("python -m greats_jax", "greats"),
        "```",
        "",
    ]
    lines += [f"Made on {circumstances}.", ""]
    for pattern, text in twin.pictures.items():
        for file in sorted((RUNS / name).glob(pattern)):
            picture = IMAGES / f"{name}-{file.name}"
            picture.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, picture)
            lines += [f"![{text}]({picture.relative_to(PAGE.parent)})", ""]
    if twin.compared:
        lines += [*_lowered((RUNS / name / "summary.md").read_text()), ""]
    else:
        lines += ["```text", printed.strip(), "```", ""]
    return lines


def _lowered(markdown: str) -> list[str]:
    """A page without its title, its headings one level further down."""
    lines = markdown.strip().splitlines()
    return [f"#{line}" if line.startswith("#") else line for line in lines if not line.startswith("# ")]


def page() -> str:
    """The page, of all twins that have been made."""
    made = [name for name in TWINS if (RUNS / f"{name}.txt").exists()]
    head = [
        "# The paper's figures, made small",
        "",
        "Written by `python scripts/paper_small.py`; [The paper's experiments](paper.md) says what each twin stands",
        "for, what differs from the paper, and what the folder `data/` holds that they read. The script also makes",
        "what they read below `runs/`. Perplexities are means over seeds with 95 % intervals; times are to be compared",
        "within a table.",
        "",
    ]
    return "\n".join([*head, *(line for name in made for line in section(name))]).rstrip() + "\n"


def main() -> None:
    """Make what is asked for, then the page."""
    parser = argparse.ArgumentParser(description="Make the small twins of the paper's figures and tables.")
    parser.add_argument("names", nargs="*", choices=[*TWINS, []], metavar="NAME", help=f"of {', '.join(TWINS)}")
    arguments = parser.parse_args()
    if not Path("data").is_dir():
        raise SystemExit("paper_small: there is no folder data here; docs/paper.md says what belongs in it")
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or TWINS:
        try:
            make(name)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"paper_small: {name} did not end (exit code {error.returncode})") from None
        PAGE.write_text(page())
    print(PAGE)


if __name__ == "__main__":
    main()
