"""`make results`: README's results table and weights/README.md.

Our numbers come from weights/*/metrics.json, those of others from public_results.toml.
"""

import argparse
import re
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import with_part, write_text
from e2e_utils.metric_text import digits_of, format_entry
from tools.model_cards import OFFICIAL, model_cards, public_result
from tools.staleness import is_stale
from tools.wording import STANDIN_NOTE, baseline_name, headline_name, short_title

PART = "results"  # of README.md
# Written by `make badges`; without it the table has no links to Colab.
REPOSITORY = re.compile(r"<!-- repository: (\S+) -->\n")
COLAB = "https://colab.research.google.com"
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
MOST_OFFICIAL = 4  # rows of one task
FEW_OFFICIAL = ("common_task1",)  # scored on a hundred official events: last
OF_OTHERS = "network of others"  # begins the description of a public network that a task scored
OTHERS = "published by others, on their own test events"
DIGITS = {"mae": 2}  # after the point; GeV
OFFICIAL_NOTE = (
    "Task 2a: no network saw the test rows, and they were not used to calibrate the simulation; "
    "other groups used other test rows. `weights/` holds a single network, not the ensemble. "
    "Common task 1: the simulation was calibrated on official images and on a network published "
    "by others. Both samples are small extracts of the official files and not part of this "
    "repository; without their folder (`E2E_REAL_SAMPLES`, by default `shared/data` beside the "
    "repository) a run leaves these rows out. Task 2j: MNIST itself."
)
INTERVAL_NOTE = (
    "Square brackets: 95 % interval; ±: standard deviation over trainings with different seeds "
    "(none where there was one training). Difference: our result minus the baseline; its interval "
    "covers test events and trainings. ▲ better, ▼ worse, = no measurable difference, – not "
    "computed. For task 2f the value is the median over processes, the brackets are the fastest "
    "and slowest, ± is the standard deviation."
)

COLAB_NOTE = (
    "In Colab, enter `https://github.com/{repository}` in the field of the first code cell; it "
    "fetches the repository and installs what is missing."
)


