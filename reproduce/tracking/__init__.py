"""The tracking store: MLflow's record of every run. No other package imports MLflow.

Imports point down this page.

    reuse.py        finished runs whose data have not changed
    store.py        finished runs, and the record of each run
    recording.py    the record of one run while it is written
    monitor.py      samples of the machine's load during a run
    connection.py   the connection to MLflow, opened when first needed
    places.py       artifacts of a store that was moved or copied
    sqlite.py       reads MLflow's sqlite file without MLflow
    retry.py        waits for a store that does not answer, or is locked
    errors.py       one line for each error of MLflow and the libraries below it
    locks.py        processes that hold a lock
    address.py      the store's address, checked and without its password
    about.py        the description of a run in the UI
    views.py        saved views of the UI, made from the tables
    uses.py         cells of the tables that use a run
    tags.py         tags and titles of runs, and their true state
    portable.py     a record as plain data, for export and import
"""
