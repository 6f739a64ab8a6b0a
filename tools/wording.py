"""How metrics and data sources are put into words in generated texts."""

from e2e_utils.metric_text import format_entry, metric_name

Entries = dict[str, dict[str, float]]  # metric -> value with its interval

STANDIN_NOTE = (
    "*Simulated stand-in events* come from this repository, because the official files could not "
    "be fetched where it was run. Results on them show that the method works and how models "
    "compare with each other; **they must not be compared with numbers on the official data.** "
    "`make all DATA_SOURCE=official` produces those."
)


def entries_text(entries: Entries) -> str:
    """All entries of one model, one per line."""
    width = max(len(metric_name(name)) for name in entries)
    return "\n".join(
        f"  {metric_name(name):{width}s}  {format_entry(e)}" for name, e in entries.items()
    )


def title(metrics: dict) -> str:
    """A task's title, or its name where a run gave none."""
    return metrics.get("title") or metrics["task"].replace("_", " ")
