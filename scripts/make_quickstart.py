"""Writes the quickstart pool: short instruction examples of seven skills, plus two sources that are wrong on purpose.

The target skill turns the sentence of an order into a record, `qty=3; item=blue mug; to=Oslo; by=Fri`. Six other skills
are correct but irrelevant to it. `swapped` gives prompts the answer of another skill's prompt, `garbled` shuffles the
letters of every word of the answer. Every prompt occurs once in all files, so validation and test are disjoint from the
pool. The output depends only on this file.

    python scripts/make_quickstart.py [FOLDER]
"""

import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SEED = 20240
TARGET = "orders"
POOL_TARGET = 125
POOL_OTHER = 75
VALIDATION = 8
TEST = 40
CORRUPTED = 75  # of each kind

NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
LOOKS = "blue red green white black yellow grey pink small large".split()
ITEMS = (
    "mug lamp chair blanket notebook candle towel vase bowl basket cushion umbrella scarf backpack tent clock shelf "
    "knife box brush dish bucket kettle mirror kite helmet jacket poster stool tray"
).split()
IRREGULAR = {"scarf": "scarves", "shelf": "shelves", "knife": "knives"}
CITIES = (
    "Oslo Paris Rome Berlin Madrid Lisbon Vienna Prague Dublin London Boston Chicago Denver Seattle Toronto Tokyo "
    "Delhi Cairo Nairobi Sydney Lima Athens Warsaw Geneva"
).split()
NAMES = (
    "Anna Ben Carla David Emma Farid Grace Hugo Ines Jonas Kofi Lena Maya Nils Omar Priya Rosa Sam Tara Yuki".split()
)
ORDER_ASKS = ("Record this order: ", "Order to record: ", "Make a record: ")
ORDERS = (
    "Please send {order} to {city} by {day}.",
    "Can you ship {order} to our {city} office by {day}?",
    "{name} in {city} wants {order} by {day}.",
    "We need {order} in {city}, no later than {day}.",
    "The {city} team needs {order} by {day}.",
    "{name} asks for {order}; deliver to {city} by {day}.",
    "By {day} the {city} shop should have {order}.",
    "I would like {order} sent to {city} by {day}.",
    "{order}, please, to {city}, by {day} at the latest.",
    "Our {city} branch must get {order} by {day}.",
)

THINGS = "apples books coins stamps pencils shells marbles cards eggs tickets buttons pears".split()

CAPITALS = {
    "Norway": "Oslo", "France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Ireland": "Dublin", "Greece": "Athens", "Poland": "Warsaw", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Hungary": "Budapest", "Belgium": "Brussels", "Japan": "Tokyo",
    "China": "Beijing", "Thailand": "Bangkok", "Egypt": "Cairo", "Kenya": "Nairobi", "Ghana": "Accra",
    "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Australia": "Canberra",
    "Iceland": "Reykjavik", "Turkey": "Ankara", "Iraq": "Baghdad", "Nepal": "Kathmandu",
}  # fmt: skip
SYMBOLS = {
    "hydrogen": "H", "helium": "He", "carbon": "C", "nitrogen": "N", "oxygen": "O", "sodium": "Na", "magnesium": "Mg",
    "aluminium": "Al", "silicon": "Si", "sulfur": "S", "chlorine": "Cl", "potassium": "K", "calcium": "Ca",
    "iron": "Fe", "copper": "Cu", "zinc": "Zn", "silver": "Ag", "tin": "Sn", "gold": "Au", "lead": "Pb",
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "goat": "kid", "pig": "piglet",
    "lion": "cub", "duck": "duckling", "goose": "gosling", "deer": "fawn", "kangaroo": "joey", "frog": "tadpole",
    "swan": "cygnet", "hen": "chick",
}  # fmt: skip

PAST = {
    "walks to the park": "walked to the park", "reads the letter": "read the letter", "eats an apple": "ate an apple",
    "drinks cold water": "drank cold water", "writes a short poem": "wrote a short poem", "sings a song": "sang a song",
    "runs to the station": "ran to the station", "buys fresh bread": "bought fresh bread",
    "drives to the lake": "drove to the lake", "opens the window": "opened the window",
    "closes the door": "closed the door", "swims in the sea": "swam in the sea", "builds a wall": "built a wall",
    "brings some flowers": "brought some flowers", "takes the bus": "took the bus", "sees a rainbow": "saw a rainbow",
    "teaches a class": "taught a class", "plays the piano": "played the piano", "cleans the car": "cleaned the car",
    "finds a key": "found a key", "loses a glove": "lost a glove", "cooks dinner": "cooked dinner",
    "draws a map": "drew a map", "throws the ball": "threw the ball", "wins the race": "won the race",
}  # fmt: skip
WHO = ("She", "He", "My sister", "The teacher", "Our neighbour", "The boy", "My uncle", "Clara")

