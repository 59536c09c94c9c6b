"""A run's life on disk, from the moment that a process claims it to its last checkpoint.

Imports point down this page.

    claims.py        runs that other processes execute, and their progress
    lease.py         the file that names the process that owns a run
    processes.py     identity of a process, and of the job that it belongs to
    place.py         a name of the folder of runs that machines share
    journal.py       measurements that wait on disk until the tracking store has them
    writing.py       a thread that writes checkpoints, and the copy that it writes
    checkpoint.py    training states that survive a crash
    encoder_file.py  the encoder that a run trained
    files.py         files that are written whole or not at all
    zips.py          zip archives of limited size
    kinds.py         kinds of files in place of the one that a name promises
    environment.py   versions, code and machine; the load of the machine
    cores.py         cores of this machine, and their share that decodes images
    garbage.py       Python's search for garbage, which costs seconds
    output.py        standard output that never stops a command
    squeue.py        the jobs that Slurm still lists
    progress.py      what a run reports while it is executed
    interrupt.py     stop requests, and where they take effect
"""
