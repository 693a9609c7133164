"""The tutorial's Python, block after block in one folder; only the steps are fewer, and the encoder is tiny."""

import re

import torch
from conftest import MINILM, ROOT
from scipy.stats import pearsonr
from transformers import BertModel

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)


def test_the_tutorial_runs(tmp_path, monkeypatch, tiny_bert, capsys):
    monkeypatch.chdir(tmp_path)
    names, printed = {}, []
    for block in BLOCKS:
        block = block.replace(MINILM, tiny_bert)
        exec(block.replace("**settings,", "max_steps=2, disable_tqdm=True, **settings,"), names)
        printed.append(capsys.readouterr().out)
    text = "".join(printed)
    assert "2 steps of up to 32 rows" in text and "eval_overall" in text
    assert text.count("'probabilities'") == 2 and "{'score'" in text
    assert printed[6].split()[-1] in names["topic"].label_names
    assert sorted(names["separate"].encoders) == ["sst", "sts", "topic"]
    accuracy, pearson = re.findall(r"\{'(?:accuracy|pearson)': ([\d.]+)", printed[-1])
    assert float(accuracy) == 2 / 3 and float(pearson) == pearsonr([1.0, 2.5, 4.0], [0.0, 3.0, 5.0]).statistic
    trained, stock = names["again"].bert.state_dict(), names["stock"].state_dict()
    assert type(names["stock"]) is BertModel
    assert all(torch.equal(weight, trained[key]) for key, weight in stock.items())
    assert float(printed[-2].split()[-1]) > 0  # SMART's penalty
