"""`make all` on HTCondor (CERN's lxbatch, for example): every worker is a job.

    python -m tools.cluster.htcondor --flavour workday --profile standard
    python -m tools.cluster.htcondor --show       # the submit file; nothing is submitted

Options that are not listed below go to tools.regenerate. This folder must be on a disk that the
nodes share. Needs dask-jobqueue (pip install dask-jobqueue==0.9.0).
"""

import argparse
from typing import TYPE_CHECKING

from e2e_utils.errors import command_line
from tools.cluster.jobs import dask_jobqueue, parser, run, worker_options

if TYPE_CHECKING:
    from dask_jobqueue import HTCondorCluster


def htcondor_cluster(options: argparse.Namespace) -> "HTCondorCluster":
    """The Dask cluster, without workers yet. Raises InputError without dask-jobqueue."""
    directives = {"RequestGPUs": "1"} if options.gpu else {}
    if options.flavour:
        directives["+JobFlavour"] = f'"{options.flavour}"'
    return dask_jobqueue().HTCondorCluster(
        disk=options.disk, job_extra_directives=directives, **worker_options(options)
    )


@command_line
def main(arguments: list[str] | None = None) -> int:
    options = parser("tools.cluster.htcondor", __doc__)
    options.add_argument("--disk", default="10GB", help="per job")
    options.add_argument("--flavour", help="CERN's classes of run time: longlunch, workday, ...")
    chosen, rest = options.parse_known_args(arguments)
    with htcondor_cluster(chosen) as cluster:
        return run(cluster, chosen, rest)


if __name__ == "__main__":
    main()
