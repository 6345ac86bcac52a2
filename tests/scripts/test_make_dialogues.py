import json

import pytest


def test_dialogues_differ_and_their_summaries_say_what_they_say(load_program, tmp_path):
    program = load_program("scripts/make_dialogues.py")
    folder = tmp_path / "dialogues"
    program.main(folder)
    rows = {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        for split in ("validation", "test")
    }
    every = [row["dialogue"] for part in rows.values() for row in part]
    assert (len(rows["validation"]), len(rows["test"])) == (40, 200)
    assert len(set(every)) == len(every)
    for row in rows["test"]:
        asker, answerer = (line.split(":")[0] for line in row["dialogue"].splitlines()[:2])
        assert row["summary"].startswith(f"{asker} and {answerer} will ")
        day, hour = row["summary"].rstrip(".").split(" on ")[-1].split(" at ")
        assert day in row["dialogue"]
        assert hour in row["dialogue"]
    with pytest.raises(SystemExit, match="exists"):
        program.main(folder)
