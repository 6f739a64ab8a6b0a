"""Scoring an independent sample with an exported model."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_project import make_project, write_onnx
from onnx import helper

from data.catalog import dataset as catalog_dataset
from data.readers.nested_parquet import nested
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.jet_resolution import low_resolution
from e2e_utils.onnx_export import export_onnx
from tools import score as module
from tools.score import find_model, score
from tools.scoring.events import official_layout, raw_batches

TASK = "common_task1"


class SigmoidOfMean(torch.nn.Module):
    """Images (B, C, H, W) -> (B,)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3)).sigmoid()


class SigmoidOfSum(torch.nn.Module):
    """Rows (B, n) -> (B,)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1).sigmoid()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_folder: Path) -> Path:
    root = make_project(tmp_path / "project", monkeypatch)
    (root / TASK).mkdir()
    (root / TASK / f"{TASK}.py").write_text("# %%\n")
    (paths.WEIGHTS / TASK).mkdir(parents=True)
    write_onnx(paths.WEIGHTS / TASK / f"{TASK}.onnx", (32, 32, 2))
    return root


def publish(
    project: Path,
    task: str,
    graph: torch.nn.Module,
    example: torch.Tensor | tuple[torch.Tensor, ...],
    names: tuple[list[str], list[str]] = (["x"], ["probability"]),
    **card: str | int,
) -> None:
    """A task of the project with ``graph`` as its model, a classifier if ``card`` is silent."""
    (project / task).mkdir()
    (project / task / f"{task}.py").write_text("# %%\n")
    (paths.WEIGHTS / task).mkdir(parents=True)
    card = {"kind": "binary_classification"} | card
    export_onnx(graph, example, paths.WEIGHTS / task / f"{task}.onnx", *names, card)


def test_predictions_are_those_of_the_raw_events(
    project: Path,
    write_events: Callable[..., Path],
    sparse_array: Callable[..., np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    x = np.abs(sparse_array(700, (32, 32, 2)))  # more than one batch
    y = np.arange(700) % 2
    x[..., 0] *= 0.1 * (1 + y[:, None, None])
    path = write_events("sample.hdf5", y, x)
    out = score(TASK, str(path), out=project / "out.parquet").predictions
    table = pd.read_parquet(out)
    expected = 1 / (1 + np.exp(-x[..., 0].sum(axis=(1, 2))))
    np.testing.assert_allclose(table["probability"], expected, rtol=1e-5)
    np.testing.assert_array_equal(table["label"], y)
    np.testing.assert_array_equal(table["event"], np.arange(700))
    text = capsys.readouterr().out
    assert "Model: weights/common_task1/common_task1.onnx (quick profile" in text
    assert "trained on simulated stand-in events" in text
    assert "ROC-AUC" in text
    assert "sample.hdf5" in text


def test_csv_and_several_files(project: Path, write_events: Callable[..., Path]) -> None:
    photons = write_events("photon.hdf5", np.zeros(30), seed=1)
    electrons = write_events("electron.hdf5", np.ones(20), seed=2)
    out = score(TASK, f"{photons},{electrons}").predictions
    assert out == paths.BUILD / "score" / f"{TASK}_{TASK}.csv"
    assert pd.read_csv(out)["label"].tolist() == [0] * 30 + [1] * 20


@pytest.mark.parametrize("header", [False, True])
def test_rows_of_a_table_are_scored_on_their_low_level_columns(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], header: bool
) -> None:
    task = "task2a_higgs_transformer"
    publish(project, task, SigmoidOfSum(), torch.zeros(2, 21))
    rng = np.random.default_rng(0)
    y, features = np.arange(600) % 2, rng.normal(0, 0.3, (600, 28)).astype(np.float32)
    label, *names = catalog_dataset("higgs")["file"][0]["keys"]
    rows, options = np.c_[y, features], {"fmt": "%.18e", "delimiter": ","}
    if header:  # as people keep them: with names, the label last
        rows, names = np.c_[features, y], ",".join([*names, label])
        options |= {"header": names, "comments": ""}
    np.savetxt(tmp_path / "rows.csv", rows, **options)
    table = pd.read_csv(score(task, str(tmp_path / "rows.csv")).predictions)
    expected = 1 / (1 + np.exp(-features[:, :21].sum(axis=1)))
    np.testing.assert_allclose(table["probability"], expected, rtol=1e-5)
    np.testing.assert_array_equal(table["label"], y)
    assert "600 events scored" in capsys.readouterr().out


def test_jets_of_a_parquet_file_are_scored_as_raw_images(
    project: Path, tmp_path: Path, sparse_array: Callable[..., np.ndarray]
) -> None:
    task = "task2h_graph_jets"
    publish(project, task, SigmoidOfMean(), torch.zeros(2, 3, 125, 125))
    x, y = 100 * sparse_array(12, (3, 125, 125), seed=3), np.arange(12) % 2
    columns = {name: pa.array(y.astype(float)) for name in ("pt", "m0", "y")}
    pq.write_table(pa.table({"X_jets": nested(x), **columns}), tmp_path / "jets.parquet")
    table = pd.read_csv(score(task, str(tmp_path / "jets.parquet")).predictions)
    expected = 1 / (1 + np.exp(-x.mean((1, 2, 3))))
    np.testing.assert_allclose(table["probability"], expected, rtol=1e-5)
    np.testing.assert_array_equal(table["label"], y)


class SigmoidOfGreyLevels(torch.nn.Module):
    """Pictures (B, 28, 28) -> (B,)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.mean((1, 2)) / 255).sigmoid()


