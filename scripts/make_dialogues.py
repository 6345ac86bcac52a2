"""Writes short dialogues with their summaries, in the columns of SAMSum: python scripts/make_dialogues.py FOLDER.

A stand-in for a machine that cannot fetch SAMSum. Two people arrange something; the summary says what, where and when.
The output depends only on this file.
"""

import argparse
import json
import random
from pathlib import Path

NAMES = "Anna Ben Carla David Emma Farid Grace Hugo Ines Jonas Lena Maya Nils Omar Rosa Sam Tara Tim Lily Tom".split()
DOINGS = {
    "play football": "in the park",
    "eat lunch": "at the cafe",
    "see a film": "at the cinema",
    "read books": "in the library",
    "swim": "at the lake",
    "paint the fence": "in the garden",
    "bake a cake": "at home",
    "feed the ducks": "at the pond",
    "buy apples": "at the market",
    "fix the bike": "in the garage",
    "fly a kite": "on the hill",
    "watch the train": "at the station",
}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
HOURS = "one two three four five six seven eight nine ten".split()
OPENINGS = ("Hi {b}! Do you want to {doing}?", "Hello {b}, shall we {doing}?", "{b}, I want to {doing}. Will you come?")
ANSWERS = ("Yes, I do! When?", "Good idea. When?", "I would love to. What day?", "Sure! When shall we meet?")
WHENS = ("On {day} at {hour}.", "{day}, at {hour}?", "Let us meet on {day} at {hour}.")
CLOSINGS = ("See you then!", "I will be there.", "Fine with me.", "Great, bye!")


def dialogue(rng: random.Random) -> dict[str, str]:
    """One dialogue and its summary."""
    a, b = rng.sample(NAMES, 2)
    doing, place = rng.choice(list(DOINGS.items()))
    day, hour = rng.choice(DAYS), rng.choice(HOURS)
    words = {"a": a, "b": b, "doing": doing, "day": day, "hour": hour}
    turns = [(a, rng.choice(OPENINGS)), (b, rng.choice(ANSWERS)), (a, rng.choice(WHENS)), (b, rng.choice(CLOSINGS))]
    text = "\n".join(f"{name}: {line.format(**words)}" for name, line in turns)
    return {"dialogue": text, "summary": f"{a} and {b} will {doing} {place} on {day} at {hour}."}


def main(folder: Path) -> None:
    """Write the splits, no dialogue in two of them."""
    if folder.exists():
        raise SystemExit(f"make_dialogues: {folder} exists; name another folder or move it away")
    rng, seen = random.Random(20241), set()
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    for split, count in ("validation", 40), ("test", 200):
        rows = []
        while len(rows) < count:
            row = dialogue(rng)
            if row["dialogue"] not in seen:
                seen.add(row["dialogue"])
                rows.append(row)
        (part / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part.replace(folder)  # half of them are never taken for all
    print(f"240 dialogues: {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write dialogues with summaries, 40 to learn from and 200 to test.")
    parser.add_argument("folder", type=Path, help="the folder to write")
    main(parser.parse_args().folder)
