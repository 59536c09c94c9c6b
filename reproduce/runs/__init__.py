"""A run's life on disk, from the moment that a process claims it to its last checkpoint.

Imports point down this page.

    claims.py        runs that other processes execute, and how far they are
    lease.py         the file that says which process owns a run
    journal.py       measurements that wait on disk until the tracking store has them
    checkpoint.py    training states and encoders that survive a crash
    files.py         files that are written whole or not at all
    environment.py   versions, code and machine; the load of the machine
    squeue.py        the jobs that Slurm still lists
    progress.py      what a run reports on the way
    interrupt.py     requests to stop, and where they take effect
"""
