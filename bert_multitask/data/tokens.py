"""Clean rows → tokens, cached on disk; the tokenizer of a checkpoint."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, Features, Value
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from ..model.configuration import resolve_folder
from ..model.errors import InputError, one_line
from ..model.kinds import KINDS
from ..model.losses import UNLABELLED
from ..model.tasks import Task
from .rows import check_clean, fingerprint, text_columns, usable_rows

logger = logging.get_logger(__name__)

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")  # one of them is in every folder that a tokenizer was saved to


def load_tokenizer(name: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a checkpoint.

    Args:
        name: folder, Hub id or `package:NAME/PATH`.
        vocab_size: number of token embeddings of the model, with which the tokenizer is compared.

    Raises:
        InputError: there is no tokenizer or it cannot be loaded, it is not a fast one, or its ids do not fit the
            model's `vocab_size` (see `check_tokenizer`).
    """
    folder = Path(resolve_folder(name))
    if folder.is_dir() and not any(file for form in TOKENIZER_FILES for file in folder.glob(form)):
        raise InputError(
            f"{name}: has no tokenizer files (tokenizer.json, vocab.txt, …); save the model's tokenizer there: "
            "tokenizer.save_pretrained(…)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_folder(name))
        # Some damage shows only in use, or with an unknown character.
        tokenizer("a", "\U00010348", return_token_type_ids=True)
    except BaseException as error:  # missing, broken and foreign files fail in different ways
        # A panic of the tokenizer's Rust code is no Exception; Ctrl-C and exits are none either.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{name}: its tokenizer cannot be loaded ({one_line(error)})") from error
    check_tokenizer(name, tokenizer, vocab_size)
    return tokenizer


def check_tokenizer(name: str, tokenizer: object, vocab_size: int) -> None:
    """Check that a tokenizer is a fast one with the model's vocabulary. If its files are missing, Transformers makes up
    a tokenizer that knows five words.

    Args:
        name: of the checkpoint, for messages.
        vocab_size: number of token embeddings of the model.

    Raises:
        InputError: it is not a fast tokenizer; or it has more tokens than the model, as after tokens were added, or
            less than half of them.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(f"{name} is a {type(tokenizer).__name__}; expected the model's own fast tokenizer")
    if not tokenizer.is_fast:
        raise InputError(
            f"{name}: its tokenizer, {type(tokenizer).__name__}, is a slow one, which does not say which part of a "
            "text a token is; expected a fast one: choose a model with a tokenizer.json"
        )
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{name}: its tokenizer knows {len(tokenizer)} tokens and its model {vocab_size}; if you added tokens, add "
            f"their embeddings and save the model again: model.resize_token_embeddings({len(tokenizer)})"
        )
    last = max(tokenizer.get_vocab().values(), default=0)
    if len(tokenizer) < vocab_size // 2 or last >= vocab_size:
        raise InputError(
            f"{name}: its tokenizer knows {len(tokenizer)} tokens, with ids up to {last}, and its model {vocab_size}; "
            "expected the model's own fast tokenizer: is tokenizer.json (or vocab.txt) missing?"
        )


def tokenise_splits(
    task: Task, rows: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int, pair_encoding: str = "joint"
) -> dict[str, Dataset]:
    """Tokenise the usable rows of every split: {split: model inputs}.

    Args:
        rows: clean rows of each split; those without a usable label are left out (see `usable_rows`).
        tokenizer: the model's fast tokenizer.
        max_length: tokens a sequence may have, special tokens included; longer rows are cut.
        pair_encoding: "joint" or "separate", as the model's; a task's own `pair_encoding` takes precedence.

    Raises:
        InputError: the rows are not clean.
    """
    return {
        split: tokenise(task, usable_rows(task, part, split), tokenizer, max_length, pair_encoding)
        for split, part in rows.items()
    }


def tokenise(
    task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, pair_encoding: str = "joint"
) -> Dataset:
    """Turn clean rows into model inputs, once: the result is cached on disk and memory-mapped.

    Texts reach the tokenizer as they are. A jointly encoded pair becomes one sequence, [CLS] a [SEP] b [SEP]; a
    separately encoded one becomes two, [CLS] a [SEP] and [CLS] b [SEP]; which tokens those are the tokenizer says. Rows
    longer than `max_length` lose tokens of the longer text, as `task.truncation` says; how many rows did is logged.

    Args:
        tokenizer: a fast tokenizer; its truncation and padding are switched off afterwards, as a saved tokenizer's
            should be.
        max_length: tokens a sequence may have, special tokens included.
        pair_encoding: "joint" or "separate", as the model's; of a task that does not say it itself.

    Returns:
        Rows in the same order: `task`, `id`, `input_ids`, `token_type_ids`, `labels`, `truncated` (bool), and
        `soft_labels` where the clean rows have them (see `training.distill`). The tokens of a separately encoded pair
        are two lists. Where each word has a label, `labels` has that of a word at its first token and UNLABELLED
        elsewhere, and `word_starts` is as of `encode`.

    Raises:
        InputError: the rows are not clean.
    """
    check_clean(task, rows)
    separate = task.text_pair is not None and (task.pair_encoding or pair_encoding) == "separate"
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    words, kept = task.by_words, [name for name in ("id", "soft_labels") if name in rows.column_names]
    special = [*["words"] * words, *[task.truncation] * (task.truncation != "head"), *filter(None, [task.prompt])]
    settings = (task.name, fingerprint(rows), backend.to_str(), max_length, separate, *special, "v2")
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:32]
    ids, segments = datasets.List(Value("int32")), datasets.List(Value("int8"))
    features = Features(
        {
            "id": Value("string"),
            "task": Value("string"),
            "input_ids": datasets.List(ids) if separate else ids,
            "token_type_ids": datasets.List(segments) if separate else segments,
            "labels": rows.features["label"],
            "truncated": Value("bool"),
        }
        | ({"word_starts": datasets.List(Value("int32"))} if words else {})
        | {name: rows.features[name] for name in kept if name != "id"}
    )
    compute = partial(
        rows.map,
        partial(tokenise_batch, task, tokenizer, max_length, separate),
        batched=True,
        remove_columns=[name for name in rows.column_names if name not in kept],
        features=features,
        new_fingerprint=key,
        desc=f"tokenising {task.name}",
    )
    tokens = cached(f"{key}.arrow", compute, features, len(rows))
    backend.no_truncation()
    if len(tokens):
        warn_of_cuts(task, tokens, max_length)
    return tokens


def tokenise_batch(
    task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, separate: bool, batch: dict[str, list]
) -> dict[str, list]:
    """A batch of clean rows as model inputs (see `tokenise`)."""
    texts = [batch[column] for column in text_columns(task)]
    encoded = encode(tokenizer, texts, max_length, separate, task.by_words, task.truncation, task.prompt)
    labels = token_labels(task, batch, encoded) if KINDS[task.kind].words else batch["label"]
    return {"task": [task.name] * len(labels), "labels": labels} | encoded


def warn_of_cuts(task: Task, tokens: Dataset, max_length: int) -> None:
    """Say how many rows were cut, and how many words have no token."""
    if truncated := sum(tokens["truncated"][:]):
        logger.warning(f"{task.name}: {truncated:,} of {len(tokens):,} rows were cut to {max_length} tokens")
    if lost := [row.count(-1) for row in tokens["word_starts"][:] if -1 in row] if KINDS[task.kind].words else []:
        logger.warning(
            f"{task.name}: {sum(lost):,} words of {len(lost):,} of {len(tokens):,} rows have no token: they were cut "
            "off, or the tokenizer leaves out all their characters; they are not trained on, predicted or scored"
        )


def token_labels(task: Task, batch: dict[str, list], encoded: dict[str, list]) -> list[list[int]]:
    """Of each row, the labels of its words at their first tokens, and UNLABELLED elsewhere."""
    rows = []
    for number, starts in enumerate(encoded["word_starts"]):
        where = f"task {task.name!r}, row with id {batch['id'][number]!r}"
        row = [UNLABELLED] * len(encoded["input_ids"][number])
        tags = KINDS[task.kind].align(batch["label"][number], batch["text"][number], where)
        for start, tag in zip(starts, tags, strict=True):
            if start >= 0:
                row[start] = tag
        rows.append(row)
    return rows


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[list[str]],
    max_length: int,
    separate: bool,
    words: bool = False,
    truncation: str = "head",
    prompt: str = "",
) -> dict[str, list]:
    """Tokenise a batch of rows.

    Args:
        texts: the rows' texts, and for pairs their second texts.
        separate: whether a pair becomes two sequences and not one.
        words: whether a text is tokenised word by word, as white space sets them apart.
        truncation: what is kept of a row that is too long (see `kept_tokens`).
        prompt: what is put before each sequence; not with `words`.

    Returns:
        `input_ids` and `token_type_ids`, one list a row, or two where it is two sequences; `truncated`, one bool a row;
        and with `words` a list of `word_starts` a row, the number of each word's first token, or -1 where it has none.
    """
    if separate:
        options = {"truncation": truncation, "prompt": prompt}
        first, second = (encode(tokenizer, [column], max_length, False, **options) for column in texts)
        pairs = {key: [list(pair) for pair in zip(first[key], second[key], strict=True)] for key in first}
        return pairs | {"truncated": [any(pair) for pair in pairs["truncated"]]}
    if words:
        texts = [[text.split() for text in column] for column in texts]
    if prompt:
        texts = [[prompt + text for text in texts[0]], *texts[1:]]
    # The tokenizer itself leaves out the ends of texts, since that is faster.
    options = {"truncation": "longest_first", "max_length": max_length} if truncation == "head" else {"verbose": False}
    encoded = tokenizer(*texts, is_split_into_words=words, return_token_type_ids=True, **options)
    columns = {name: [] for name in ("input_ids", "token_type_ids", "truncated", *["word_starts"] * words)}
    for row, encoding in enumerate(encoded.encodings):
        kept = kept_tokens(encoding.sequence_ids, max_length, truncation)
        for name in ("input_ids", "token_type_ids"):
            values = encoded[name][row]
            columns[name].append(values if kept is None else [values[place] for place in kept])
        columns["truncated"].append(kept is not None or bool(encoding.overflowing))
        if words:
            spans = [encoded.word_to_tokens(row, word) for word in range(len(texts[0][row]))]
            columns["word_starts"].append(word_starts(spans, kept))
    return columns


def word_starts(spans: list, places: list[int] | None) -> list[int]:
    """The number of each word's first token among those kept, or -1 where it is not kept or the word has none.

    Args:
        spans: of each word, the first and the last of its tokens, or None.
        places: of the kept tokens, or None where all are.
    """
    starts = [-1 if span is None else span.start for span in spans]
    if places is None:
        return starts
    numbers = {place: number for number, place in enumerate(places)}
    return [numbers.get(start, -1) for start in starts]


def kept_tokens(texts: list[int | None], max_length: int, truncation: str) -> list[int] | None:
    """Which tokens are kept of a row that is too long: all special ones, and as many of the longer text as of the
    shorter or more, so that the shorter one stays whole where it can.

    Args:
        texts: of each token, the number of its text, 0 or 1; None of special tokens.
        max_length: tokens to keep.
        truncation: what stays of a text: its "head", its "tail", or "head_tail", the first quarter of the room and the
            last three, as in Sun et al. (2019, section 5.3.1: 128 and 382 tokens of 510).

    Returns:
        Their places, in order; None where the row is not too long.
    """
    if len(texts) <= max_length:
        return None
    parts = [[place for place, text in enumerate(texts) if text == number] for number in (0, 1)]
    room = max(max_length - texts.count(None), 0)
    sizes = [min(min(map(len, parts)), room // 2)]  # of the shorter text, and of the longer
    sizes.append(room - sizes[0])
    kept = {place for place, text in enumerate(texts) if text is None}
    for part, size in zip(sorted(parts, key=len), sizes, strict=True):
        first = {"head": size, "tail": 0, "head_tail": size // 4}[truncation]
        kept.update(part[:first], part[len(part) - (size - first) :])
    return sorted(kept)


def cached(name: str, compute: Callable[..., Dataset], features: Features, count: int) -> Dataset:
    """Tokens from the cache file of that name. Where there is none they are computed, by `Dataset.map`, and stored. A
    damaged file is replaced; where none can be written, tokens stay in memory. Both are logged."""
    if not count:
        return compute(keep_in_memory=True)
    folder = Path(datasets.config.HF_DATASETS_CACHE, "bert_multitask")
    file = folder / name
    try:
        if file.exists():
            if tokens := read_cache(file, features, count):
                return tokens
            logger.warning(f"{file}: is damaged; it is discarded, and its rows are tokenised again")
        folder.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, so that neither a kill nor a full disk leaves half a file under the name.
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            compute(cache_file_name=f"{draft}/{name}")
            os.replace(f"{draft}/{name}", file)
    except (OSError, ValueError) as error:
        # Of a full disk the writer that is closed in consequence raises a ValueError.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        logger.warning_once(
            f"{folder}: tokens cannot be cached ({reason.strerror or reason}) and are kept in memory; free space "
            "there, or name another folder in the environment variable HF_DATASETS_CACHE"
        )
        return compute(keep_in_memory=True)
    return Dataset.from_file(str(file), info=datasets.DatasetInfo(features=features))


def read_cache(file: Path, features: Features, count: int) -> Dataset | None:
    """The memory-mapped tokens of a cache file; None where it is damaged. A file that was cut between two batches of
    rows is a shorter file to Arrow, so the rows are counted."""
    try:
        tokens = Dataset.from_file(str(file), info=datasets.DatasetInfo(features=features))
        tokens.data.table.validate(full=True)
    except Exception:  # the reader's own errors share no base class
        return None
    return tokens if len(tokens) == count else None
