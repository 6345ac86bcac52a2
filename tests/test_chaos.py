"""Runs killed with SIGKILL at random moments, also while a checkpoint is being written, and gone on with until done.

The short form is part of every run of the tests. The long form kills thirty runs, and prints what was lost to it:

    pytest -m slow -s tests/test_chaos.py
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from runs import OF_THE_CLOCK, Run

INTERVAL = 40
SETTINGS = ["steps=240", "evaluate_every=60", f"checkpoint.every_steps={INTERVAL}"]
VARIANTS = {
    "plain": [],
    "accumulated": ["accumulate=2", "lora.dropout=0.2", "optimizer.schedule=cosine"],
    "cached": ["validation.mode=cached", "validation.refresh_every=7", "validation.per_step=2"],
}


class Death(NamedTuple):
    """A run that was killed: updates it had recorded, and the checkpoint it was writing, if any."""

    recorded: int
    writing: int | None

    def lost(self, went_on_after: int) -> int:
        """Updates to be made again, counted from the newest checkpoint that was begun, or else from the death."""
        return (self.recorded if self.writing is None else self.writing) - went_on_after


class Victim:
    """A run from the command line, begun as often as it takes."""

    def __init__(self, config_file: Path, folder: Path, *overrides: str):
        self.folder = folder
        self._told = folder.with_name(folder.name + ".txt")
        command = [sys.executable, "-m", "greats_jax", "train", str(config_file), *SETTINGS, *overrides]
        self._command = [*command, f"output={folder}", "--resume"]

    def finish(self) -> None:
        """Let it run to its end."""
        assert self._start().wait(timeout=300) == 0, self._told.read_text()

    def kill(self, moment: Callable[["Victim"], None]) -> Death | None:
        """Kill it when `moment` returns; None where it had ended."""
        process = self._start()
        try:
            moment(self)
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            return None
        assert process.returncode == -signal.SIGKILL, self._told.read_text()
        return Death(self.recorded(), max(self.unfinished(), default=None))

    def went_on_after(self) -> int | None:
        """The update that the latest process went on after; None where it had not come to say so."""
        told = self._told.read_text()
        found = re.search(r"going on after update (\d+)", told)
        return int(found[1]) if found else 0 if "step 0: " in told else None

    def under_way(self) -> bool:
        """Whether the process of now has come to its first step, or finds nothing left to do."""
        return "compiling the step" in self._told.read_text() or self.ended()

    def recorded(self) -> int:
        """The last update it has recorded."""
        steps = [record["step"] for record in records(self.folder / "metrics.jsonl") if record["event"] == "step"]
        return max(steps, default=0)

    def length(self) -> int:
        """Bytes of records."""
        return (self.folder / "metrics.jsonl").stat().st_size

    def unfinished(self) -> list[int]:
        """Checkpoints whose writing has begun and not ended."""
        names = os.listdir(self.folder / "checkpoints") if (self.folder / "checkpoints").is_dir() else []
        return [int(name.partition(".")[0]) for name in names if "tmp" in name]

    def ended(self) -> bool:
        """Whether it has come to its end."""
        return (self.folder / "summary.json").exists()

    def _start(self) -> subprocess.Popen:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        with self._told.open("w") as told:
            return subprocess.Popen(self._command, stderr=told, stdout=subprocess.DEVNULL, env=environment)


def wait_for(condition: Callable[[], bool], pause: float = 0.02) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause)


def after(seconds: float) -> Callable[[Victim], None]:
    """So long after the process was started, at whatever it is doing."""
    return lambda victim: time.sleep(seconds)


def at_update(number: int) -> Callable[[Victim], None]:
    """Once it has recorded an update, after which it does others."""

    def moment(victim: Victim) -> None:
        wait_for(victim.under_way)
        wait_for(lambda: victim.recorded() >= number, pause=0.001)

    return moment


def in_training(seconds: float) -> Callable[[Victim], None]:
    """So long after its first step is done."""

    def moment(victim: Victim) -> None:
        wait_for(victim.under_way)
        before = victim.length()
        wait_for(lambda: victim.length() > before or victim.ended(), pause=0.001)
        time.sleep(seconds)

    return moment


def in_a_write(seconds: float) -> Callable[[Victim], None]:
    """So long after it has begun to write a checkpoint."""

    def moment(victim: Victim) -> None:
        left = victim.unfinished()  # by the process that was killed before
        wait_for(victim.under_way)
        wait_for(lambda: bool(set(victim.unfinished()) - set(left)) or victim.ended(), pause=0.0005)
        time.sleep(seconds)

    return moment


def records(path: Path) -> list[dict]:
    """Complete lines of a file; none where there is no file."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def results(folder: Path) -> dict[str, object]:
    """All that two equal runs agree on."""
    metrics = records(folder / "metrics.jsonl")
    return {
        "metrics": [{k: v for k, v in record.items() if k not in OF_THE_CLOCK} for record in metrics],
        "selections": (folder / "selections.jsonl").read_bytes(),
        "weights": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
    }


def test_a_run_killed_twice_is_the_run_that_was_never_killed(config_file, tmp_path):
    never = Run(config_file, tmp_path / "never", *SETTINGS).fit()
    victim = Victim(config_file, tmp_path / "victim")
    for moment in (in_a_write(0.005), at_update(150)):
        assert victim.kill(moment) is not None
    victim.finish()
    assert victim.went_on_after()
    assert results(victim.folder) == results(never.folder)


@pytest.mark.slow
def test_thirty_runs_killed_at_random_moments_are_all_the_runs_that_were_never_killed(config_file, tmp_path):
    rng = random.Random(20)
    expected = {}
    for name, overrides in VARIANTS.items():
        never = Victim(config_file, tmp_path / name, *overrides)
        never.finish()
        expected[name] = results(never.folder)
    equal, lost, deaths = 0, [], []
    for number in range(30):
        name = list(VARIANTS)[number % len(VARIANTS)]
        victim = Victim(config_file, tmp_path / f"victim-{number}", *VARIANTS[name])
        latest: Death | None = None
        for kind, longest in rng.choices(((after, 6.0), (in_training, 0.8), (in_a_write, 0.06)), (1, 2, 2), k=3):
            death = victim.kill(kind(rng.uniform(0, longest)))
            # One that dies before it has said where it goes on from has not come to lose anything.
            if (went_on := victim.went_on_after()) is not None:
                lost += [latest.lost(went_on)] if latest else []
                latest = death
            deaths += [death] if death else []
        victim.finish()
        lost += [latest.lost(victim.went_on_after() or 0)] if latest else []
        equal += results(victim.folder) == expected[name]
    in_writes = sum(death.writing is not None for death in deaths)
    sys.stdout.write(
        f"\n{equal} of 30 runs equal; {len(deaths)} times killed, {in_writes} of them in the writing of a checkpoint; "
        f"at most {max(lost)} updates made again, with {INTERVAL} between checkpoints\n"
    )
    assert equal == 30
    assert in_writes > 0
    assert max(lost) <= INTERVAL
