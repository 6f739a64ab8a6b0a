"""How metrics and data sources are put into words in generated texts."""

from e2e_utils.number_text import format_entry

LABELS = {
    "roc_auc": "ROC-AUC",
    "accuracy": "accuracy",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "fpd": "FPD",
    "kpd": "KPD",
    "c2st_auc_low": "two-sample AUC, low level",
    "c2st_auc_high": "two-sample AUC, high level",
    "energy_error": "energy, worst channel |ratio - 1|",
    "occupancy_error": "occupancy, worst channel |ratio - 1|",
    "tagger_auc": "tagger ROC-AUC",
    "expected_calibration_error": "calibration error",
    "milliseconds_per_event": "inference time [ms/event]",
    "background_rejection_50": "background rejection at 50 % signal efficiency",
    "background_rejection_70": "background rejection at 70 % signal efficiency",
    "background_rejection_80": "background rejection at 80 % signal efficiency",
}
STANDIN_NOTE = (
    "Results marked *simulated stand-in* were trained and tested on events that this repository "
    "simulates, because the official files could not be fetched where it was run. They show that "
    "the method works and how models compare with each other; **they must not be compared with "
    "numbers on the official data.** `make all DATA_SOURCE=official` produces those."
)


def label(metric: str) -> str:
    """A metric's name as people write it."""
    return LABELS.get(metric, metric.replace("_", " "))


def entries_text(entries: dict[str, dict[str, float]]) -> str:
    """All entries of one model, one a line."""
    width = max(len(label(name)) for name in entries)
    return "\n".join(f"  {label(name):{width}s}  {format_entry(e)}" for name, e in entries.items())


def title(metrics: dict) -> str:
    """A task's title, or its name where a run gave none."""
    return metrics.get("title") or metrics["task"].replace("_", " ")
