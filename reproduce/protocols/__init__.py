"""Evaluations of an encoder. A file that is not listed is one evaluation.

Imports point down this page.

    detection.py   base class of the two detection protocols
    protocol.py    the contract between a protocol and the evaluation loop
"""
