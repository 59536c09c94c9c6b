"""The paper's settings, as functions that return specs.

Imports point down this page.

    rows.py       rows that several tables share: the paper's numbers next to ours
    methods.py    every method on every data set, for `invoke pretrain`
    scales.py     the scales smoke, small and paper
    evaluate.py   the paper's evaluations
    baselines.py  the baselines' pretraining runs
    pretrain.py   the paper's pretraining runs
    released.py   encoders that the quoted methods' authors released
"""
