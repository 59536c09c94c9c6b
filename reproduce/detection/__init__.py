"""Engines that fine-tune an encoder inside a detector.

`protocols/detection.py` imports an engine by its name: `detectron2` or `torchvision`. The other files are
parts of the engines. Imports point down this page.

    cost.py                  operations of a fine-tuning
    detectron2.py            the engine of the paper
    detectron2_training.py   its trainer, with our order of images
    detectron2_modules.py    layers that Detectron2 lacks
    detectron2_formats.py    its inputs and outputs as plain values
    detectron2_config.py     its config as plain values
    conversion.py            names of tensors in Detectron2 and in torchvision
    torchvision.py           the engine that needs no installation
    detector.py              Faster R-CNN and Mask R-CNN built from torchvision's parts
    examples.py              images and objects as torchvision expects them
    record.py                what every engine adds to a run's record
    picture.py               a few test images with their detections
    scoring.py               average precision by the rules of VOC and COCO
    predictions.py           the detections of one image
    stream.py                the order of training images
"""