def test_digits_are_scored_picture_by_picture(project: Path, tmp_path: Path) -> None:
    task = "task2j_symmetry"
    publish(project, task, SigmoidOfGreyLevels(), torch.zeros(2, 28, 28))
    rng = np.random.default_rng(0)
    x, label = rng.integers(0, 256, (50, 12, 28, 28), np.uint8), 1 + np.arange(50) % 3
    for name, digit in (("digits.hdf5", label), ("twos.hdf5", np.full(50, 2))):
        with h5py.File(tmp_path / name, "w") as file:
            file["X"], file["label"], file["original"] = x, digit, np.arange(50)
    table = pd.read_csv(score(task, str(tmp_path / "digits.hdf5")).predictions)
    known = label < 3  # of threes the model knows nothing
    expected = 1 / (1 + np.exp(-x[known].mean((2, 3)).ravel() / 255))
    np.testing.assert_allclose(table["probability"], expected, rtol=1e-5)
    np.testing.assert_array_equal(table["label"], np.repeat(label[known] == 2, 12))
    with pytest.raises(InputError, match=r"twos\.hdf5: expected digits 1 and 2, found only 2"):
        score(task, str(tmp_path / "twos.hdf5"))
    score(task, str(tmp_path / "twos.hdf5"), predictions_only=True)


def test_tasks_without_samples_to_score_are_refused(project: Path) -> None:
    task = "task2f_cmssw_inference"
    publish(project, task, SigmoidOfMean(), torch.zeros(2, 1, 32, 32))
    with pytest.raises(InputError, match="known: common_task1, "):
        score(task, "x.hdf5")


