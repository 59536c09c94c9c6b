"""Networks, heads, optimisers, schedules and features.

A module imports only from modules listed below its own line.

    probe.py            an online probe of a pretraining
    probe_pictures.py   its pictures: views, and nearest neighbours
    classifiers.py      linear classifiers trained with SGD on augmented views
    features.py         features of whole splits
    feature_cache.py    features on disk, computed once
    keeper.py           checkpoints of a training: when they are due, and who writes them
    weight_files.py     encoders from elsewhere: fetched, described, kept, loaded
    weight_matching.py  which backbone is in a file, and where
    weight_layouts.py   names that other libraries give to a ResNet's tensors
    weight_formats.py   the tensors of a file, or what the file is instead
    weights.py          settings of an encoder from elsewhere
    encoder.py          the network that an evaluation starts from
    keys.py             settings of keys, and of the queues that keep them
    centroids.py        centroids of all images as prototypes
    key_network.py      a query network, a key network and queues of keys
    patch_network.py    a network for images and their patches, with a memory bank
    aggregation.py      clusters of a memory bank, and losses over neighbours in them
    bank.py             a memory bank, and noise-contrastive estimation
    words.py            visual words, and the network that predicts them
    places.py           networks that embed each place of a map, and pixel propagation
    prototypes.py       prototypes, and balanced codes over them
    networks.py         the online and the target network
    compiled.py         compiled backbones
    maps.py             maps of a backbone's stages, before they are averaged
    queue.py            earlier keys, as negatives
    group_batchnorm.py  batch normalisation over groups of images
    dispersion.py       dispersive losses on the embeddings
    kmeans.py           clusters of rows
    collapse.py         spread and rank of the embeddings
    optimizers.py       settings of the optimisers and of their learning rates
    larc.py             the LARC optimiser
    lars.py             the LARS optimiser
    schedules.py        learning rate and target decay by step
    cost.py             operations and sizes of networks, counted without torch
    heads.py            projection and prediction heads
    standardized.py     a linear layer with standardised weights
    stages.py           a backbone in stages
    backbones.py        the backbones, one function each
    residual.py         the small residual network of the smoke scale
    sync_batchnorm.py   batch normalisation over all processes
    distributed.py      one run over several processes
    collectives.py      gathering with gradients
    seeds.py            random streams that are functions of counters
"""