OPPOSITES = [
    pair.split("/")
    for pair in (
        "hot/cold big/small fast/slow happy/sad early/late open/closed full/empty light/dark old/young loud/quiet "
        "wet/dry strong/weak rich/poor easy/difficult clean/dirty near/far high/low long/short thick/thin "
        "wide/narrow deep/shallow hard/soft sweet/bitter brave/cowardly safe/dangerous true/false first/last "
        "always/never up/down left/right inside/outside above/below before/after start/finish buy/sell win/lose "
        "push/pull arrive/depart remember/forget accept/refuse"
    ).split()
]
OPPOSITE_ASKS = (
    "What is the opposite of '{word}'?",
    "Give the opposite of the word '{word}'.",
    "Which word means the opposite of '{word}'?",
)

WORDS = (
    "apple bread cloud desk engine forest garden hammer island jungle kettle ladder meadow needle orange pencil "
    "quilt river saddle tunnel urn valley window yarn zebra anchor button candle donkey eagle feather guitar "
    "honey insect jacket"
).split()

REVIEWED = "film concert tour book museum game show play course cruise festival exhibition".split()
PRAISE = ("was wonderful", "was better than we hoped", "made my day", "was a real pleasure", "was simply excellent")
BLAME = (
    "was a waste of money",
    "was terrible",
    "was a big disappointment",
    "was far too expensive",
    "was not worth it",
)
AFTER_PRAISE = ("I would recommend it to anyone.", "We loved it.", "I am so glad I chose it.")
AFTER_BLAME = ("I want my money back.", "I would not recommend it.", "Never again.")


class Example(NamedTuple):
    """One prompt and its answer."""

    prompt: str
    answer: str


def plural(item: str) -> str:
    """The plural of one of ITEMS."""
    return IRREGULAR.get(item, item + ("es" if item.endswith(("x", "sh")) else "s"))


def orders(rng: random.Random) -> Iterator[Example]:
    """The target skill; no two examples share number, look, item and city."""
    seen = set()
    while True:
        number = rng.choice(range(1, 13))
        look, item, city = rng.choice(LOOKS), rng.choice(ITEMS), rng.choice(CITIES)
        if (number, look, item, city) in seen:
            continue
        seen.add((number, look, item, city))
        day, name = rng.choice(DAYS), rng.choice(NAMES)
        order = f"{NUMBERS[number - 1]} {look} {item if number == 1 else plural(item)}"
        sentence = rng.choice(ORDERS).format(order=order, city=city, day=day, name=name)
        prompt = rng.choice(ORDER_ASKS) + sentence[0].upper() + sentence[1:]
        yield Example(prompt, f"qty={number}; item={look} {item}; to={city}; by={day[:3]}")


def arithmetic(rng: random.Random) -> Iterator[Example]:
    """Word problems with one addition, subtraction or multiplication."""
    while True:
        name, things = rng.choice(NAMES), rng.choice(THINGS)
        a, b = rng.randint(5, 20), rng.randint(2, 9)
        kind = rng.randrange(3)
        if kind == 0:
            prompt = f"{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?"
            yield Example(prompt, f"{name} has {a + b} {things} now.")
        elif kind == 1:
            prompt = f"{name} had {a + b} {things} and gave away {b}. How many {things} are left?"
            yield Example(prompt, f"There are {a} {things} left.")
        else:
            prompt = f"There are {a} boxes with {b} {things} in each. How many {things} are there?"
            yield Example(prompt, f"There are {a * b} {things}.")


def facts(rng: random.Random) -> Iterator[Example]:
    """Capitals, chemical symbols and the names of young animals."""
    found = []
    for land, city in CAPITALS.items():
        answer = f"The capital of {land} is {city}."
        found += [Example(f"What is the capital of {land}?", answer), Example(f"Name the capital of {land}.", answer)]
    for element, symbol in SYMBOLS.items():
        answer = f"The chemical symbol for {element} is {symbol}."
        found.append(Example(f"What is the chemical symbol for {element}?", answer))
        found.append(Example(f"Give the chemical symbol for {element}.", answer))
    for animal, young in YOUNG.items():
        found.append(Example(f"What is a young {animal} called?", f"A young {animal} is called a {young}."))
    return shuffled(rng, found)


