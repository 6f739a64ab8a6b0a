"""How metrics and data sources are put into words in generated texts."""

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


def digits(value: float) -> str:
    """Format: four digits after the point for numbers around one, four significant for others."""
    return ".4f" if 0.01 <= abs(value) < 10 else ".4g"


def entry_text(entry: dict[str, float], bold: bool = False) -> str:
    """``0.8049 [0.8012, 0.8085] ± 0.0007``, all with the digits of the value."""
    form, mark = digits(entry["value"]), "**" if bold else ""
    value, low, high = (format(entry[name], form) for name in ("value", "low", "high"))
    text = f"{mark}{value}{mark} [{low}, {high}]"
    return text + (f" ± {entry['seed_std']:{form}}" if "seed_std" in entry else "")


def entries_text(entries: dict[str, dict[str, float]]) -> str:
    """All entries of one model, one a line."""
    width = max(len(label(name)) for name in entries)
    return "\n".join(f"  {label(name):{width}s}  {entry_text(e)}" for name, e in entries.items())


def title(metrics: dict) -> str:
    """A task's title, or its name where a run gave none."""
    return metrics.get("title") or metrics["task"].replace("_", " ")
