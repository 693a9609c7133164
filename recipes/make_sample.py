"""Write the sample that ships with the package: four small tasks in the course's layout, from a seeded grammar.

    python recipes/make_sample.py bert_multitask/sample

Every sentence is made here, from the word lists below; none is of a public data set. A row's label follows from how the
row was made, so the tasks can be learned, and train, dev and test share words and patterns but no row.
"""

import csv
import hashlib
import random
import sys
from pathlib import Path

SPLITS = {"train": 600, "dev": 150, "test": 150}

# Opinions from very bad (0) to very good (4).
OPINIONS = [
    "dreadful, unbearable, insulting, a disaster, painful to sit through, atrocious, a complete mess, worthless, "
    "truly awful, an embarrassment, hopeless, a crime against patience, revolting, the worst of the year",
    "dull, uneven, clumsy, forgettable, rather thin, a little tired, flat, predictable, too long, a bit of a letdown, "
    "half baked, weaker than it should be, not very convincing, slightly irritating",
    "ordinary, about what you expect, passable, standard fare, neither good nor bad, middling, all right, acceptable, "
    "nothing special, fair, neither here nor there, no surprise, of average quality, so-so",
    "pleasant, solid, charming, quite engaging, well judged, enjoyable, rather clever, likeable, mostly convincing, "
    "worth a look, nicely done, better than expected, fairly moving, good fun",
    "superb, breathtaking, unforgettable, a triumph, flawless, simply wonderful, a masterpiece, magnificent, "
    "the best in years, astonishing, pure joy, dazzling, perfect from start to finish, a miracle",
]
OPINIONS = [level.split(", ") for level in OPINIONS]
ASPECTS = (
    "plot, acting, dialogue, soundtrack, ending, pacing, camera work, cast, humor, first half, second hour, "
    "lead performance, script, love story, set design, villain, opening scene, narration, direction, final chase"
).split(", ")
WORKS = (
    "a film about a lighthouse keeper, this courtroom drama, the sequel, a quiet comedy, this space adventure, "
    "the new thriller, a film about two sisters, this detective story, the remake, a story of a failed heist, "
    "this musical, a war picture, the cartoon, a film about a chess player, this road movie"
).split(", ")

# Things to do, each in two wordings; neighbors in the list are alike and make hard negatives.
ACTIVITIES = [
    ("play the guitar", "learn guitar"),
    ("play the piano", "learn piano"),
    ("sing in a choir", "join a choir as a singer"),
    ("bake bread at home", "make homemade bread"),
    ("brew beer at home", "make homemade beer"),
    ("cook for twenty guests", "prepare dinner for twenty people"),
    ("run a marathon", "complete a marathon"),
    ("swim across a lake", "cross a lake by swimming"),
    ("climb a glacier", "go climbing on a glacier"),
    ("speak Portuguese", "learn the Portuguese language"),
    ("read Greek", "learn to read the Greek language"),
    ("translate a novel", "produce a translation of a novel"),
    ("write a novel", "finish writing a novel"),
    ("publish a poem", "get a poem into print"),
    ("repair a bicycle", "fix a broken bike"),
    ("repair a roof", "fix a leaking roof"),
    ("build a wooden table", "make a table out of wood"),
    ("grow tomatoes", "raise tomato plants"),
    ("grow mushrooms", "raise mushrooms in a cellar"),
    ("keep bees", "start beekeeping"),
    ("keep chickens", "raise hens in the yard"),
    ("train a puppy", "teach a young dog to obey"),
    ("open a bakery", "start a bakery business"),
    ("open a bookshop", "start a shop for books"),
    ("sail a small boat", "handle a small sailing boat"),
    ("fly a glider", "pilot a glider"),
    ("write a web browser", "program a web browser"),
    ("design a board game", "invent a board game"),
    ("paint portraits", "do portrait painting"),
    ("restore old photographs", "repair damaged old photos"),
]
QUESTIONS = [
    ["How do I start to {}?", "What is the best way for a beginner to {}?", "What are the first steps to {}?"],
    ["How long does it take to {}?", "How much time does one need to {}?", "How many months must I plan to {}?"],
    ["How much does it cost to {}?", "What is the price one pays to {}?", "How expensive is it to {}?"],
    ["Why is it so hard to {}?", "What makes it difficult to {}?", "Why do most people fail to {}?"],
    ["Am I too old to {} at fifty?", "Can people over fifty {}?", "Is fifty too late an age to {}?"],
    ["What equipment do I need to {}?", "Which tools are necessary to {}?", "What should I buy before I {}?"],
    ["Can I {} without a teacher?", "Is it possible to {} on my own?", "Can somebody {} with no help?"],
    ["Is it dangerous to {}?", "What are the risks if I {}?", "How safe is it to {}?"],
    ["Is it worth it to {}?", "What are the benefits if I {}?", "Why would anyone want to {}?"],
]

