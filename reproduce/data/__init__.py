"""Data sets of labelled images, data sets with boxes, and augmented views.

Every module that is not listed below is one data set. A module imports only from modules listed below its own
line.

    download.py              the public data sets that `invoke download` fetches
    views.py                 augmented views of a batch, as tensor operations
    draws.py                 random parameters of the views
    ahead.py                 items prepared ahead of the caller, on a GPU in a stream of their own
    resident.py              the images of a split on a GPU
    synthetic_detection.py   montages of scenes in the layouts of VOC and COCO
    synthetic.py             small scenes in the layouts of the real data sets
    voc0712.py               VOC07+12 with boxes
    coco2017.py              COCO 2017 with boxes and masks
    voc2007.py               VOC2007 with several labels per image
    places205.py             Places205
    inaturalist2018.py       iNaturalist 2018
    stl10.py                 STL-10
    generated.py             files that synthetic data sets write on first use
    scenes.py                drawings of the synthetic data sets
    polygons.py              geometry of outlines
    inventory.py             number and digests of the images on disk, recorded with the runs
    voc.py                   layout of PASCAL VOC
    json_tables.py           JSON files of images, annotations and categories
    lists.py                 published lists of images and classes
    imagefolder.py           layout with one folder per class
    folders.py               check that listed files exist
    detection.py             base class of data sets with boxes
    dataset.py               base class of data sets with labels
    images.py                decoding of the images of one split
    augmentation.py          settings of the distribution of views
    shared_memory.py         processes that decode and fit in shared memory
    originals.py             images in flat memory
    decoding.py              image files, and their faults
    sources.py               state of a data set's files on disk
"""
