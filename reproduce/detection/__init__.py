"""Engines that fine-tune an encoder inside a detector, found by their names.

Imports point down this page.

    cost.py                  operations of a fine-tuning
    detectron2.py            the engine of the paper
    detectron2_training.py   its trainer, in our order of images
    detectron2_modules.py    the parts that Detectron2 lacks
    detectron2_formats.py    its inputs and outputs as plain values
    detectron2_config.py     its config as plain values
    conversion.py            names of tensors in Detectron2 and in torchvision
    torchvision.py           the engine that needs no installation
    detector.py              Faster R-CNN and Mask R-CNN from torchvision's parts
    examples.py              images and objects as torchvision takes them
    record.py                what every engine leaves in a run's record
    picture.py               some test images with their detections
    scoring.py               average precision by the rules of VOC and COCO
    predictions.py           the detections of one image
    stream.py                the order of training images
"""
