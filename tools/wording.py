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
    "c2st_auc_low": "two-sample AUC of trees, low-level inputs (0.5 is ideal)",
    "c2st_auc_high": "two-sample AUC of trees, high-level inputs (0.5 is ideal)",
    "mae": "MAE in GeV",
}
# What the narrow tables of notebooks abbreviate.
IN_FULL = {
    "c2st_auc_low": "two-sample AUC, low-level inputs",
    "c2st_auc_high": "two-sample AUC, high-level inputs",
}
# (task, baseline) -> what its label in the notebook says only to those who have read that.
BASELINES = {
    ("task2b_superres_gan", "likelihood"): "our network, trained without the adversary",
    ("task2c_sparse_vae", "scratch"): "taught by a teacher, not pre-trained, not pruned",
    ("task2d_diffusion", "independent"): "towers drawn independently",
    ("task2f_cmssw_inference", "session_per_event"): "a new ONNX session for every event",
    ("task2i_foundation", "longer"): "convolution, labels only, trained longer",
    ("task2i_foundation", "scratch"): "transformer, labels only, trained as long",
    ("task2j_symmetry", "matrix_exponential"): "linear flow exp(tG) in latent space",
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


def name_in_full(metric: str) -> str:
    """A metric's name for readers who have not seen the notebook."""
    return IN_FULL.get(metric, metric_name(metric))


def headline_name(metric: str) -> str:
    """A headline's name, with its unit or its ideal."""
    return HEADLINES.get(metric, metric_name(metric))


def baseline_name(task: str, name: str, model: dict) -> str:
    """What a baseline is: in words of this module, else in those of its run."""
    described = model.get("info", {}).get("description", name.replace("_", " "))
    return BASELINES.get((task, name), described)


def short_title(task: str, metrics: dict) -> str:
    """A task's title where there is little room."""
    return SHORT_TITLES.get(task, title(metrics))


def entries_text(entries: Entries) -> str:
    """All entries of one model, one per line."""
    width = max(len(name_in_full(name)) for name in entries)
    return "\n".join(
        f"  {name_in_full(name):{width}s}  {format_entry(e)}" for name, e in entries.items()
    )


def title(metrics: dict) -> str:
    """A task's title, or its name where a run gave none."""
    return metrics.get("title") or metrics["task"].replace("_", " ")
