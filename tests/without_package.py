"""Run as a script: what checkpoints give to a process that cannot import the package, printed as JSON.

python without_package.py SHARED_RUN PER_TASK_RUN EXPORTS
"""

import json
import sys
from pathlib import Path

sys.modules["bert_multitask"] = None  # importing it raises ImportError

import torch  # noqa: E402
from sentence_transformers import CrossEncoder, SentenceTransformer  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    pipeline,
)
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()
PAIR = ("Is it far?", "How far is it, then?")


def refusal(function) -> str | None:
    """The message of the error that a call ends with."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@torch.inference_mode()
def main(shared: str, per_task: str, exports: str) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(shared)
    inputs = tokenizer(*PAIR, return_tensors="pt")
    encoder = AutoModel.from_pretrained(shared)
    whole = AutoModel.from_pretrained(shared, trust_remote_code=True)
    results = {
        "encoder": [type(encoder).__module__, encoder(**inputs).last_hidden_state[0].tolist()],
        "sentence": SentenceTransformer(shared)[0](tokenizer([PAIR[0]], return_tensors="pt"))["token_embeddings"][
            0
        ].tolist(),
        "whole": [type(whole).__name__, {task: whole(task, **inputs).logits[0].tolist() for task in whole.tasks}],
        "no head": refusal(lambda: AutoModelForSequenceClassification.from_pretrained(shared)),
        "no head of three labels": refusal(
            lambda: AutoModelForSequenceClassification.from_pretrained(shared, num_labels=3)
        ),
        "no head of a pipeline": refusal(lambda: pipeline("text-classification", shared)),
        "no head of pairs": refusal(lambda: CrossEncoder(shared)),
        "new head": AutoModelForSequenceClassification.from_pretrained(
            shared, num_labels=3, classifier_dropout=0.1
        ).num_labels,
        "no encoder": refusal(lambda: AutoModel.from_pretrained(per_task)),
        "no encoder of sentences": refusal(lambda: SentenceTransformer(per_task)),
        "no stock encoder": refusal(lambda: BertModel.from_pretrained(per_task)),
        "no stock head": refusal(lambda: BertForSequenceClassification.from_pretrained(per_task)),
    }
    # Trusting one checkpoint's code is not trusting another's: this one is loaded last.
    whole = AutoModel.from_pretrained(per_task, trust_remote_code=True)
    results["whole, per task"] = {task: whole(task, **inputs).logits[0].tolist() for task in whole.tasks}
    whole.save_pretrained(Path(exports, "again"))
    again = AutoModel.from_pretrained(Path(exports, "again"), trust_remote_code=True)
    results["again"] = again("sts", **inputs).logits[0].tolist()
    return results | use_exports(exports, inputs)


def use_exports(exports: str, inputs: dict) -> dict:
    """The answers of exported classifiers and of an exported encoder."""
    results = {}
    for folder in sorted(Path(exports).glob("*-*")):
        text = PAIR[0] if folder.name.startswith("sst") else {"text": PAIR[0], "text_pair": PAIR[1]}
        with_code = Path(folder, "classifier.py").exists()
        if with_code:
            results[f"{folder.name} untrusted"] = refusal(lambda f=folder: pipeline("text-classification", str(f)))
        pipe = pipeline("text-classification", str(folder), top_k=None, trust_remote_code=with_code)
        (scores,) = pipe([text])
        results[folder.name] = {entry["label"]: entry["score"] for entry in scores}
    results["cross-encoder"] = CrossEncoder(str(Path(exports, "sts-joint-cls"))).predict([PAIR]).tolist()
    encoder = AutoModel.from_pretrained(Path(exports, "encoder"))
    results["exported encoder"] = encoder(**inputs).last_hidden_state[0].tolist()
    return results


if __name__ == "__main__":
    print("\n" + json.dumps(main(*sys.argv[1:])))
