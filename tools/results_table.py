"""`make results`: README's results table and weights/README.md, from weights/*/metrics.json.

No number in these texts is typed by hand.
"""

import argparse
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import write_text
from tools.model_cards import model_cards
from tools.wording import STANDIN_NOTE, entry_text, label, title

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
LOWER_IS_BETTER = {
    "mae",
    "rmse",
    "fpd",
    "kpd",
    "c2st_auc_high",
    "c2st_auc_low",
    "expected_calibration_error",
    "milliseconds_per_event",
}
SOURCES = {
    "official": "official",
    "standin": "**simulated stand-in**",
    "file": "other file",
}
INTERVAL_NOTE = (
    "Brackets: 95 % bootstrap interval over test events; ±: standard deviation between trainings "
    "with different seeds. Intervals of times hold within one run; another run on the same machine "
    "can differ by more."
)


def published_metrics() -> dict[str, dict]:
    """Task -> validated metrics of every published run, in the order of the tasks."""
    from e2e_utils.evaluation import load_metrics

    # [!.]: while a run is published, the previous one waits in a hidden folder
    files = sorted(paths.WEIGHTS.glob("[!.]*/metrics.json"))
    return {file.parent.name: load_metrics(file) for file in files}


def best_baseline(metrics: dict) -> tuple[str, dict] | None:
    """Name and headline entry of the baseline that the model has to beat."""
    headline = metrics["headline"]
    found = [
        (name, model[headline]) for name, model in metrics["baselines"].items() if headline in model
    ]
    if not found:
        return None
    sign = -1 if headline in LOWER_IS_BETTER else 1
    return max(found, key=lambda item: sign * item[1]["value"])


def results_block(published: dict[str, dict]) -> str:
    """README's block, markers included."""
    if not published:
        return f"{BEGIN}\nNo run has been published yet (`make publish PROFILE=standard`).\n{END}"
    lines = [
        "| Task | Result on the test set | Best baseline | Data | Profile | Files |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for task, metrics in published.items():
        baseline = best_baseline(metrics)
        entry = metrics["metrics"][metrics["headline"]]
        cells = [
            f"[{title(metrics)}]({task})",
            f"{label(metrics['headline'])} {entry_text(entry, bold=True)}",
            f"{baseline[0].replace('_', ' ')}: {entry_text(baseline[1])}" if baseline else "–",
            SOURCES[metrics["data"]["source"]],
            metrics["profile"],
            f"[notebook]({task}/{task}.ipynb) · [PDF](weights/{task}/{task}.pdf) · "
            f"[weights](weights/{task})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", INTERVAL_NOTE]
    if any(metrics["data"]["source"] == "standin" for metrics in published.values()):
        lines += ["", STANDIN_NOTE]
    return "\n".join([BEGIN, *lines, END])


def with_block(readme: str, block: str, name: str = "README.md") -> str:
    """``readme`` with its results block replaced. Raises InputError without the two markers."""
    begin, end = readme.find(BEGIN), readme.find(END)
    if begin < 0 or end < begin:
        raise InputError(
            f"{name}: expected the markers {BEGIN} and {END}, found them not; put both into it"
        )
    return readme[:begin] + block + readme[end + len(END) :]


def generated_texts() -> dict[Path, str]:
    """Path -> content that the generated files should have."""
    published = published_metrics()
    readme = paths.ROOT / "README.md"
    if not readme.is_file():
        raise InputError(f"{readme}: expected the project's README, found none; restore it")
    text = with_block(readme.read_text(encoding="utf-8"), results_block(published))
    return {readme: text, paths.WEIGHTS / "README.md": model_cards(published)}


def update() -> list[Path]:
    """Write the generated files that are not up to date; which ones."""
    changed = []
    for path, text in generated_texts().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            changed.append(path)
    return changed


@command_line
def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m tools.results_table", description=__doc__).parse_args(
        arguments
    )
    changed = update()
    for path in changed:
        print(f"written: {path.relative_to(paths.ROOT)}")
    if not changed:
        print("README.md and weights/README.md are up to date")


if __name__ == "__main__":
    main()