def past_tense(rng: random.Random) -> Iterator[Example]:
    """A sentence in the present tense to be put in the past tense."""
    asks = ("Put this in the past tense: ", "Rewrite in the past tense: ")
    found = [
        Example(f"{ask}{who} {now}.", f"{who} {then}.")
        for (now, then), who, ask in itertools.product(PAST.items(), WHO, asks)
    ]
    return shuffled(rng, found)


def opposites(rng: random.Random) -> Iterator[Example]:
    """The opposite of a word."""
    words = OPPOSITES + [pair[::-1] for pair in OPPOSITES]
    found = [
        Example(ask.format(word=word), f"The opposite of {word} is {other}.")
        for (word, other), ask in itertools.product(words, OPPOSITE_ASKS)
    ]
    return shuffled(rng, found)


def sorting(rng: random.Random) -> Iterator[Example]:
    """Three or four words to be put in alphabetical order."""
    while True:
        words = rng.sample(WORDS, rng.choice((3, 4)))
        if words != sorted(words):
            yield Example(f"Sort these words by the alphabet: {', '.join(words)}", ", ".join(sorted(words)))


def sentiment(rng: random.Random) -> Iterator[Example]:
    """A review to be called positive or negative."""
    found = []
    for verdicts, tails, answer in ((PRAISE, AFTER_PRAISE, "Positive."), (BLAME, AFTER_BLAME, "Negative.")):
        for thing, verdict, tail in itertools.product(REVIEWED, verdicts, tails):
            found.append(Example(f"Is this review positive or negative? The {thing} {verdict}. {tail}", answer))
    return shuffled(rng, found)


SKILLS: dict[str, Callable[[random.Random], Iterator[Example]]] = {
    TARGET: orders,
    "arithmetic": arithmetic,
    "facts": facts,
    "past_tense": past_tense,
    "opposites": opposites,
    "sorting": sorting,
    "sentiment": sentiment,
}


def shuffled(rng: random.Random, examples: list[Example]) -> Iterator[Example]:
    """The examples in a random order."""
    rng.shuffle(examples)
    return iter(examples)


def swapped(examples: list[list[Example]]) -> list[Example]:
    """Prompts with the answer of another skill's example; examples: one list per skill, of equal lengths."""
    skills = len(examples)
    found = []
    for row, group in enumerate(zip(*examples, strict=True)):
        shift = 1 + row % (skills - 1)
        found += [Example(e.prompt, group[(i + shift) % skills].answer) for i, e in enumerate(group)]
    return found


def garbled(rng: random.Random, example: Example) -> Example:
    """The example with the letters of every word of its answer shuffled; never the answer itself."""
    while True:
        words = ["".join(rng.sample(word, len(word))) for word in example.answer.split()]
        if " ".join(words) != example.answer:
            return Example(example.prompt, " ".join(words))


def build() -> dict[str, list[Example]]:
    """Every file of the quickstart, by name, without suffix."""
    streams = {name: unique(make(random.Random(f"{SEED}-{name}"))) for name, make in SKILLS.items()}
    files = {name: take(s, POOL_TARGET if name == TARGET else POOL_OTHER) for name, s in streams.items()}
    rng = random.Random(f"{SEED}-corrupted")
    rounds = -(-CORRUPTED // len(streams))
    files["swapped"] = swapped([take(s, rounds) for s in streams.values()])
    files["garbled"] = [garbled(rng, e) for s in streams.values() for e in take(s, rounds)]
    for name in ("swapped", "garbled"):
        rng.shuffle(files[name])
        del files[name][CORRUPTED:]
    files["target_validation"] = take(streams[TARGET], VALIDATION)
    files["target_test"] = take(streams[TARGET], TEST)
    return files


def take(stream: Iterator[Example], count: int) -> list[Example]:
    """The next `count` examples; raises ValueError when the vocabulary is too small for them."""
    found = list(itertools.islice(stream, count))
    if len(found) < count:
        raise ValueError(f"a skill has only {len(found)} of {count} examples: give it more vocabulary")
    return found


def unique(stream: Iterator[Example]) -> Iterator[Example]:
    """The stream without repeated prompts."""
    seen = set()
    for example in stream:
        if example.prompt not in seen:
            seen.add(example.prompt)
            yield example


def record(name: str, number: int, example: Example) -> str:
    """One line of JSON in the `messages` format."""
    messages = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]
    return json.dumps({"id": f"{name}-{number:03d}", "messages": messages})


def main(folder: Path) -> None:
    """Writes one JSONL file per source into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in build().items():
        lines = [record(name, number, example) + "\n" for number, example in enumerate(examples)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(lines)} examples")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "configs" / "quickstart")
