"""Second opinions: what a file holds, read by code that shares nothing with the package's readers.

Each returns NOTHING for a file that is not of its form.
"""

import json
import math
import struct

import numpy as np

NOTHING = object()


def table(data: bytes) -> list[dict[str, str]]:
    """The rows of a table with a header, by RFC 4180 and these rules: a quote opens a field only as its first
    character; a quoted field ends before a delimiter or a line's end; lines end in CR, LF or both; empty lines are
    none; tabs set fields apart where the first line has one, commas otherwise."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return NOTHING
    first = min((text.find(end) for end in "\r\n" if end in text), default=len(text))
    lines = split_fields(text, "\t" if "\t" in text[:first] else ",")
    if lines is NOTHING or not lines:
        return NOTHING
    header, *rows = lines
    if len(set(header)) < len(header) or any(len(row) != len(header) for row in rows):
        return NOTHING
    return [dict(zip(header, row, strict=True)) for row in rows]


def split_fields(text: str, delimiter: str) -> list[list[str]]:
    """The fields of each line that has any."""
    lines, row, at, end = [], [], 0, len(text)
    while at < end:
        if not row and text[at] in "\r\n":
            at += 1
            continue
        if text[at] == '"':
            field, at = "", at + 1
            while True:
                close = text.find('"', at)
                if close < 0:
                    return NOTHING
                field, at = field + text[at:close], close + 1
                if text[at : at + 1] != '"':
                    break
                field, at = field + '"', at + 1
            if at < end and text[at] not in (delimiter, "\r", "\n"):
                return NOTHING
        else:
            start = at
            while at < end and text[at] not in (delimiter, "\r", "\n"):
                at += 1
            field = text[start:at]
        row.append(field)
        if at < end and text[at] == delimiter:
            at += 1
            if at == end or text[at] in "\r\n":
                row.append("")
            else:
                continue
        lines.append(row)
        row = []
        at += 1 if text[at : at + 2] != "\r\n" else 2
    return lines


class Twice(ValueError):
    """A JSON object has a key twice."""


def unique(pairs: list[tuple]) -> dict:
    """An object of its pairs; a key that comes twice has no one value."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise Twice
    return dict(pairs)


def json_value(data: bytes):
    """A JSON value, in which no key comes twice."""
    try:
        return json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return NOTHING


def json_lines(data: bytes) -> list[dict]:
    """The objects of a file of one JSON object a line; empty lines are none."""
    rows = [json_value(line) for line in data.split(b"\n") if line.strip()]
    return rows if all(isinstance(row, dict) for row in rows) else NOTHING


def tensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as float64; bf16 is the upper half of fp32."""
    types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
    types |= {"I8": "i1", "U8": "u1", "BOOL": "?", "U16": "<u2", "U32": "<u4", "U64": "<u8"}
    try:
        (size,) = struct.unpack("<Q", data[:8])
        header, body, found = json.loads(data[8 : 8 + size]), data[8 + size :], {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                values = np.frombuffer(body[start:end], types[entry["dtype"]])
                if entry["dtype"] == "BF16":
                    values = (values.astype(np.uint32) << 16).view("<f4")
                found[name] = values.reshape(entry["shape"]).astype(np.float64)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError, OverflowError):
        return NOTHING
    return found


def label(written, names: tuple[str, ...]):
    """What a label that is a name, a class or missing must be read as, None where it is missing; NOTHING where it is
    written in a way that leaves it to the reader."""
    if written is None or written == "":
        return None
    if isinstance(written, bool):
        return int(written)
    if isinstance(written, (int, float)) and math.isfinite(written) and written in range(len(names)):
        return int(written)
    if written in names:
        return names.index(written)
    return int(written) if isinstance(written, str) and written in map(str, range(len(names))) else NOTHING
