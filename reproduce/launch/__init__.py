"""Launchers: where runs start.

Each module of this package is a launcher, selected by its name (`launcher` in the site file).

    local.py    this machine
    slurm.py    a Slurm cluster
"""

from __future__ import annotations

from reproduce.site import Site, site_file

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""One thread per process, however many cores are free: sums depend on how they are split among threads, and a
run must not depend on its neighbours."""
MEMORY = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
"""Settings that keep freed memory in the process: fresh pages cost a small CPU step a fifth of its time."""


def variables(site: Site, *, gpus: bool) -> dict[str, str]:
    """Return the environment variables by which a process finds this site; on a CPU they also set one thread.

    The address of a tracking server is passed this way, and never written to a script, because it may contain
    a password.
    """
    own = {
        "MSBREG_SITE": str(site_file().resolve()) if site_file().exists() else "",
        "MLFLOW_TRACKING_URI": site.store,
    }
    return own if gpus else own | ONE_THREAD | MEMORY
