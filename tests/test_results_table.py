"""Results table and model cards follow from metrics.json alone."""

import json
from pathlib import Path

import pytest
from fake_project import TASK, finished_run, make_project, metrics_of

from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.evaluation import validate_metrics
from e2e_utils.files import with_part
from tools.model_cards import metrics_table, model_card, public_result, safetensors_header
from tools.publish import publish
from tools.results_table import (
    STANDIN_NOTE,
    baseline_cells,
    best_baseline,
    generated_texts,
    published_metrics,
    results_block,
    update,
)
from tools.wording import BASELINES, headline_name, name_in_full


def test_best_baseline_knows_the_direction() -> None:
    metrics = metrics_of("quick")
    assert best_baseline(metrics)[0] == "gradient_boosting"
    metrics["headline"] = "mae"
    metrics["baselines"] = {
        "mean": {"mae": {"value": 5.0, "low": 4, "high": 6}},
        "linear": {"mae": {"value": 2.0, "low": 1, "high": 3}},
        "other": {"rmse": {"value": 1.0, "low": 1, "high": 1}},
    }
    assert best_baseline(metrics)[0] == "linear"
    metrics["baselines"] = {}
    assert best_baseline(metrics) is None


def test_standins_are_labelled_and_official_results_are_not() -> None:
    block = results_block({TASK: metrics_of("standard", source="standin")})
    assert "**On simulated stand-in events**" in block
    assert "On official events" not in block
    assert STANDIN_NOTE in block
    assert f"[PDF](weights/{TASK}/{TASK}.pdf)" in block
    assert "0.8000** [0.7900, 0.8100] ± 0.0020" in block
    official = results_block({TASK: metrics_of("standard", source="official")})
    assert official.startswith("**On official events.**")
    assert "stand-in" not in official


def test_official_events_lead_the_best_arm_first() -> None:
    metrics = metrics_of("standard", source="standin")
    values = {"worse": 0.7, "better": 0.86, "third": 0.6, "fourth": 0.5, "fifth": 0.4}
    arms = {
        name: {
            "roc_auc": {"value": value, "low": value - 0.01, "high": value + 0.01},
            "info": {"description": f"the {name} one"},
        }
        for name, value in values.items()
    }
    metrics["variants"] = {"official_rows": arms}
    block = results_block({TASK: metrics})
    official, standins = block.split("**On simulated stand-in events**")
    rows = [line for line in official.splitlines() if "| the " in line]
    assert len(rows) == 4
    assert rows[0].startswith(f"| [{metrics['title']}]({TASK}) | ")
    assert rows[1].startswith("|  | ")  # the task's name once
    assert "the better one | ROC-AUC **0.860** [0.850, 0.870] |" in rows[0]
    assert "the worse one | ROC-AUC 0.700 [0.690, 0.710] |" in rows[1]  # only the best is bold
    assert (
        f"| | published by others, on their own test events | {public_result(TASK)} |" in official
    )
    assert "0.8000" in standins
    arms["better"]["info"]["description"] = "network of others"  # last, whatever it reaches
    del arms["fourth"], arms["fifth"]
    block = results_block({TASK: metrics})
    ours = block.index("the worse one | ROC-AUC **0.700**")
    assert ours < block.index("network of others")
    assert "network of others | ROC-AUC 0.860" in block


def test_every_task_has_a_public_result_with_its_source() -> None:
    for task in paths.list_tasks():
        assert len(public_result(task)) > len("–"), task
    assert public_result("common_task1").startswith("ROC-AUC 0.8123 (public solution")
    assert public_result("task_of_nobody") == "–"


def test_the_card_of_a_task_names_what_others_reached() -> None:
    card = "\n".join(model_card("task2e_mass_regression", metrics_of("standard")))
    assert "| Published by others | MAE 55.5 GeV (public solution, " in card
    assert "Published by others" not in "\n".join(model_card(TASK, metrics_of("standard")))


def test_only_the_part_is_replaced() -> None:
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    readme = f"before\n{begin}\nold\n{end}\nafter\n"
    expected = f"before\n{begin}\nnew\n{end}\nafter\n"
    assert with_part(readme, "results", "new", "README.md") == expected
    with pytest.raises(InputError, match=r"README\.md.*markers"):
        with_part(f"{end} {begin}", "results", "", "README.md")


def test_the_lead_over_the_best_baseline_is_in_the_table() -> None:
    metrics = metrics_of("standard")
    assert baseline_cells(metrics) == ("gradient boosting: 0.780", "–")
    lead = {"value": 0.02, "low": 0.0153, "high": 0.0247, "mark": "▲"}
    metrics["baselines"]["gradient_boosting"]["roc_auc"]["lead"] = lead
    metrics["baselines"]["gradient_boosting"]["info"] = {"description": "trees"}
    validate_metrics(metrics)
    assert baseline_cells(metrics) == ("trees: 0.780", "+0.0200 [+0.0153, +0.0247] ▲")
    assert "| trees: 0.780 | +0.0200 [+0.0153, +0.0247] ▲ |" in results_block({TASK: metrics})
    metrics["task"] = "task2b_superres_gan"
    metrics["baselines"] = {"likelihood": metrics["baselines"]["gradient_boosting"]}
    assert baseline_cells(metrics)[0] == "our network, trained without the adversary: 0.780"
    metrics["baselines"] = {}
    assert baseline_cells(metrics) == ("–", "–")


def test_the_words_for_baselines_are_of_baselines_that_exist() -> None:
    published = published_metrics()
    assert [
        key
        for key in BASELINES
        if key[0] in published and key[1] not in published[key[0]]["baselines"]
    ] == []


def test_headlines_of_two_kinds_have_two_names() -> None:
    assert headline_name("c2st_auc_low") != headline_name("c2st_auc_high")
    for name in ("c2st_auc_low", "c2st_auc_high"):
        assert name_in_full(name).split(", ")[1] in headline_name(name)


def test_all_models_are_in_the_card() -> None:
    rows = metrics_table(metrics_of("quick"))
    assert len(rows) == 2 + 3
    assert rows[3].startswith("| gradient boosting (baseline) | 0.780 ")


def test_cards_describe_the_published_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(tmp_path, monkeypatch)
    finished_run("quick")
    publish(TASK, "quick")
    assert update() == []  # publishing left nothing to do
    card = (paths.WEIGHTS / "README.md").read_text()
    metrics = json.loads((paths.WEIGHTS / TASK / "metrics.json").read_text())
    for digest in metrics["provenance"]["products"].values():
        assert digest in card
    assert "`x` (batch, 4, 4, 2) float → `probability` (batch) float" in card
    assert "1,234" in card
    assert "simulated stand-in events" in card
    (paths.WEIGHTS / "README.md").write_text("edited by hand")
    assert update() == [paths.WEIGHTS / "README.md"]


def test_without_results_the_texts_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path, monkeypatch)
    texts = generated_texts()
    assert "No run has been published yet" in texts[tmp_path / "README.md"]
    assert texts[tmp_path / "README.md"].endswith("End.\n")


def test_safetensors_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path, monkeypatch)
    path = finished_run("quick") / f"{TASK}.safetensors"
    assert safetensors_header(path)["w"]["shape"] == [3]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"expected \d+ bytes"):
        safetensors_header(path)
    path.write_bytes(b"\xff" * 4)
    with pytest.raises(InputError, match="safetensors"):
        safetensors_header(path)
