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
    before = draw.drawn(results, "best"), draw.drawn(results, "overview")
    assert results["runs"]["best"]["rows"][0]["overall"] == results["runs"]["levers"]["rows"][2]["overall"]
    results["runs"]["best"]["rows"][0]["overall"] = [0.5, 0.6, 0.7]
    after = draw.drawn(results, "best"), draw.drawn(results, "overview")
    assert all("0.600 ± 0.100" in text for text in after) and not any("0.600 ± 0.100" in text for text in before)
    with pytest.raises(InputError, match="nothing.*no runs and no table"):
        draw.drawn(results, "nothing")
    with pytest.raises(InputError, match="no <!-- end -->"):  # else it would be drawn over what follows it
        draw.rewrite("<!-- draw: shared -->\n<!-- draw: peers -->\n<!-- end -->", results)


def test_a_study_beside_it_is_drawn_with_what_each_change_gave(draw, tmp_path):
    """Three seeds of the reference and of 15 variants, the last of one seed so far, which the reference lacks."""
    variants = {"plain": {}, "best": {"learning_rate": "1e-4", "tasks": {"sst": {"pooling": "mean"}}}}
    for number in range(1, 15):
        variants[f"best{number}"] = variants["best"] | {"smart_weight": {"sst": number}}
    variants["best14"] = {"tasks": {"sst": {"pooling": "cls"}}, "ema_decay": 0.9}
    part = {column: {"mean": 0.5, "sd": 0.1, "values": [0.4, 0.5, 0.6]} for column in draw.COLUMNS}
    less = {"difference": {"value": 0.02, "low": -0.01, "high": 0.05}}
    found = {name: dict.fromkeys(("all", "half A", "half B"), {"seeds": [0, 1, 2], **part}) for name in variants}
    for name in [*variants][1:-1]:
        found[name]["all"] = found[name]["all"] | {"overall": part["overall"] | less}
    single = {column: {"mean": 0.7, "sd": None, "values": [0.7]} for column in draw.COLUMNS}
    found["best14"] = dict.fromkeys(("all", "half A", "half B"), {"seeds": [3], **single})
    record = {
        "study": {"base": {}, "reference": "plain", "variants": variants},
        "command": "python recipes/ablate.py s.yaml",
        "minutes": dict.fromkeys(variants, [10.0, 12.4]),
        "results": found,
    }
    (tmp_path / "results.json").write_text('{"runs": {}, "tables": {}}')
    (tmp_path / "levers.json").write_text(json.dumps(record))
    shown = draw.drawn(draw.read_results(tmp_path), "levers")
    head, _, *rows = [line[2:-2].split(" | ") for line in shown.splitlines() if line.startswith("|")]
    assert len(rows) == 16 and {len(row) for row in rows} == {len(head)}
    assert head[5:] == ["Overall less plain", "half A", "half B", "seeds", "minutes"]
    mean_sd = "0.500 ± 0.100"
    assert rows[0] == ["plain", *[mean_sd] * 4, "", mean_sd, mean_sd, "0, 1, 2", "11"]
    assert rows[2][:2] + rows[2][5:6] == ["best1", mean_sd, "+0.020 (-0.010 to +0.050)"]
    assert rows[15][1:6] == [*["0.700"] * 4, ""]
    changes = [line for line in shown.splitlines() if line.startswith("- ")]
    assert len(changes) == 16 and changes[0] == "- **plain**: the base"
    assert changes[1] == "- **best**: plain with `learning_rate: 1e-4`, `sst.pooling: mean`"
    assert changes[2] == "- **best1**: best with `smart_weight.sst: 1`"
    assert changes[15] == "- **best14**: plain with `sst.pooling: cls`, `ema_decay: 0.9`"
    assert "```sh\npython recipes/ablate.py s.yaml" in shown


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
    assert len(names) == len(draw.overview(results)) > 1 and "one model (ours)" in names
