"""What a run sees in its own numbers."""

import math
import re
from pathlib import Path

import pytest

from greats_jax.errors import ConfigError, RunError
from greats_jax.training.config import GuardConfig, ModelConfig, TrainConfig
from greats_jax.training.config_loading import load_config
from greats_jax.training.events import Evaluated, Started, Stepped
from greats_jax.training.guards import Guard
from greats_jax.training.resolving import resolve


def stepped(step, loss=2.0, skipped=0, rejected=0, rejected_validation=0):
    return Stepped(
        step,
        {
            "loss": loss,
            "skipped": skipped,
            "rejected_candidates": rejected,
            "rejected_validation": rejected_validation,
        },
    )


def skipped(step, rejected=8, micro_batches=1):
    return stepped(step, math.nan, micro_batches, rejected)


def finite(loss):
    return loss if math.isfinite(loss) else None


def notices(guard, events):
    return [text for event in events if (text := guard.check(event)) is not None]


def test_updates_skipped_in_a_row_stop_the_run_and_name_the_last_good_checkpoint():
    """Update 7 was made, and may have made the weights what they are: the checkpoint of 7 is not known to be good."""
    guard = Guard(GuardConfig(skipped_in_a_row=3), checkpoints=lambda: [7, 4, 2])
    assert notices(guard, map(stepped, range(1, 8))) == []
    [notice] = notices(guard, map(skipped, (8, 9)))
    assert notice.startswith("update 8 was skipped: 8 candidates")
    with pytest.raises(
        RunError, match=r"last 3 updates, up to 10, .* 24 candidates .* checkpoint is that of update 4:"
    ):
        guard.check(skipped(10))


def test_an_update_that_is_made_ends_the_row():
    guard = Guard(GuardConfig(skipped_in_a_row=2))
    for step in range(1, 20, 2):
        guard.check(skipped(step))
        assert not guard.sound
        guard.check(stepped(step + 1))
        assert guard.sound


def test_an_update_of_which_one_micro_batch_is_left_is_not_skipped():
    guard = Guard(GuardConfig(skipped_in_a_row=1), accumulate=2)
    guard.check(stepped(1, skipped=1, rejected=8))
    with pytest.raises(RunError, match="no checkpoint from before update 1"):
        guard.check(skipped(2, micro_batches=2))


def test_a_skipped_update_without_anything_rejected_has_no_labels():
    [notice] = notices(Guard(GuardConfig()), [skipped(1, rejected=0)])
    assert "no candidate has a label" in notice


def test_validation_rows_that_are_not_finite_are_named():
    [notice] = notices(Guard(GuardConfig()), [stepped(1, math.nan, 1, 0, 4)])
    assert "4 validation rows with a loss or gradient that is not finite" in notice


def test_skipping_is_never_the_end_where_that_is_wished():
    guard = Guard(GuardConfig(skipped_in_a_row=None))
    said = notices(guard, map(skipped, range(1, 121)))
    assert [text.split()[1] for text in said] == ["1", "51", "101"]


def test_a_sudden_loss_is_counted_and_noticed():
    guard = Guard(GuardConfig(loss_spike=3.0))
    [notice] = notices(guard, [*map(stepped, range(1, 11)), stepped(11, 6.5), stepped(12, 7.0), stepped(13)])
    assert "update 11 is 6.5, the median of those before 2" in notice
    assert guard.spikes == 2


@pytest.mark.parametrize(
    "losses", [[2.0] * 9 + [50], [0.001] * 20 + [0.9], [2.0] * 20 + [5.9], [2.0] * 20 + [math.nan]]
)
def test_what_is_no_spike_is_not_called_one(losses):
    """Too early, too small to matter, below the factor, or no number at all."""
    guard = Guard(GuardConfig(loss_spike=3.0))
    assert notices(guard, [stepped(step, loss) for step, loss in enumerate(losses, start=1)]) == []
    assert guard.spikes == 0


def test_a_loss_that_rises_for_good_is_usual_after_a_while():
    guard = Guard(GuardConfig(loss_spike=3.0))
    notices(guard, [stepped(step, 1.0 if step <= 50 else 9.0) for step in range(1, 201)])
    assert guard.spikes == 25  # until half of the fifty before are as high


def test_a_sudden_loss_stops_the_run_where_that_is_wished():
    guard = Guard(GuardConfig(loss_spike=3.0, on_spike="stop"), checkpoints=lambda: [10, 11])
    assert notices(guard, map(stepped, range(1, 11))) == []
    with pytest.raises(RunError, match=r"update 11 is 9, .* the last good checkpoint is that of update 10"):
        guard.check(stepped(11, 9.0))


def test_a_guard_that_remembers_judges_as_if_it_had_been_there():
    """Records hold null where the event had NaN."""
    events = [*map(stepped, range(1, 15)), stepped(15, 50.0), Evaluated(15, {}), *map(skipped, (16, 17))]
    config = GuardConfig(skipped_in_a_row=3, loss_spike=3.0)
    there, late = Guard(config), Guard(config)
    notices(there, events)
    late.remember(
        {"event": "step", "step": event.step, **event.metrics, "loss": finite(event.metrics["loss"])}
        if isinstance(event, Stepped)
        else {"event": "evaluation", "step": event.step}
        for event in events
    )
    assert late.spikes == there.spikes == 1
    for guard in (there, late):
        with pytest.raises(RunError, match=r"up to 18, .* 24 candidates"):
            guard.check(skipped(18))


@pytest.mark.parametrize(
    ("dropped", "says"),
    [
        ({"a": {"no_labels": 30, "cut_away": 71}}, "101 of 201 records .* raise data.max_length"),
        ({"a": {"no_labels": 60}, "b": {"no_labels": 50, "bad": 9}}, "110 of 210 records .* roles and fields"),
        ({"a": {"no_labels": 100, "bad": 500, "in_target": 500}}, None),
    ],
)
def test_a_pool_most_of_which_has_no_label_is_noticed(dropped, says):
    config = TrainConfig(model=ModelConfig("m"))
    event = Started(
        config, Path("run"), steps=5, done=0, trainable=1, total=2, pool=100, sources=("a",), dropped=dropped,
        validation=4, test=4,
    )  # fmt: skip
    [found] = notices(Guard(config.guards), [event]) or [None]
    assert found is says if says is None else re.search(says, found or "")


@pytest.mark.parametrize("override", ["guards.skipped_in_a_row=0", "guards.loss_spike=1", "guards.on_spike=skip"])
def test_a_guard_that_means_nothing_is_refused(config_file, override):
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        resolve(load_config(config_file, [override]))