class ClassMassMomentum(torch.nn.Module):
    """Images (B, 8, 125, 125) -> three numbers (B,)."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total = x.sum((1, 2, 3))
        return (total / 1000 - 1).sigmoid(), total / 10, total


@pytest.mark.parametrize("keys", [("jet", "Y", "m", "pT"), ("jet", "Y")])
def test_further_outputs_are_scored_as_regressions(
    project: Path,
    tmp_path: Path,
    sparse_array: Callable[..., np.ndarray],
    capsys: pytest.CaptureFixture[str],
    keys: tuple[str, ...],
) -> None:
    task = "task2i_foundation"
    example, names = torch.zeros(2, 8, 125, 125), (["x"], ["probability", "m", "pT"])
    publish(project, task, ClassMassMomentum(), example, names)
    x, y = np.abs(sparse_array(12, (125, 125, 8), 0.01)), np.arange(12) % 2
    total = x.sum((1, 2, 3))
    columns = {"jet": x, "Y": y, "m": total / 10, "pT": total + 5}
    with h5py.File(tmp_path / "jets.h5", "w") as file:
        for key in keys:
            file[key] = columns[key] if key == "jet" else columns[key][:, None].astype(np.float32)
    table = pd.read_csv(score(task, str(tmp_path / "jets.h5")).predictions)
    np.testing.assert_allclose(table["probability"], 1 / (1 + np.exp(1 - total / 1000)), rtol=1e-4)
    np.testing.assert_allclose(table["m"], total / 10, rtol=1e-4)
    text = capsys.readouterr().out
    assert "ROC-AUC" in text
    assert ("m, GeV:" in text) == ("true_m" in table) == ("m" in keys)
    if "pT" in keys:
        np.testing.assert_allclose(table["true_pT"], total + 5, rtol=1e-4)
        assert re.search(r"pT, GeV:\n\s+MAE\s+5\.0", text)


class NearestPlusNoise(torch.nn.Module):
    """Cells (B, 3, 64, 64) repeated in their pixels, with a little noise: (B, 3, 125, 125)."""

    def forward(self, low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        low = low * (1 + 0.01 * noise[:, :1])
        large = low[..., None, :, None].expand(-1, -1, -1, 2, -1, 2)
        return large.reshape(-1, 3, 128, 128)[:, :, 1:126, 1:126]


@pytest.mark.parametrize("with_low", [True, False])
def test_images_are_scored_by_their_physics(
    project: Path,
    tmp_path: Path,
    sparse_array: Callable[..., np.ndarray],
    capsys: pytest.CaptureFixture[str],
    with_low: bool,
) -> None:
    task = "task2b_superres_gan"
    inputs = (torch.zeros(2, 3, 64, 64), torch.zeros(2, 2, 64, 64))
    names, card = (["X_jets_LR", "noise"], ["X_jets"]), {"kind": "super_resolution"}
    publish(project, task, NearestPlusNoise(), inputs, names, **card, noise_seed=3)
    high = np.abs(sparse_array(60, (3, 125, 125)))
    columns = {"X_jets": nested(high), **dict.fromkeys(("pt", "m0"), pa.array(np.ones(60)))}
    columns["y"] = pa.array(np.arange(60) % 2 * 1.0)
    if with_low:
        columns["X_jets_LR"] = nested(low_resolution(high))
    pq.write_table(pa.table(columns), tmp_path / "jets.parquet")
    first = pd.read_csv(score(task, str(tmp_path / "jets.parquet")).predictions)
    again = pd.read_csv(score(task, str(tmp_path / "jets.parquet")).predictions)
    pd.testing.assert_frame_equal(first, again)  # the noise has a seed
    np.testing.assert_allclose(first["true_ecal_energy"], high[:, 1].sum((1, 2)), rtol=1e-5)
    ratio = first["generated_ecal_energy"].sum() / first["true_ecal_energy"].sum()
    assert 0.97 < ratio < 1.0  # the frame's pixels lose half of their cells
    text = capsys.readouterr().out
    shown = re.search(r"energy response, ecal +([0-9.]+) \[", text)[1]
    assert shown == f"{ratio:.{len(shown) - 2}f}"
    assert "FPD" in text
    assert first["label"].tolist() == [0, 1] * 30


@pytest.mark.parametrize("labelled", [True, False])
def test_a_judge_of_generators_scores_jets_with_or_without_labels(
    project: Path,
    tmp_path: Path,
    sparse_array: Callable[..., np.ndarray],
    capsys: pytest.CaptureFixture[str],
    labelled: bool,
) -> None:
    x = np.abs(sparse_array(12, (125, 125, 8)))
    with h5py.File(tmp_path / "jets.h5", "w") as file:
        file["jet"] = x
        if labelled:
            file["Y"] = (np.arange(12).reshape(-1, 1) % 2).astype(np.float32)
    example = torch.zeros(2, 8, 125, 125)
    publish(project, "task2d_diffusion", SigmoidOfMean(), example, kind="generated_or_real")
    found = score("task2d_diffusion", str(tmp_path / "jets.h5"))
    expected = 1 / (1 + np.exp(-x.mean((1, 2, 3))))
    np.testing.assert_allclose(pd.read_csv(found.predictions)["generated"], expected, rtol=1e-5)
    (entry,) = found.metrics.values()
    assert entry["value"] == np.mean(expected > 0.5)
    assert "12 jets scored" in capsys.readouterr().out


def test_tables_of_other_columns_than_the_model_takes_are_refused() -> None:
    sample = SimpleNamespace(y=np.zeros(3), low_level=np.zeros((3, 21), np.float32))
    assert next(raw_batches(sample, (21,), "x")).shape == (3, 21)
    with pytest.raises(InputError, match="choose the task"):
        next(raw_batches(sample, (28,), "x"))


def test_one_class_is_refused_unless_predictions_are_enough(
    project: Path, write_events: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sample = str(write_events("photon.hdf5", np.zeros(30)))
    with pytest.raises(InputError, match="found only label 0; give events of the other class"):
        score(TASK, sample)
    score(TASK, sample, predictions_only=True)
    assert "no metrics: all events have label 0" in capsys.readouterr().out


def test_models_are_looked_up_from_published_to_quick(project: Path) -> None:
    published = paths.WEIGHTS / TASK / f"{TASK}.onnx"
    assert find_model(TASK) == published
    run = paths.run_directory("quick", TASK)
    run.mkdir(parents=True)
    write_onnx(run / "energy_only.onnx")
    assert find_model(TASK, "energy_only") == run / "energy_only.onnx"
    assert find_model(TASK, str(published)) == published
    with pytest.raises(InputError, match="only common_task1, energy_only"):
        find_model(TASK, "missing")
    with pytest.raises(InputError, match="check MODEL"):
        find_model(TASK, "missing.onnx")


def test_layouts() -> None:
    batch = np.random.default_rng(0).random((3, 2, 4, 5), dtype=np.float32)
    np.testing.assert_array_equal(
        official_layout(batch, (4, 5, 2), "x"), batch.transpose(0, 2, 3, 1)
    )
    assert official_layout(batch, (2, 4, 5), "x") is batch
    with pytest.raises(InputError, match="expected images"):
        official_layout(batch, (3, 4, 5), "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "--data", "x"], "TASK: expected"),
        ([TASK], "DATA: expected"),
        (["unknown", "--data", "x"], "unknown: expected a task folder"),
        ([TASK, "--data", "missing.hdf5"], "missing.hdf5: expected an HDF5 file, found none"),
        ([TASK, "--data", "x", "--out", "a.txt"], "a.txt: expected a name that ends in .csv"),
        ([TASK, "--data", "x", "--model", "none"], "found only common_task1"),
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(
    project: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        module.main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_unusable_models_are_refused(project: Path) -> None:
    path = paths.WEIGHTS / TASK / f"{TASK}.onnx"
    model = onnx.load(path)
    helper.set_model_props(model, {"kind": "clustering"})
    onnx.save(model, path)
    with pytest.raises(InputError, match="found clustering"):
        score(TASK, "x.hdf5")
    path.write_bytes(b"no model")
    with pytest.raises(InputError, match="expected an ONNX model"):
        score(TASK, "x.hdf5")


class SumAndTenth(torch.nn.Module):
    """Images (B, 4, 125, 125) -> their sum and a tenth of it, (B,) each."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = x.sum((1, 2, 3))
        return total, 0.1 * total


