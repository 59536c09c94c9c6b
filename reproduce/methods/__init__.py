"""Self-supervised methods. A file that is not listed is a method: its settings, network and loss.

Imports point down this page.

    method.py   the contract between a method and the training loop
"""
