"""Memory of GPUs, and shares of them, that runs need.

A module imports only from modules listed below its own line.

    together.py   several runs at once in one job of a scheduler
    sharing.py    the number of runs that share a GPU, and the free parts of each device
    memory.py     peak memory of a run, estimated from its settings or recorded by comparable runs
    cards.py      the datasheets of GPUs
"""
