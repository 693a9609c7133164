"""The tables and pictures of the pages are those that results.json gives."""

import json
from statistics import mean

import pytest
from conftest import ROOT

from bert_multitask.model.errors import InputError


@pytest.fixture
def draw(monkeypatch):
    """The script as a module, beside its neighbours."""
    monkeypatch.syspath_prepend(ROOT / "recipes")
    import draw_results

    return draw_results


@pytest.fixture
def results(draw) -> dict:
    return draw.read_results(draw.RESULTS.parent)


def test_the_pages_are_drawn_anew_as_they_are(draw, results):
    for page in draw.PAGES:
        text = page.read_text(encoding="utf-8")
        assert draw.rewrite(text, results) == text, f"{page}: run python recipes/draw_results.py"


def test_a_changed_number_changes_its_table_and_the_overview(draw, results):
    before = draw.drawn(results, "shared"), draw.drawn(results, "overview")
    results["runs"]["shared"]["rows"][0]["overall"] = [0.5, 0.6, 0.7]
    after = draw.drawn(results, "shared"), draw.drawn(results, "overview")
    assert all("0.600 ± 0.100" in text for text in after) and not any("0.600 ± 0.100" in text for text in before)
    with pytest.raises(InputError, match="nothing.*no runs and no table"):
        draw.drawn(results, "nothing")


def test_a_study_beside_it_is_a_group_of_runs(draw, tmp_path):
    scores = {column: {"mean": 0.5, "sd": 0.1, "values": [0.4, 0.5, 0.6]} for column in draw.COLUMNS}
    parts = {"all": {"seeds": [0, 1, 2], **scores}, "half A": {}, "half B": {}}
    study = {"study": {"base": {}}, "command": "python recipes/ablate.py s.yaml", "results": {"rate": parts}}
    (tmp_path / "results.json").write_text('{"runs": {}, "tables": {}}')
    (tmp_path / "levers.json").write_text(json.dumps(study))
    shown = draw.drawn(draw.read_results(tmp_path), "levers")
    assert (
        "| rate | 0.500 ± 0.100 (0.400, 0.500, 0.600) |" in shown and "```sh\npython recipes/ablate.py s.yaml" in shown
    )


def test_overall_scores_follow_from_the_tasks(draw, results):
    """To the third digit, which is what most rows are given with."""
    rows = [row for group in results["runs"].values() for row in group["rows"] if {"overall", "sts"} <= row.keys()]
    assert len(rows) > 25
    for row in rows:
        sst, quora, sts, overall = (mean(row[key]) for key in ("sst", "quora", "sts", "overall"))
        assert (sst + quora + (sts + 1) / 2) / 3 == pytest.approx(overall, abs=0.00101), row


def test_every_run_has_its_command_data_and_seeds(results):
    for name, group in results["runs"].items():
        assert group["command"] and group["data"] and "seeds" in group, name
        for row in group["rows"]:
            seeds = row.get("seeds", group["seeds"])
            counts = {len(row[key]) for key in ("sst", "quora", "sts", "overall") if key in row}
            assert counts == {len(seeds) if seeds else 1}, row


def test_the_cost_of_a_bert_is_that_of_its_layers(draw):
    from transformers import BertConfig, BertModel

    for model, (layers, width) in draw.SHAPES.items():
        heads = width // 64 if width % 64 == 0 else 12
        config = BertConfig(
            vocab_size=3, num_hidden_layers=1, hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads
        )
        layer = sum(weight.numel() for weight in BertModel(config).encoder.layer[0].parameters())
        assert draw.million_weights(model) == pytest.approx(layers * layer / 1e6)


def test_the_pictures_are_light_and_small(draw, results):
    for name in ("idea", "score-cost"):
        for theme in draw.THEMES:
            picture = draw.PICTURES / f"{name}-{theme}.svg"
            assert "<svg" in picture.read_text() and picture.stat().st_size < 40_000
    names = [text.get_text() for text in draw.score_picture(results, draw.THEMES["light"]).axes[0].texts]
    assert len(names) == len(draw.overview(results)) == 9 and "one model (ours)" in names
