import json


def test_dialogues_differ_and_their_summaries_say_what_they_say(load_program, tmp_path):
    program = load_program("scripts/make_dialogues.py")
    program.main(tmp_path)
    rows = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
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
