"""Every public name in a user's file, which `make types` checks: `mypy --strict`. It is not run."""

from collections.abc import Sequence
from typing import Any, assert_type

import pandas as pd

from bert_multitask import (
    TASKS,
    InputError,
    MinBertModel,
    MultitaskBertConfig,
    MultitaskBertModel,
    MultitaskPipeline,
    MultitaskTrainer,
    MultitaskTrainingArguments,
    NonFiniteError,
    PaperAdamW,
    Task,
    clean_rows,
    export_classifier,
    export_encoder,
    load_rows,
    load_task,
    load_tokenizer,
    smart_penalty,
    tokenise_splits,
    with_label_names,
    write_report,
)
from bert_multitask.model.losses import DIVERGENCES

mood = Task("mood", "classification", text=["title", "body"], label_names=["sad", "glad"], epochs=2)
stars = Task("stars", "regression", text="body", label="stars", score_range=[1, 5], group="reviews")
rows = clean_rows(mood, [{"text": "Love it", "label": "glad"}])
splits = load_rows(load_task("sst"), "data", splits=("train", "dev"))
names: Sequence[str] | None = with_label_names(TASKS["sst"], rows=splits["train"]).label_names

model = MultitaskBertModel.from_pretrained("google-bert/bert-base-uncased", tasks=[mood, "sts", {"preset": "sst"}])
fresh = MultitaskBertModel(MultitaskBertConfig(hidden_size=32, tasks=[]))
hidden: int = MinBertModel(MultitaskBertConfig()).config.hidden_size
tokenizer = load_tokenizer("google-bert/bert-base-uncased", vocab_size=model.config.vocab_size)
tasks = [with_label_names(task, rows=[{"body": "Love it", "stars": 3}]) for task in (mood, stars)]
tokens = tokenise_splits(mood, {"train": rows}, tokenizer, max_length=128)

arguments = MultitaskTrainingArguments("runs/mood", learning_rate=2e-5, schedule="round_robin")
trainer = MultitaskTrainer(
    model, arguments, train_dataset={"mood": rows}, eval_dataset={"mood": rows}, optimizers=(None, None)
)
try:
    trainer.train()
    scores: dict[str, float] = trainer.evaluate()
except (InputError, NonFiniteError) as error:
    print(error)
PaperAdamW(model.parameters(), lr=2e-5).step()

pipe = MultitaskPipeline(model, tokenizer, device="cpu")
answers = assert_type(pipe("mood", ["Love it"]), list[dict[str, Any]])
assert_type(pipe("mood", {"text": "Love it"}), dict[str, Any])
assert_type(pipe.all(["Love it"]), list[dict[str, dict[str, Any]]])
assert_type(pipe.all("Love it"), dict[str, dict[str, Any]])
assert_type(pipe("mood", (text for text in "ab")), list[dict[str, Any]])
print(answers[0]["label"], pipe("mood", "Love it")["label"], pipe.all("Love it")["mood"]["label"])
pairs = pipe("sts", ("Is it far?", "How far is it?")), pipe("sts", [("Is it far?", "How far is it?")])[0]
frame: pd.DataFrame = pipe.all(pipe("mood", pd.DataFrame({"text": ["Love it"]})))
export_encoder(model, "mood").save_pretrained("encoder")
classifier = export_classifier(model, "mood", tokenizer)
print(classifier(**model.dummy_inputs).logits)
write_report("runs/mood", "report", other="runs/other")

embeddings = model.get_input_embeddings()(model.dummy_inputs["input_ids"])
penalty = smart_penalty(lambda inputs: inputs.mean(1), embeddings, embeddings, embeddings, DIVERGENCES["symmetric_kl"])
loss: float = penalty.item()
