"""Which words moved an answer: against finite differences in float64, and as parts of the texts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