STALE = " (stale)"
STALE_NOTE = (
    "*Stale*: the script was changed after this run and has not been run again; the numbers are "
    "those of the published notebook."
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


def table_digits(metrics: dict) -> int:
    """Digits after the point of a task's headline."""
    headline = metrics["headline"]
    return DIGITS.get(headline, digits_of(metrics["metrics"][headline]))


def baseline_cells(metrics: dict) -> tuple[str, str]:
    """The best baseline and what the headline leads it by, as cells of the table."""
    if (found := best_baseline(metrics)) is None:
        return "–", "–"
    name, entry = found
    name = baseline_name(metrics["task"], name, metrics["baselines"][name])
    digits = min(table_digits(metrics), digits_of(entry))
    return f"{name}: {entry['value']:.{digits}f}", format_lead(entry, table_digits(metrics))


def format_lead(entry: dict, digits: int) -> str:
    """``+0.0028 [+0.0014, +0.0042] ▲``: what the headline leads an entry by; else a dash."""
    if (lead := entry.get("lead")) is None:
        return "–"
    form = f"+.{min(digits, digits_of(lead))}f"
    return f"{lead['value']:{form}} [{lead['low']:{form}}, {lead['high']:{form}}] {lead['mark']}"


def colab_badge(task: str, repository: str) -> str:
    """Badge that opens the published notebook of a task in Colab."""
    address = f"{COLAB}/github/{repository}/blob/main/{task}/{task}.ipynb"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({address})"


def official_rows(task: str, metrics: dict) -> list[str]:
    """What a task measured on official events as rows of a table: best first, others' last."""
    headline = metrics["headline"]
    if metrics["data"]["source"] == "official":
        found = [("network of the task", metrics["metrics"][headline])]
    else:
        models = metrics.get("variants", {}).get(OFFICIAL, {}).values()
        found = [(m["info"]["description"], m[headline]) for m in models if headline in m]
    sign = -1 if headline in LOWER_IS_BETTER else 1
    order = sorted(found, key=lambda row: (row[0].startswith(OF_OTHERS), -sign * row[1]["value"]))
    return [
        f"| {f'[{short_title(task, metrics)}]({task})' if not number else ''} | {name} | "
        f"{headline_name(headline)} "
        f"{format_entry(entry, bold=not number and not name.startswith(OF_OTHERS))} |"
        for number, (name, entry) in enumerate(order[:MOST_OFFICIAL])
    ]


def official_block(published: dict[str, dict]) -> list[str]:
    """The results on official events, each task with what others have reached there."""
    lines = []
    for task, metrics in sorted(published.items(), key=lambda item: item[0] in FEW_OFFICIAL):
        rows = official_rows(task, metrics)
        if rows:
            lines += [*rows, f"| | {OTHERS} | {public_result(task)} |"]
    if not lines:
        return []
    header = [
        "| Task | Network | Result on official events |",
        "| --- | --- | --- |",
    ]
    return ["**On official events.**", "", *header, *lines, "", OFFICIAL_NOTE, ""]


def results_block(published: dict[str, dict], repository: str | None = None) -> str:
    """README's part between the markers; with badges where the repository is known."""
    if not published:
        return "No run has been published yet (`make publish PROFILE=standard`)."
    lines = official_block(published)
    standins = any(metrics["data"]["source"] == "standin" for metrics in published.values())
    if standins:
        lines += ["**On simulated stand-in events**, unless a task is marked official.", ""]
    lines += [
        "| Task | Result on the test set | Best baseline | Difference | Files |",
        "| --- " * 5 + "|",
    ]
    for task, metrics in published.items():
        entry = metrics["metrics"][metrics["headline"]]
        files = [
            f"[notebook]({task}/{task}.ipynb)" + STALE * is_stale(task),
            f"[PDF](weights/{task}/{task}.pdf)",
            f"[weights](weights/{task})",
            *([colab_badge(task, repository)] if repository else []),
        ]
        official = " (official)" if standins and metrics["data"]["source"] == "official" else ""
        cells = [
            f"[{short_title(task, metrics)}]({task}){official}",
            f"{headline_name(metrics['headline'])} "
            f"{format_entry(entry, table_digits(metrics), bold=True)}",
            *baseline_cells(metrics),
            " · ".join(files),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    profiles = " and ".join(sorted({metrics["profile"] for metrics in published.values()}))
    lines += ["", f"All runs use the profile `{profiles}`. {INTERVAL_NOTE}"]
    if standins:
        lines += ["", STANDIN_NOTE]
    if any(STALE in line for line in lines):
        lines += ["", STALE_NOTE]
    if repository:
        lines += ["", COLAB_NOTE.format(repository=repository)]
    return "\n".join(lines)


def without_marks(text: str) -> str:
    """The text without marks of stale rows: README need not change whenever a script does."""
    return text.replace(STALE, "").replace(f"\n\n{STALE_NOTE}", "")


def readme_path() -> Path:
    """The project's README. Raises InputError where there is none."""
    readme = paths.ROOT / "README.md"
    if not readme.is_file():
        raise InputError(f"{readme}: expected the project's README, found none; restore it")
    return readme


def generated_texts() -> dict[Path, str]:
    """Path -> content that the generated files should have."""
    published = published_metrics()
    readme = readme_path()
    text = readme.read_text(encoding="utf-8")
    stamped = REPOSITORY.search(text)
    block = results_block(published, stamped and stamped[1])
    text = with_part(text, PART, block, "README.md")
    return {readme: text, paths.WEIGHTS / "README.md": model_cards(published)}


def stamp_repository(repository: str) -> bool:
    """Name the repository in README.md and write its badges; whether anything changed.

    Raises InputError for a README without the markers of the results.
    """
    readme = readme_path()
    before = readme.read_text(encoding="utf-8")
    line = f"<!-- repository: {repository} -->\n"
    bare = REPOSITORY.sub("", before)
    block = results_block(published_metrics(), repository)
    marker = f"<!-- {PART}:begin -->"
    after = with_part(bare.replace(marker, line + marker), PART, block, "README.md")
    if after != before:
        write_text(readme, after)
    return after != before


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
