"""Run every benchmark, print the table and write benchmarks/results.md."""

import importlib
import platform
from pathlib import Path

import torch

from e2e_utils.errors import command_line
from e2e_utils.files import write_text

BENCHMARKS = (
    "simulation",
    "higgs",
    "jets",
    "boosted",
    "loading",
    "training",
    "target_auc",
    "inference",
)
RESULTS = Path(__file__).with_name("results.md")


def table(rows: list[dict]) -> str:
    """Markdown table; rates to three digits."""
    lines = ["| what | ours | reference | against | ratio | unit |", "|---|---|---|---|---|---|"]
    for r in rows:
        reference = "" if r["reference"] is None else f"{r['reference']:.3g}"
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        cells = [r["what"], f"{r['ours']:.3g}", reference, r["against"], ratio, r["unit"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@command_line
def main() -> None:
    rows = []
    for name in BENCHMARKS:
        print(f"{name} ...", flush=True)
        rows += importlib.import_module(f"benchmarks.{name}").measure()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    text = f"# Benchmarks\nWritten by `make bench` on: {machine}.\n\n{table(rows)}\n"
    _, title, rest = RESULTS.read_text(encoding="utf-8").partition("\n## ")  # of other programs
    write_text(RESULTS, text + title + rest)
    print(text)


if __name__ == "__main__":
    main()
