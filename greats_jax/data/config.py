"""Settings of the training pool: where its records come from and how they become tokens."""

import dataclasses
import math
from typing import Literal, get_args

from greats_jax.errors import DataError

RecordFormat = Literal["auto", "messages", "alpaca", "prompt_completion", "text"]
Template = Literal["auto", "chat", "tulu"]
LongText = Literal["split", "truncate"]
BadRecordPolicy = Literal["stop", "skip"]

MAX_BUCKETS = 4
"""Every bucket is one more compilation of the training step, and compiling is slower than a little padding."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One place that training records come from.

    Attributes:
        path: A file (.jsonl, .json, .csv, .tsv, .parquet or .txt, each also .gz), a folder of them, a pattern such
            as `data/*.jsonl.gz`, or a Hugging Face data set as `owner/name` or `owner/name:configuration`.
        name: Name of the source in reports. Unset, each file is reported under its own name.
        weight: Share of the candidates to draw from this source, relative to the other weights. Unset (then for every
            source), sources are mixed in proportion to their sizes, so an epoch sees each example once.
        format: Shape of the records; `auto` recognises it record by record.
        split: Split to read of a Hugging Face data set.
        label_field: Field of the record that names its source in reports, in place of `name`: for one file that holds
            several kinds of examples.
    """

    path: str
    name: str | None = None
    weight: float | None = None
    format: RecordFormat = "auto"
    split: str = "train"
    label_field: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise DataError("data source without a path: name a file, a folder, a pattern or a Hugging Face data set")
        check_choice("format", self.format, RecordFormat, f"data source {self.path}")
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight > 0):
            raise DataError(
                f"data source {self.path}: weight is {self.weight}, but must be a positive number; to draw "
                "nothing from a source, leave it out of the list"
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How the pool of training examples is built.

    Attributes:
        sources: Where the records come from.
        template: How a conversation becomes text: `chat` is the tokenizer's chat template, `tulu` the template of LESS
            and Tulu, `auto` the former where the tokenizer has one.
        max_length: Longest example, in tokens; longer ones lose their end.
        long_text: Whether plain text longer than that is cut into several examples (split) or loses its end as well
            (truncate). A .txt file is one text.
        buckets: Number of lengths that batches are padded to, 1 to 4; the training step is compiled once for each.
        percentage: Share of each source to use, in percent, drawn with `seed`. More than 0, at most 100.
        group_by_length: Draw candidates of similar length together. Less padding, but examples then compete only with
            others of their length.
        on_bad_record: `stop` at the first record that cannot be used, or `skip` and count it.
        packing: Not supported: candidates are scored one by one, so each keeps its own row.
        seed: Seed of the subsample that `percentage` draws.
    """

    sources: tuple[SourceConfig, ...] = ()
    template: Template = "auto"
    max_length: int = 512
    long_text: LongText = "split"
    buckets: int = 4
    percentage: float = 100.0
    group_by_length: bool = False
    on_bad_record: BadRecordPolicy = "stop"
    packing: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        if self.packing:
            raise DataError(
                "data.packing is true, but packing joins several examples in one row, and selection scores and drops "
                "single examples: set data.packing to false (data.group_by_length also reduces padding)"
            )
        check_choice("data.template", self.template, Template)
        check_choice("data.long_text", self.long_text, LongText)
        check_choice("data.on_bad_record", self.on_bad_record, BadRecordPolicy)
        if self.max_length < 2:
            raise DataError(f"data.max_length is {self.max_length}, but an example needs at least 2 tokens")
        if not 1 <= self.buckets <= MAX_BUCKETS:
            raise DataError(f"data.buckets is {self.buckets}, but must be 1 to {MAX_BUCKETS}: each is one compilation")
        if not 0 < self.percentage <= 100:
            raise DataError(
                f"data.percentage is {self.percentage}, but must be more than 0 and at most 100 (5 means five percent)"
            )
        if self.seed < 0:
            raise DataError(f"data.seed is {self.seed}, but must not be negative")
        for source in self.sources:
            if not isinstance(source, SourceConfig):
                raise DataError(f"data.sources holds {source!r}: write SourceConfig(path=...) around each path")
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            bare = self.sources[weighted.index(False)].path
            raise DataError(
                f"data source {bare} has no weight, but others have: give every source one, or none of them"
            )


def check_choice(name: str, value: str, choices: object, where: str = "") -> None:
    """Checks a setting that is one word of several.

    Args:
        name: Name of the setting.
        value: Its value.
        choices: A `Literal` type of the words allowed.
        where: What the setting belongs to, for the message.

    Raises:
        DataError: `value` is none of them.
    """
    words = get_args(choices)
    if value not in words:
        place = f"{where}: " if where else ""
        raise DataError(f"{place}{name} is {value!r}, but must be one of {', '.join(words)}")
