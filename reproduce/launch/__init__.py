"""Where runs start. A file that is not listed is a launcher, found by its name."""

from __future__ import annotations

from reproduce.site import Site, site_file

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""However many cores are free: sums depend on how they are shared out, and a run must not depend on what runs
beside it."""
MEMORY = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
"""Keeps freed memory in the process: fresh pages from the system cost a small CPU step a fifth of its
time."""


def variables(site: Site, *, gpus: bool) -> dict[str, str]:
    """The variables by which a process finds this site, wherever it starts, and on a CPU keeps to one thread.

    The address of a tracking server goes this way, and into no script, as it may hold a password.
    """
    own = {
        "MSBREG_SITE": str(site_file().resolve()) if site_file().exists() else "",
        "MLFLOW_TRACKING_URI": site.store,
    }
    return own if gpus else own | ONE_THREAD | MEMORY