def test_masses_are_scored_with_their_uncertainty(
    project: Path,
    tmp_path: Path,
    sparse_array: Callable[..., np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = "task2e_mass_regression"
    example, names = torch.zeros(2, 4, 125, 125), (["x"], ["mass", "sigma"])
    publish(project, task, SumAndTenth(), example, names, kind="regression")
    x = np.abs(sparse_array(20, (8, 125, 125), seed=1))
    total = x[:, :4].sum((1, 2, 3))
    truth = total * np.where(np.arange(20) % 4 == 0, 1.2, 1.05)  # a quarter is off by 2 sigma
    columns = {"X_jet": nested(x), "am": pa.array(truth.astype(np.float64))}
    columns |= dict.fromkeys(("pt", "ieta", "iphi"), pa.array(np.ones(20)))
    pq.write_table(pa.table(columns), tmp_path / "tops.parquet")
    table = pd.read_csv(score(task, str(tmp_path / "tops.parquet")).predictions)
    np.testing.assert_allclose(table["mass"], total, rtol=1e-5)
    np.testing.assert_allclose(table["truth"], truth, rtol=1e-5)
    text = capsys.readouterr().out
    error = np.abs(total - truth).mean()
    assert float(re.search(r"MAE +([0-9.]+) \[", text)[1]) == pytest.approx(error, rel=1e-2)
    assert "within one sigma: 75.0%" in text
    pq.write_table(pa.table({"X_jet": columns["X_jet"]}), tmp_path / "unknown.parquet")
    with pytest.raises(InputError, match="expected a column 'm', found X_jet"):
        score(task, str(tmp_path / "unknown.parquet"))
    out = score(task, str(tmp_path / "unknown.parquet"), predictions_only=True).predictions
    table = pd.read_csv(out)
    assert list(table) == ["event", "mass", "sigma"]
    np.testing.assert_allclose(table["mass"], total, rtol=1e-5)
    assert "20 events scored; no metrics" in capsys.readouterr().out
