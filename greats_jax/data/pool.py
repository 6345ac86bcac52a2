"""The pool of training examples: every example of every source, tokenized, with random access."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from greats_jax.data.examples import Example

Counts = dict[str, dict[str, int]]
"""Per source: records `read`; those not used because they are `bad`, `not_sampled`, have `no_labels` or have them
`cut_away`; examples `kept`, and how many of them are `truncated`; what the task took out: `held_out`, `in_target`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """Tokenized examples.

    Attributes:
        examples: The examples.
        originals: The record of each as it was read, for export.
        sources: Names of the sources, in the order of their first example.
        source_indices: i32[n]; index into `sources` of each example.
        components: i32[n]; index into `weights`: which configured source each example belongs to.
        weights: Relative share of draws per configured source; None to draw every example equally often.
        counts: What was read, kept and dropped, and why.
        pad_id: Token to pad batches with.
    """

    examples: tuple[Example, ...]
    originals: tuple[Mapping[str, Any], ...]
    sources: tuple[str, ...]
    source_indices: np.ndarray
    components: np.ndarray
    weights: tuple[float, ...] | None
    counts: Counts
    pad_id: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, i32[n]."""
        return np.array([len(example.input_ids) for example in self.examples], np.int32)

    def records(self, index: int) -> Mapping[str, Any]:
        """The record of an example as it was read."""
        return self.originals[index]

    def without(self, ids: Collection[str], reason: str = "removed") -> "Pool":
        """The pool without some examples.

        Args:
            ids: Names of the examples to leave out.
            reason: Name under which they are counted.

        Returns:
            A new pool; this one is unchanged. It may be empty.
        """
        out = set(ids)
        keep = [index for index, example in enumerate(self.examples) if example.id not in out]
        counts = {source: dict(count) for source, count in self.counts.items()}
        for example in self.examples:
            if example.id in out:
                count = counts[example.source]
                count["kept"] -= 1
                count[reason] = count.get(reason, 0) + 1
        return dataclasses.replace(
            self,
            examples=tuple(self.examples[index] for index in keep),
            originals=tuple(self.originals[index] for index in keep),
            source_indices=self.source_indices[keep],
            components=self.components[keep],
            counts=counts,
        )
