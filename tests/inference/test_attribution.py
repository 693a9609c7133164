"""Which words moved an answer: against finite differences in float64, and as parts of the texts."""

import pytest
import torch
from conftest import SIZE
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from bert_multitask.inference import attribution
from bert_multitask.inference.attribution import explain, gradient_times_input
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.model.modeling import MultitaskBertModel

TOPICS = {"name": "topics", "kind": "multilabel", "label_names": ["cooking", "sport", "music"]}
TAGS = {"name": "tags", "kind": "token_classification", "label_names": ["O", "B-PER"]}
TEXT, OTHER = "An unbelievably gripping plot, of sorts", "The plot was unbelievable  "


def make_pipe(tiny_bert, tokenizer, **options) -> MultitaskPipeline:
    torch.manual_seed(1)
    tasks = ["sst", "quora", "sts", TOPICS, TAGS]
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=tasks, **options)
    with torch.no_grad():  # new weights are so small that every answer is nearly the same
        for weight in model.parameters():
            weight.mul_(3 if weight.dim() > 1 else 1)
    return MultitaskPipeline(model, tokenizer)


@pytest.fixture(scope="module")
def pipe(tiny_bert, tokenizer):
    return make_pipe(tiny_bert, tokenizer)


def surety(task: str, logits: torch.Tensor) -> torch.Tensor:
    """The log odds of the answer, or the score, by other formulas than those of the kinds."""
    if task == "sts":
        return logits[0]
    probabilities = logits[0].softmax(-1) if task == "sst" else logits.sigmoid().flatten()
    chosen = torch.maximum(probabilities, 1 - probabilities).max() if task == "quora" else probabilities.max()
    return torch.logit(chosen)


@pytest.mark.parametrize("encoding", ["joint", "separate"])
@pytest.mark.parametrize("task", ["sst", "topics", "quora", "sts"])
def test_words_against_finite_differences(tiny_bert, tokenizer, task, encoding):
    """What a word adds is the derivative of the answer by a factor of all embeddings of its tokens."""
    pipe = make_pipe(tiny_bert, tokenizer, pair_encoding=encoding, encoder_sharing="per_task")
    model = pipe.load()[0].double().eval()
    row = (TEXT, OTHER) if model.tasks[task].text_pair else TEXT
    separate = model.is_separate(model.tasks[task])
    texts = [row] if isinstance(row, str) else list(row)
    rows = [texts] if separate else [[text] for text in texts]
    encoded = tokenizer(*rows, padding=True, return_tensors="pt")
    inputs = {name: value[None] if separate else value for name, value in encoded.items()}
    embeddings = model.encoder(task).embeddings.word_embeddings(inputs.pop("input_ids")).detach()

    def value(factors: torch.Tensor) -> float:
        with torch.inference_mode():
            scaled = embeddings * factors.view(*embeddings.shape[:-1], 1)
            return surety(task, model(task, inputs_embeds=scaled, **inputs).logits).item()

    explained = explain(pipe, task, row)
    assert ["".join(word for word, _ in pieces) for pieces in explained] == texts
    checked, step = 0, 1e-5
    for number, pieces in enumerate(explained):
        encoding_of = encoded.encodings[number if separate else 0]
        tokens = zip(encoding_of.sequence_ids, encoding_of.word_ids, strict=True)
        places = [word if part == (0 if separate else number) else None for part, word in tokens]
        for word, (_, found) in enumerate(pieces):
            factors = torch.zeros(embeddings.shape[:-1], dtype=torch.float64).view(-1, len(places))
            factors[number if separate else 0] = torch.tensor([float(place == word) for place in places])
            expected = (value(1 + step * factors) - value(1 - step * factors)) / (2 * step)
            assert found == pytest.approx(expected, abs=1e-7), pieces[word]
            checked += abs(found) > 1e-4
    assert checked > len(pieces) / 2


def test_gradient_times_input_of_a_polynomial():
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    weights = torch.randn(5, dtype=torch.float64)
    found = gradient_times_input(lambda rows: ((rows * weights) ** 3).sum((1, 2)), x)
    torch.testing.assert_close(found, 3 * ((x * weights) ** 3).sum(-1))
    assert not x.requires_grad


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=2, max_size=2))
def test_the_pieces_are_the_texts(pipe, texts):
    for task, row in (("sst", texts[0]), ("sts", tuple(texts))):
        explained = explain(pipe, task, row)
        assert ["".join(word for word, _ in pieces) for pieces in explained] == texts[: len(explained)]


def test_what_is_cut_off_moved_nothing(tokenizer, pipe):
    short = MultitaskPipeline(*pipe.load(), max_length=6)
    (pieces,) = explain(short, "sst", "one two three four five  six")
    assert [word for word, _ in pieces] == ["one ", "two ", "three ", "four", " five  six"]
    assert pieces[-1][1] is None and None not in [value for _, value in pieces[:-1]]
    assert explain(pipe, "tags", "Anna sings") is None, "a tag a word is no one number"
    assert len(tokenizer("word " * 20)["input_ids"]) == 22, "the tokenizer is as it was"


TOPIC = {"name": "topic", "kind": "classification", "label_names": ["a", "b"]}
STRANGE = ["the  plot, was \U0001f600 don't", " the plot\n", "unbelievable   ", "\u00a0the\u2003plot"]


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_each_word_has_its_own_tokens_of_a_byte_level_tokenizer(monkeypatch, tmp_path, prefix, trim):
    """Each token is given another power of 2; those that a piece has spell the piece."""
    backend = ByteLevelBPETokenizer(add_prefix_space=prefix, trim_offsets=trim)
    special = ["<s>", "<pad>", "</s>"]
    backend.train_from_iterator(["the plot was unbelievable and the cast gripping"] * 3, 290, 2, False, special)
    backend._tokenizer.post_processor = Sequence(
        [
            ByteLevel(trim_offsets=trim, add_prefix_space=prefix),
            TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]),
        ]
    )
    backend = backend._tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", add_prefix_space=prefix)
    BertModel(BertConfig(vocab_size=len(tokenizer), **SIZE)).save_pretrained(tmp_path)
    tasks = [TOPIC, TOPIC | {"name": "by_words", "word_by_word": True}]
    pipe = MultitaskPipeline(MultitaskBertModel.from_pretrained(tmp_path, tasks=tasks), tokenizer)
    monkeypatch.setattr(attribution, "gradient_times_input", lambda function, embeddings: 2.0 ** places_of(embeddings))
    for text in STRANGE:
        for name in ("topic", "by_words"):
            (ids,) = pipe.encode(tokenizer, [[text]], pipe.tasks[name])["input_ids"]
            (pieces,) = explain(pipe, name, text)
            assert "".join(piece for piece, _ in pieces) == text
            assert sum(value for _, value in pieces) == 2 ** (len(ids) - 1) - 2, "all but the special tokens"
            if name == "by_words":
                assert [piece.strip() for piece, _ in pieces] == text.split()
            for number, (piece, value) in enumerate(pieces):
                own = [token for place, token in enumerate(ids) if int(value) >> place & 1]
                assert tokenizer.decode(own).strip() == piece.strip(), (name, text)
                assert not number or not piece[0].isspace()


def places_of(embeddings: torch.Tensor) -> torch.Tensor:
    """The place of each embedding in its row, float64 (B, L)."""
    return torch.arange(embeddings.shape[1], dtype=torch.float64).expand(embeddings.shape[:2])
