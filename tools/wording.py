"""How metrics and data sources are put into words in generated texts."""

from e2e_utils.metric_text import format_entry, metric_name

Entries = dict[str, dict[str, float]]  # metric -> value with its interval

STANDIN_NOTE = (
    "*Stand-in events* are simulated by this repository, because the machine that ran the "
    "notebooks could not reach the servers of CERN, NERSC and UCI. They show whether a method "
    "works and how methods compare with each other; **do not compare these numbers with numbers "
    "on the official data.** `make all DATA_SOURCE=official` runs the same notebooks on the "
    "official files."
)

# What a table without the notebook's text has to say of a headline.
HEADLINES = {
    "roc_auc": "ROC-AUC",
    "c2st_auc_low": "two-sample AUC of trees (0.5 is ideal)",
    "c2st_auc_high": "two-sample AUC of trees (0.5 is ideal)",
    "mae": "MAE in GeV",
}
SHORT_TITLES = {
    "common_task1": "1: electron or photon",
    "task2a_higgs_transformer": "2a: HIGGS",
    "task2b_superres_gan": "2b: super-resolution",
    "task2c_sparse_vae": "2c: sparse VAE",
    "task2d_diffusion": "2d: diffusion",
    "task2e_mass_regression": "2e: mass of tops",
    "task2f_cmssw_inference": "2f: ONNX in CMSSW",
    "task2g_ssl_vit": "2g: self-supervision",
    "task2h_graph_jets": "2h: graphs",
    "task2i_foundation": "2i: foundation model",
    "task2j_symmetry": "2j: symmetry",
}


def headline_name(metric: str) -> str:
    """A headline's name, with its unit or its ideal."""
    return HEADLINES.get(metric, metric_name(metric))


def short_title(task: str, metrics: dict) -> str:
    """A task's title where there is little room."""
    return SHORT_TITLES.get(task, title(metrics))


def entries_text(entries: Entries) -> str:
    """All entries of one model, one per line."""
    width = max(len(metric_name(name)) for name in entries)
    return "\n".join(
        f"  {metric_name(name):{width}s}  {format_entry(e)}" for name, e in entries.items()
    )


def title(metrics: dict) -> str:
    """A task's title, or its name where a run gave none."""
    return metrics.get("title") or metrics["task"].replace("_", " ")
