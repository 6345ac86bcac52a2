"""The arguments of every command. Only the standard library is imported here, so that help is immediate."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from greats_jax import __version__

Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as one line, and can put a long description after its options on demand."""

    def __init__(self, *args: Any, details: Callable[[], str] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._details = details

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse a whole command line; settings may also stand between and after options, which argparse cannot do."""
        arguments, rest = self.parse_known_args(argv)
        settings = [text for text in rest if "=" in text and not text.startswith("-")]
        if rest and (len(settings) < len(rest) or not hasattr(arguments, "overrides")):
            self.error(f"unrecognized arguments: {' '.join(text for text in rest if text not in settings) or rest[0]}")
        if rest:
            arguments.overrides = [*arguments.overrides, *settings]
        return arguments

    def error(self, message: str) -> NoReturn:
        if "unrecognized arguments: -" in message:
            message += "; settings are written key=value, without dashes"
        print(f"greats: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self) -> str:
        return super().format_help() + (f"\n{self._details()}" if self._details else "")


def build_parser() -> _Parser:
    """The parser of `greats`; each command leaves its function in `run`."""
    parser = _Parser(prog="greats", description="Fine-tune language models on the examples that help a target task.")
    parser.add_argument("--version", action="version", version=f"greats {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    train = commands.add_parser(
        "train", help="train a model as a configuration file says", details=_configuration_keys,
        description="Train as CONFIG says with KEY=VALUE laid over it: greats train configs/x.yaml lora.rank=16 seed=1",
    )  # fmt: skip
    _add_config(train)
    train.add_argument(
        "--resume", action="store_true",
        help="go on with the run in the output folder from its newest checkpoint, or begin it where there is none",
    )  # fmt: skip
    train.set_defaults(run=_train)

    plan = commands.add_parser(
        "plan", help="estimate the memory a configuration needs, before anything is loaded",
        description="Estimate what each device needs, for each way of scoring, from the shape of the model alone (its "
        "config.json is enough): greats plan configs/x.yaml --devices 8 --memory 80. Exit code 1 if it is too much.",
    )  # fmt: skip
    _add_config(plan)
    plan.add_argument("--devices", type=_count, help="how many devices there will be (default: those found here)")
    plan.add_argument("--memory", type=_rate, metavar="GIB", help="memory of each (default: what the device reports)")
    plan.set_defaults(run=_plan)

    compare = commands.add_parser(
        "compare", help="run methods and controls with several seeds, and tell what selection gains",
        details=_comparison_keys,
        description="Run every method and control with every seed as CONFIG says, with KEY=VALUE laid over it: greats "
        "compare configs/compare/quickstart.yaml seeds=3 set.steps=20. Stopped and started again, it goes on where it "
        "was. Exit code 1 where a run has failed.",
    )  # fmt: skip
    _add_config(compare)
    compare.set_defaults(run=_compare)

    report = commands.add_parser(
        "report", help="write what runs and comparisons did, chose and cost as one HTML file",
        description="Write one HTML file, with its pictures beside it, of runs and comparisons: greats report "
        "runs/compare-quickstart, or greats report runs/a runs/b --output both.html",
    )  # fmt: skip
    _add_folders(report)
    report.add_argument(
        "--output", metavar="FILE", help="the file (default: report.html in the folder, or here for several)"
    )
    report.set_defaults(run=_report)

    inspect = commands.add_parser("inspect", help="print what greats report writes, in the terminal")
    _add_folders(inspect)
    inspect.set_defaults(run=_inspect)

    evaluate = commands.add_parser(
        "evaluate", help="measure a finished run's model on its task again, or on another",
        description="Measure perplexity, and what the model answers to the questions of a task: greats evaluate "
        "runs/x task.name=mmlu task.subject=all task.shots=5 data.max_length=2048",
    )  # fmt: skip
    _add_run(evaluate)
    _add_overrides(evaluate)
    evaluate.add_argument("--base", action="store_true", help="measure the model as it was before training")
    evaluate.add_argument("--n-test", type=_count, help="test examples (default: as in the run)")
    evaluate.add_argument("--output", metavar="FILE", help="write every answer to a JSON file")
    evaluate.set_defaults(run=_evaluate)

    generate = commands.add_parser("generate", help="let a finished run's model answer a prompt, or a file of prompts")
    _add_run(generate)
    prompts = generate.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", help="one prompt")
    prompts.add_argument("--file", help="one prompt a line, or JSON lines with a field prompt")
    generate.add_argument(
        "--max-tokens", type=_count, help="longest answer, in tokens (default 128, or what the model has room for)"
    )
    generate.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default 0)")
    generate.add_argument("--seed", type=int, default=0, help="seed of the sampling (default 0)")
    generate.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    generate.add_argument("--base", action="store_true", help="answer with the model as it was before training")
    generate.set_defaults(run=_generate)

    export = commands.add_parser("export", help="copy a finished run's adapter, merged weights or chosen examples")
    _add_run(export)
    export.add_argument(
        "what", choices=("adapter", "merged", "chosen"), metavar="WHAT",
        help="adapter (PEFT), merged (Hugging Face model) or chosen (the examples kept, as JSON lines)",
    )  # fmt: skip
    export.add_argument("to", metavar="TO", help="a folder to create (adapter, merged) or a .jsonl file (chosen)")
    export.set_defaults(run=_export)

    analyze = commands.add_parser("analyze", help="tell whether selection can work for a model, data and learning rate")
    analyses = analyze.add_subparsers(title="analyses", required=True, metavar="ANALYSIS", parser_class=_Parser)
    taylor = analyses.add_parser(
        "taylor", help="compare predicted with actual changes of the validation loss",
        description="Step along random subsets of a few batches and compare the change of the validation loss with "
        "what scores predict: greats analyze taylor configs/x.yaml optimizer.learning_rate=1e-3 --after 20",
    )  # fmt: skip
    _add_config(taylor)
    taylor.add_argument("--subsets", type=_count, default=200, help="subsets in all (default 200)")
    taylor.add_argument("--batches", type=_count, default=4, help="batches they come from (default 4)")
    taylor.add_argument("--after", type=_count_or_none, default=20, help="updates to train for first (default 20)")
    taylor.add_argument("--learning-rate", type=_rate, help="rate of the steps (default: the configuration's peak)")
    taylor.add_argument(
        "--output", metavar="FOLDER", help="folder to create (default: the run folder's name + -taylor)"
    )
    taylor.set_defaults(run=_taylor)

    score = commands.add_parser(
        "score", help="write the scores of a whole pool to a Parquet file",
        description="Score every example of a pool by a rule, at the weights that CONFIG starts from or that RUN ended "
        "with. Stopped and started again, it goes on where it was.",
    )  # fmt: skip
    score.add_argument("source", metavar="CONFIG|RUN", help="a YAML file, or the folder that greats train wrote")
    _add_overrides(score)
    score.add_argument("--method", metavar="RULE", help="a rule or a sum of rules (default: that of the configuration)")
    score.add_argument("--output", metavar="FILE", required=True, help="the table to write, a name ending in .parquet")
    score.add_argument(
        "--checkpoint", metavar="FOLDER", help="weights to score at, with CONFIG: an adapter, a model or a run"
    )
    score.add_argument("--batch", type=_count, help="examples scored at once (default: that of the configuration)")
    score.set_defaults(run=_score)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file; paths in it start at the current directory")
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", default=[], help="a dotted key and its new value; later wins"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="the folder that greats train wrote")


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", metavar="FOLDER", nargs="+", help="a run, a comparison, or a folder that holds several runs"
    )


def _count(text: str) -> int:
    """A positive whole number."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def _count_or_none(text: str) -> int:
    """A whole number, 0 included."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number, 0 or more")
    return int(text)


def _rate(text: str) -> float:
    """A positive number."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return rate


# The commands import jax and transformers: only once one of them has been chosen.
def _train(arguments: argparse.Namespace) -> int:
    from greats_jax.cli.train import train

    return train(arguments.config, arguments.overrides, arguments.resume)


def _compare(arguments: argparse.Namespace) -> int:
    from greats_jax.cli.compare import compare

    return compare(arguments.config, arguments.overrides)


def _plan(arguments: argparse.Namespace) -> int:
    from greats_jax.cli.plan import show_plan

    return show_plan(arguments.config, arguments.overrides, arguments.devices, arguments.memory)


def _report(arguments: argparse.Namespace) -> int:
    from greats_jax.cli.report import report

    return report(arguments.folders, arguments.output)


def _inspect(arguments: argparse.Namespace) -> int:
    from greats_jax.cli.inspect import inspect

    return inspect(arguments.folders)


def _evaluate(arguments: argparse.Namespace) -> int:
    from greats_jax.cli.evaluate import evaluate

    return evaluate(arguments.folder, arguments.overrides, arguments.base, arguments.n_test, arguments.output)


def _generate(arguments: argparse.Namespace) -> int:
    from greats_jax.cli.generate import generate

    return generate(arguments)


def _export(arguments: argparse.Namespace) -> int:
    from greats_jax.cli.export import export

    return export(arguments.folder, arguments.what, arguments.to)


def _taylor(arguments: argparse.Namespace) -> int:
    from greats_jax.cli.analyze import taylor

    return taylor(arguments)


def _score(arguments: argparse.Namespace) -> int:
    from greats_jax.cli.score import score

    return score(arguments)


def _comparison_keys() -> str:
    from greats_jax.cli.quiet import silence_libraries

    silence_libraries()
    from greats_jax.cli.compare import describe_comparison

    return describe_comparison()


def _configuration_keys() -> str:
    from greats_jax.cli.quiet import silence_libraries

    silence_libraries()
    from greats_jax.cli.config_help import describe_config

    return describe_config()
