"""Evaluations of an encoder, one protocol per file.

Two files do not contain an evaluation of their own:

    detection.py   base class of the two detection protocols, voc_detection.py and coco_mask_rcnn.py
    protocol.py    the contract between a protocol and the evaluation loop

Imports point down this page: the protocols import these two, and detection.py imports protocol.py.
"""
