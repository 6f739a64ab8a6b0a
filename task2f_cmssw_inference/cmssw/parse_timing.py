"""Times per module from the resources.json of FastTimerService: table and CSV.

    python3 parse_timing.py resources.json [--csv t.csv] [--markdown t.md]

The file (written by FastTimerService::writeSummaryJSON, HLTrigger/Timer) holds "total", one entry
per module in "modules" (with "other", the overhead of the framework, and in newer releases
"eventsetup"), and in newer releases "resources", the names of the metrics. An entry has "label",
"type" (the C++ class), "events" (in which the module ran), and "time_real" and "time_thread" (CPU)
in ms, summed over those events. Like FastTimerService's own report, times are divided by the events
of the job, and, as "when run", by the events of the module.

It needs the standard library of Python 3.6 or newer only, so that the file works alone, in a
container of CMSSW too.
"""

import argparse
import csv
import json
import math
import sys

try:
    from e2e_utils.errors import InputError, command_line
except ImportError:  # the file alone, away from the repository

    class InputError(Exception):
        """Input that cannot be used; the message is one line."""

    def command_line(main):
        """Exit code 2 with one line on InputError."""

        def run():
            try:
                code = main()
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
                code = 2
            sys.exit(code or 0)

        return run


COLUMNS = ("module", "type", "events", "real_ms", "cpu_ms", "real_ms_when_run", "share")
TEXT = ("label", "type")
NUMBERS = ("events", "time_real", "time_thread")


def load_rows(path) -> list:
    """Rows (dictionaries of COLUMNS): modules by falling real time, then the job as "total".

    Times in ms per event of the job, share of the job's real time.
    Raises InputError for a file that is not what FastTimerService writes.
    """
    content = _load(path)
    total = _entry(path, content.get("total"), "total")
    if not total["events"]:
        raise _wrong(path, "events in 'total'", "0")
    modules = content.get("modules")
    if not isinstance(modules, list) or not modules:
        raise _wrong(path, "a list of entries in 'modules'", _kind(modules))
    entries = [_entry(path, entry, f"modules[{i}]") for i, entry in enumerate(modules)]
    rows = [_row(entry, entry["label"], total) for entry in entries]
    rows.sort(key=lambda row: -row["real_ms"])
    return [*rows, _row(total, "total", total)]


def _wrong(path, expected: str, found: str) -> InputError:
    action = "run cmsRun to its end with writeJSONSummary = True of FastTimerService"
    return InputError(f"{path}: expected {expected}, found {found}; {action}")


def _kind(value) -> str:
    return "nothing" if value is None else "an empty list" if value == [] else type(value).__name__


def _load(path) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise _wrong(path, "the resources.json of FastTimerService", error.strerror) from error
    except ValueError as error:
        raise _wrong(path, "JSON", str(error)) from error
    if not isinstance(content, dict):
        raise _wrong(path, "an object with 'total' and 'modules'", _kind(content))
    return content


def _entry(path, entry, where: str) -> dict:
    """``entry`` if it has every field, of the right kind."""
    if not isinstance(entry, dict):
        raise _wrong(path, f"an entry in '{where}'", _kind(entry))
    for key in TEXT:
        if not isinstance(entry.get(key), str):
            raise _wrong(path, f"a text as '{key}' of '{where}'", repr(entry.get(key)))
    for key in NUMBERS:
        value = entry.get(key)
        # A boolean is an int in Python; NaN fails the comparison.
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise _wrong(path, f"a number >= 0 as '{key}' of '{where}'", repr(value))
    return entry


def _row(entry: dict, label: str, total: dict) -> dict:
    ran = entry["events"]
    return {
        "module": label,
        "type": entry["type"],
        "events": ran,
        "real_ms": entry["time_real"] / total["events"],
        "cpu_ms": entry["time_thread"] / total["events"],
        "real_ms_when_run": entry["time_real"] / ran if ran else 0.0,
        "share": entry["time_real"] / total["time_real"] if total["time_real"] else 0.0,
    }


def timing_table(rows) -> str:
    """Markdown table of rows from ``load_rows``."""
    lines = [
        "| module | type | events | real [ms/event] | CPU [ms/event] "
        "| real when run [ms] | share |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            "| {module} | {type} | {events} | {real_ms:.3f} | {cpu_ms:.3f} "
            "| {real_ms_when_run:.3f} | {share:.1%} |".format(**row)
        )
    return "\n".join(lines) + "\n"


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("resources", help="resources.json of FastTimerService")
    parser.add_argument("--csv", help="write the table as CSV")
    parser.add_argument("--markdown", help="write the table as markdown")
    arguments = parser.parse_args()
    rows = load_rows(arguments.resources)
    print(timing_table(rows), end="")
    if arguments.csv:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    if arguments.markdown:
        with open(arguments.markdown, "w", encoding="utf-8") as file:
            file.write(timing_table(rows))


if __name__ == "__main__":
    main()
