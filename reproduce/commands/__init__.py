"""The work behind each invoke task.

Imports point down this page.

    program.py      tasks for invoke: functions with options, errors on one line
    reference.py    the settings that `--set` changes, and the page about them
    options.py      the options of every task, whose docstrings are the help
    show.py         a table's report in the terminal
    seeds.py        the seeds that would decide the most claims for the fewest hours
    make.py         makes tables and single evaluations
    rehearse.py     measures each distinct shape of run by some real steps
    trial.py        the steps of one shape, timed
    photographs.py  generated photographs
    doctor.py       what this machine has and what each table needs
    decoders.py     the processes that decode images, and their speed
    forecast.py     what a command would run, and the hours and disk it takes
    rehearsed.py    shapes of runs, and the speeds that were measured
    why.py          where a number comes from; what two runs differ in
    ui.py           addresses of the UI, and its saved views
    status.py       states of the runs, and the faults that are known
    verify.py       faults of records, encoders and reports
    verify_data.py  every byte of the data sets, compared with what was recorded
    gc.py           files and records that nothing refers to
    redo.py         finished runs that are to be executed again
    unlock.py       frees a run whose owner is gone
    receive.py      import: checks an archive and adds what it contains
    archive.py      export: reports and the records of their runs as one file
    deviations.py   the page of deviations from the paper
    speed.py        the page of measured speeds
    systems.py      README's table of the paper's systems
    pictures.py     the pictures of the documentation, taken of reports
    pages.py        records of runs for the report and the pages of runs
    disk.py         the disk that runs need
    console.py      progress on a terminal or in a log
    live.py         the bottom lines of a terminal: the runs under way, and all
    time_left.py    the time that runs need, by a forecast and by their speed
"""
