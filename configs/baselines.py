"""The baselines' pretraining runs, with the recipe behind each number that the paper quotes.

    simclr_imagenet(200)                                  # a cell of Table 2
    barlow_twins_imagenet(1000)                           # the encoder of Tables 3, 4, 5 and 10

Facts come from the official code and the papers that the docstrings name. Precision is bfloat16 in all runs,
a choice, as in `pretrain.py`.
"""

from __future__ import annotations

# One group of functions for each method, in the order of their names.
