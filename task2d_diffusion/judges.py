"""Two-sample tests by classifiers: trees on observables, and networks that the caller builds.

A judge is trained on the first of two labelled samples and stopped by the second. It gives scores
(n,) to jets, the higher the more they look generated.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from e2e_utils.boosting import fit_trees
from e2e_utils.comparison import Comparison
from e2e_utils.machine import pick_device
from e2e_utils.metrics import roc_auc
from e2e_utils.seeds import epoch_batches, seed_everything
from task2d_diffusion.planted_defects import Defect
from task2d_diffusion.samples import Sample, joined, of_towers
from task2d_diffusion.towers import in_parts

TREES = HistGradientBoostingClassifier(
    max_iter=300, learning_rate=0.08, max_leaf_nodes=15, random_state=0
)


class Labelled(NamedTuple):
    """Jets, and 1 for generated ones."""

    sample: Sample
    label: np.ndarray


Score = Callable[[Sample], np.ndarray]
Learner = Callable[[Labelled, Labelled], Score]


def mixed(real: Sample, made: Sample) -> Labelled:
    """Generated jets and as many real ones, the first of ``real``."""
    few = real.rows(slice(len(made)))
    return Labelled(joined([few, made]), np.repeat([0, 1], [len(few), len(made)]))


def divided(made: Sample, others: dict[str, Sample]) -> tuple[Labelled, Labelled, Sample]:
    """What a judge of ``made`` learns from, what stops it, and the jets that it has not seen.

    Half of the generated jets with as many of the real ones in ``others["train"]``, a tenth with as
    many of ``others["validation"]``, the last 40 %.
    """
    a, b = len(made) // 2, len(made) * 6 // 10
    fit = mixed(others["train"], made.rows(slice(a)))
    stop = mixed(others["validation"], made.rows(slice(a, b)))
    return fit, stop, made.rows(slice(b, None))


def verdict(
    learn: Learner, made: Sample, against: Sequence[str], others: dict[str, Sample]
) -> list[np.ndarray]:
    """Scores of (real jets of each set, then the last 40 % of ``made``)."""
    fit, stop, last = divided(made, others)
    score = learn(fit, stop)
    own = score(last)
    return [np.concatenate([score(others[name]), own]) for name in against]


Interval = tuple[float, float, float]


def aucs_of_grades(
    learn: Learner,
    whole: Sample,
    defect: Defect,
    grades: Sequence[float],
    others: dict[str, Sample],
) -> dict[float, Interval]:
    """AUC and interval for falling grades of a defect in ``whole``, down to the first not found.

    The jets are judged against ``others["calibration"]``.
    """
    found = {}
    for grade in grades:
        part = whole.towers(np.arange(len(whole)))
        made = of_towers(part._replace(x=defect(part.x, np.random.default_rng(0), grade)))
        scores = {"defect": verdict(learn, made, ("calibration",), others)}
        found[grade] = compared(len(others["calibration"]), scores, "defect").interval("defect")
        if found[grade][1] <= 0.5:
            break
    return found


def smallest_grade(aucs: dict[float, Interval]) -> float:
    """The smallest grade that a judge finds; infinity if none."""
    return min((grade for grade, (_, low, _) in aucs.items() if low > 0.5), default=np.inf)


@threadpool_limits.wrap(limits=1)  # several threads wait for each other where others compute, too
def grown_trees(
    x: np.ndarray, y: np.ndarray, x_stop: np.ndarray, y_stop: np.ndarray
) -> HistGradientBoostingClassifier:
    """Boosted trees on features (n, k), labels (n,), as many as the events to stop with prefer."""
    return fit_trees(TREES, x, y, x_stop, y_stop)


def tree_judge(fit: Labelled, stop: Labelled) -> Score:
    """Boosted trees on observables."""
    columns = [(part.sample.table.to_numpy(), part.label) for part in (fit, stop)]
    trees = grown_trees(*columns[0], *columns[1])
    return lambda sample: trees.decision_function(sample.table.to_numpy())


@torch.inference_mode()
def logits(model: nn.Module, sample: Sample) -> np.ndarray:
    """A network's logits (n,), in double precision, which ties no certain jets."""
    device, parts = pick_device(), in_parts(np.arange(len(sample)), 100)
    return torch.cat([model(sample.images.dense(r, device)).cpu() for r in parts]).double().numpy()


def trained_network(
    build: Callable[[], nn.Module], seed: int, passes: int, fit: Labelled, stop: Labelled
) -> nn.Module:
    """A fresh network of images, trained on them and their mirror images.

    The pass with the lowest loss on ``stop`` is kept.
    """
    seed_everything(seed)
    device = pick_device()
    model, best, weights = build().to(device), np.inf, {}
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.02)
    target, truth = torch.as_tensor(fit.label).float(), torch.as_tensor(stop.label).double()
    size, rng = min(32, len(target)), np.random.default_rng(seed)
    steps = passes * (len(target) // size)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, cycle_momentum=False)
    for number in range(passes):
        model.train()
        for rows in epoch_batches(np.arange(len(target)), size, seed, number):
            x = fit.sample.images.dense(rows, device)
            logit = model(x.flip([axis for axis in (2, 3) if rng.random() < 0.5]))
            loss = binary_cross_entropy_with_logits(logit, target[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
        answer = torch.as_tensor(logits(model.eval(), stop.sample))
        value = binary_cross_entropy_with_logits(answer, truth).item()
        if value < best:
            best, weights = value, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    return model


def network_judge(
    build: Callable[[], nn.Module], seed: int, passes: int, fit: Labelled, stop: Labelled
) -> Score:
    """`trained_network` as a judge."""
    return partial(logits, trained_network(build, seed, passes, fit, stop))


def compared(n_real: int, scores: dict[str, list[np.ndarray]], reference: str) -> Comparison:
    """AUCs of judges that scored n_real real jets, then generated ones; less is better."""
    y = np.repeat([0, 1], [n_real, len(scores[reference][0]) - n_real])
    return Comparison(roc_auc, y, scores, reference, higher_is_better=False)


def interval(comparison: Comparison, name: str) -> str:
    """Value, half of its interval, and whether it differs from the reference, without a break."""
    mark = "" if name == comparison.reference else comparison.mark(name)
    value, low, _ = comparison.interval(name)
    return f"{value:.3f} ± {value - low:.3f} {mark}".strip().replace(" ", "\N{NO-BREAK SPACE}")
