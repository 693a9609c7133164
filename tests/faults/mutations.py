"""Seeded damage: to bytes, and to the values of JSON."""

import copy
import json
import random

TOKENS = [
    *(
        b'"',
        b'""',
        b"'",
        b",",
        b"\t",
        b"\n",
        b"\r\n",
        b"\r",
        b"\0",
        b"\\",
        b"#",
        b"%",
        b": ",
        b"- ",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"\x1a"),
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"9" * 400, b"0x10", b"null", b"true", b"\\ud83d", b'\\u0000"', b"=1+1"),
    *(
        b"[" * 5000,
        b'{"a":' * 2000,
        b"[" * 100_000,
        b"x" * 200_000,
        b"&a [*a, *a]",
        b"*a",
        b"<<: *a",
        b"!!python/name:os",
    ),
    b"!!python/object/apply:os.abort []",
    b"a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\n"
    b"d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\n"
    b"tasks: [*e, *e, *e, *e, *e, *e, *e, *e]\n",
]
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 0.5, 1_000_000, 2**31, 2**63, 2**70, 1e308, 1e-320, float("nan"), float("inf")),
    *("", "x", "1", "a b", "\ud83d", "\0", "../x", "x" * 100_000, "gelu", "float16", "<script>", "line\nbreak"),
    *([], {}, [1], ["x"], [[]], [None], {"x": 1}, {"0": "a"}, {"": None}),
]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Data after one to three changes: a bit flipped; a part cut off, removed, doubled, moved, zeroed or overwritten; a
    token put in."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = rng.choice([flip, flip, cut, remove, double, move, zero, insert, insert, insert, overwrite])(data, rng)
    return data


def span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Start and end of a random part, mostly a short one."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice([1, 1, 2, 4, 16, 64, len(data)]))


def flip(data, rng):
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def cut(data, rng):
    return data[: rng.randrange(len(data) + 1)]


def remove(data, rng):
    start, end = span(data, rng)
    return data[:start] + data[end:]


def double(data, rng):
    start, end = span(data, rng)
    return data[:end] + data[start:]


def move(data, rng):
    start, end = span(data, rng)
    rest, at = data[:start] + data[end:], rng.randrange(len(data) + 1)
    return rest[:at] + data[start:end] + rest[at:]


def zero(data, rng):
    start, end = span(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


def insert(data, rng):
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(TOKENS) + data[at:]


def overwrite(data, rng):
    start, end = span(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def mutate_json(value, rng: random.Random):
    """A copy of a JSON value with one to three of its parts, at any depth, replaced, removed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(walk(value))
        if not places:
            break
        parent, key = rng.choice(places)
        action = rng.random()
        if action < 0.7:
            parent[key] = copy.deepcopy(rng.choice(VALUES)) if rng.random() < 0.95 else nest(rng.choice([50, 500]))
        elif action < 0.9:
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[rng.choice(["x", "", "name", f"{key}_"])] = parent[key]
    return value


def walk(value):
    """Yield (parent, key) of every part of a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from walk(value[key])


def nest(depth: int) -> list:
    """Lists within each other."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


def mutate_json_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a JSON document after damage to its values or, half the time, to its bytes."""
    if rng.random() < 0.5:
        return mutate_bytes(data, rng)
    return json.dumps(mutate_json(json.loads(data), rng), ensure_ascii=rng.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )
