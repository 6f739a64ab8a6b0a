"""`make all` on Slurm: every worker is a job.

    python -m tools.cluster.slurm --queue normal --account physics --profile standard
    python -m tools.cluster.slurm --show          # the job script; nothing is submitted

Options that are not listed below go to tools.regenerate. This folder must be on a disk that the
nodes share. Needs dask-jobqueue (pip install dask-jobqueue==0.9.0).
"""

import argparse
from typing import TYPE_CHECKING

from e2e_utils.errors import command_line
from tools.cluster.jobs import dask_jobqueue, parser, run, worker_options

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster


def slurm_cluster(options: argparse.Namespace) -> "SLURMCluster":
    """The Dask cluster, without workers yet. Raises InputError without dask-jobqueue."""
    return dask_jobqueue().SLURMCluster(
        queue=options.queue,
        account=options.account,
        walltime=options.walltime,
        job_extra_directives=["--gres=gpu:1"] if options.gpu else [],
        **worker_options(options),
    )


@command_line
def main(arguments: list[str] | None = None) -> int:
    options = parser("tools.cluster.slurm", __doc__)
    options.add_argument("--queue", help="partition")
    options.add_argument("--account")
    options.add_argument("--walltime", default="04:00:00")
    chosen, rest = options.parse_known_args(arguments)
    with slurm_cluster(chosen) as cluster:
        return run(cluster, chosen, rest)


if __name__ == "__main__":
    main()