# Scenes: who does what, and where; each part in two wordings.
WHO = [
    ("a man", "a guy"), ("a woman", "a lady"), ("a child", "a kid"), ("a nurse", "a hospital nurse"),
    ("an old farmer", "an elderly farmer"), ("a student", "somebody from the college"), ("a dog", "a hound"),
    ("a cat", "a kitten"), ("the police officer", "the cop"), ("a soldier", "a member of the army"),
]  # fmt: skip
DOES = [
    ("is slicing an onion", "cuts an onion"), ("is riding a horse", "sits on a trotting horse"),
    ("is playing with a ball", "plays ball"), ("is sleeping", "is taking a nap"), ("is running fast", "sprints"),
    ("is watching the birds", "looks at some birds"), ("is drinking milk", "drinks a glass of milk"),
    ("is waiting for a train", "stands around until the train comes"), ("is digging a hole", "makes a hole"),
    ("is looking at a map", "studies a map"), ("is singing a song", "sings"),
    ("is jumping over a wall", "leaps a wall"),
]  # fmt: skip
WHERE = [
    ("in the kitchen", "in a kitchen"), ("on the beach", "by the sea"), ("near the station", "close to the station"),
    ("in the garden", "in the back yard"), ("on a snowy hill", "on a hill covered in snow"),
    ("in front of the church", "before the church"), ("in the rain", "while it is raining"),
    ("under a tree", "beneath a tree"), ("at night", "after dark"), ("in a crowded street", "on a busy street"),
]  # fmt: skip
# (who, does, where) the same? -> mean similarity
SIMILARITY = {
    (True, True, True): 4.8, (True, True, False): 3.6, (False, True, True): 3.0, (True, False, True): 2.2,
    (False, True, False): 1.6, (True, False, False): 1.2, (False, False, True): 0.8, (False, False, False): 0.0,
}  # fmt: skip


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def opinion(rng: random.Random, level: int, subject: str) -> str:
    pattern = rng.choice(["{} is {}", "{} was {}", "I found {} {}", "to me {} was {}", "{} turned out to be {}"])
    return pattern.format(subject, rng.choice(OPINIONS[level]))


def sst(rng: random.Random) -> dict:
    """One or two opinions; where they differ by "but", the label lies between them."""
    level = rng.randrange(5)
    first, second = rng.sample(["the " + aspect for aspect in ASPECTS] + WORKS, 2)
    kind = rng.random()
    if kind < 0.4:
        text = opinion(rng, level, first)
    elif kind < 0.7:
        text = f"{opinion(rng, level, first)}, and {opinion(rng, level, second)}"
    else:
        other = min(4, max(0, level + rng.choice([-2, 2])))
        text = f"{opinion(rng, other, first)}, but {opinion(rng, level, second)}"
        level = (level + other) // 2
    return {"sentence": sentence(text), "sentiment": level}


def quora(rng: random.Random) -> dict:
    """Two questions; a paraphrase asks the same about the same activity."""
    activity, question = rng.randrange(len(ACTIVITIES)), rng.randrange(len(QUESTIONS))
    other_activity, other_question = activity, question
    duplicate = rng.random() < 0.45
    if not duplicate and rng.random() < 0.5:
        other_activity = (activity + rng.choice([-2, -1, 1, 2])) % len(ACTIVITIES)
    elif not duplicate:
        other_question = (question + rng.randrange(1, len(QUESTIONS))) % len(QUESTIONS)
    first = rng.choice(QUESTIONS[question]).format(rng.choice(ACTIVITIES[activity]))
    second = first
    while second == first:
        second = rng.choice(QUESTIONS[other_question]).format(rng.choice(ACTIVITIES[other_activity]))
    return {"sentence1": first, "sentence2": second, "is_duplicate": float(duplicate)}


def sts(rng: random.Random) -> dict:
    """Two scenes; the similarity falls with each part that differs, and wobbles as annotators do."""
    same = rng.choice(list(SIMILARITY))
    first, second = [], []
    for kept, part in zip(same, (WHO, DOES, WHERE), strict=True):
        chosen, other = rng.sample(part, 2)
        first.append(rng.choice(chosen))
        second.append(rng.choice(chosen if kept else other))
    score = min(5.0, max(0.0, SIMILARITY[same] + rng.choice([-0.4, -0.2, 0.0, 0.2, 0.4])))
    return {
        "sentence1": sentence(" ".join(first)),
        "sentence2": sentence(" ".join(second)),
        "similarity": round(score, 1),
    }


def cfimdb(rng: random.Random) -> dict:
    """A review of a few opinions; most are good in a positive review, most bad in a negative one."""
    label = rng.randrange(2)
    subjects = rng.sample(["the " + aspect for aspect in ASPECTS], 4)
    levels = [rng.choice([3, 4] if label else [0, 1]) for _ in range(3)]
    levels.insert(rng.randrange(3), rng.choice([1, 2] if label else [2, 3]))
    text = f"I saw {rng.choice(WORKS)} last week. "
    return {
        "sentence": text + " ".join(
            sentence(opinion(rng, level, subject)) for level, subject in zip(levels, subjects, strict=True)
        ),
        "sentiment": label,
    }  # fmt: skip


def write(folder: Path, stem: str, make, seed: int) -> None:
    """Write one task's three files; no row's texts occur twice among them."""
    rng = random.Random(seed)
    seen = set()
    for split, count in SPLITS.items():
        rows = []
        while len(rows) < count:
            row = make(rng)
            texts = tuple(value for value in row.values() if isinstance(value, str))
            if texts not in seen:
                seen.add(texts)
                rows.append({"id": hashlib.sha1(" ".join(texts).encode()).hexdigest()[:16]} | row)
        if split == "test":  # as in the course, the test file shows no labels
            rows = [{key: row[key] for key in list(row)[:-1]} for row in rows]
        name = f"{stem}-{split}{'-student' * (split == 'test')}.csv"
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["", *rows[0]])
            writer.writerows([number, *row.values()] for number, row in enumerate(rows))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for number, (name, maker) in enumerate([("ids-sst", sst), ("quora", quora), ("sts", sts), ("ids-cfimdb", cfimdb)]):
        write(target, name, maker, seed=number)
