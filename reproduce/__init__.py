"""MSBReg, reproduced: every table of the paper as code.

A request enters at the top of this page and leaves at the bottom, and so do imports: a module imports from
the lines below its own, never from those above it. `tests/test_architecture.py` reads the order from here.

    tasks.py          the command line: parse, call one function, print one thing
    tables/           what the paper prints and claims, one file per table
    configs/          the paper's settings, as functions that return specs; the three scales
    reproduce/
      commands/       one file per invoke task that does work: make, forecast, doctor, why, gc, archive, ...
      launch/         where runs start: this machine, or a Slurm cluster
      readiness.py    whether a run can start here, and what it lacks
      resources/      memory of GPUs, and shares of them, that runs need
      worker.py       one run in a process of its own: train or evaluate, and record it
      plan.py         from a request to the runs that it needs
      overrides.py    the settings that `--set` changes
      evaluate.py     one evaluation of one encoder
      train.py        the one training loop of every method
      tracking/       the record of every run in MLflow
      report/         tables with numbers and figures, as Markdown, LaTeX, PDF, HTML, CSV and JSON
      spec.py         what a run is: one pretraining or one evaluation, with all its settings
      detection/      fine-tuning of detectors, by Detectron2 or torchvision
      protocols/      how an encoder is evaluated, one file per evaluation
      methods/        how an encoder is pretrained, one file per method
      nn/             networks, heads, optimisers, schedules, features
      data/           one file per data set; augmentation and views
      runs/           a run's life on disk: lease, checkpoints, journal, interrupts
      site.py         this machine: folders, devices, the tracking store
      settings.py     the base class of everything that can change a number
      messages.py     one line for each mistake; counts, hours and bytes in words
      identity.py     the name of a run: a hash of its settings
      lazy.py         torch, imported when it is first used
"""

__version__ = "0.1.0"
