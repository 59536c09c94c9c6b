"""Released ResNet-50 encoders of the paper's baselines, pretrained on ImageNet.

    imagenet_linear(MOCO_V2_200)                          # a row of Table 2, evaluated instead of quoted
    invoke evaluate --checkpoint moco_v2_200 --protocol linear_sgd --dataset imagenet

A file of 94 to 340 MB is downloaded when an evaluation first needs it, and kept under `weights/` in the
site's folder of runs. The owners do not publish a SHA-256: the hash of the first download is recorded there
and enforced afterwards. This project has not downloaded any of these files. Addresses and names of tensors
are those that the repositories give, and an evaluation refuses a file that does not fit.

Missing: BYOL 1000 (deepmind-byol) is a Haiku pickle, which cannot be read without running code: evaluate a
converted file. PixPro 100 and 400 (zdaxie/PixPro README.md) are linked as pages of Google Drive, not as
files. Get or convert these by hand, and pass the file to `invoke evaluate --checkpoint FILE` or
`--add-row "PixPro=FILE"`.
"""

from __future__ import annotations

from typing import Final

from reproduce.nn.weights import Weights

FACEBOOK: Final = "https://dl.fbaipublicfiles.com"
VISSL: Final = f"{FACEBOOK}/vissl/model_zoo"
SWAV: Final = f"{FACEBOOK}/deepcluster"
SWAV_STD: Final = (0.228, 0.224, 0.225)
"""Standard deviation of SwAV's normalisation (facebookresearch/swav src/multicropdataset.py).

The first value differs from ImageNet's .229.
"""

MOCO_V2_200: Final = Weights(
    url=f"{FACEBOOK}/moco/moco_checkpoints/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar",
    prefix="module.encoder_q.",
)
"""MoCo v2, 200 epochs, batch 256; linear top-1 67.7 (facebookresearch/moco README.md)."""
MOCO_V2_800: Final = Weights(
    url=f"{FACEBOOK}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
    prefix="module.encoder_q.",
)
"""MoCo v2, 800 epochs, batch 256; linear top-1 71.1 (facebookresearch/moco README.md)."""

SIMSIAM_100: Final = Weights(
    url=f"{FACEBOOK}/simsiam/models/100ep/pretrain/checkpoint_0099.pth.tar", prefix="module.encoder."
)
"""SimSiam, 100 epochs, batch 512; linear top-1 68.1 (facebookresearch/simsiam README.md)."""
SIMSIAM_100_256: Final = Weights(
    url=f"{FACEBOOK}/simsiam/models/100ep-256bs/pretrain/checkpoint_0099.pth.tar", prefix="module.encoder."
)
"""SimSiam, 100 epochs, batch 256; linear top-1 68.3 (facebookresearch/simsiam README.md)."""

BARLOW_TWINS_1000: Final = Weights(url=f"{FACEBOOK}/barlowtwins/ljng/resnet50.pth")
"""Barlow Twins, 1000 epochs, batch 2048; linear top-1 73.5; torchvision's names (facebookresearch/barlowtwins
README.md, hubconf.py)."""

VICREG_1000: Final = Weights(url=f"{FACEBOOK}/vicreg/resnet50.pth")
"""VICReg, 1000 epochs, batch 2048; linear top-1 73.2; torchvision's names (facebookresearch/vicreg
README.md)."""

SWAV_100: Final = Weights(url=f"{SWAV}/swav_100ep_pretrain.pth.tar", prefix="module.", std=SWAV_STD)
"""SwAV, 2 x 224 + 6 x 96 px, 100 epochs, batch 4096; linear top-1 72.1 (facebookresearch/swav README.md)."""
SWAV_200: Final = Weights(url=f"{SWAV}/swav_200ep_pretrain.pth.tar", prefix="module.", std=SWAV_STD)
"""SwAV, 2 x 224 + 6 x 96 px, 200 epochs, batch 4096; linear top-1 73.9 (facebookresearch/swav README.md)."""
SWAV_200_256: Final = Weights(url=f"{SWAV}/swav_200ep_bs256_pretrain.pth.tar", prefix="module.", std=SWAV_STD)
"""SwAV, 2 x 224 + 6 x 96 px, 200 epochs, batch 256; linear top-1 72.7 (facebookresearch/swav README.md)."""
SWAV_400: Final = Weights(url=f"{SWAV}/swav_400ep_pretrain.pth.tar", prefix="module.", std=SWAV_STD)
"""SwAV, 2 x 224 + 6 x 96 px, 400 epochs, batch 4096; linear top-1 74.6 (facebookresearch/swav README.md)."""
SWAV_400_256: Final = Weights(url=f"{SWAV}/swav_400ep_bs256_pretrain.pth.tar", prefix="module.", std=SWAV_STD)
"""SwAV, 2 x 224 + 6 x 96 px, 400 epochs, batch 256; linear top-1 74.3 (facebookresearch/swav README.md)."""
SWAV_400_2X224: Final = Weights(
    url=f"{SWAV}/swav_400ep_2x224_pretrain.pth.tar", prefix="module.", std=SWAV_STD
)
"""SwAV without small crops, 2 x 224 px, 400 epochs, batch 4096; linear top-1 70.1 (facebookresearch/swav
README.md)."""
SWAV_800: Final = Weights(url=f"{SWAV}/swav_800ep_pretrain.pth.tar", prefix="module.", std=SWAV_STD)
"""SwAV, 2 x 224 + 6 x 96 px, 800 epochs, batch 4096; linear top-1 75.3 (facebookresearch/swav README.md)."""

WANG_ISOLA_200: Final = Weights(
    url="https://github.com/SsnL/moco_align_uniform/releases/download/v1.0-checkpoints/imagenet_align_uniform.pth.tar",
    prefix="module.encoder_q.",
)
"""Wang and Isola's two losses, 200 epochs, batch 256; linear top-1 67.694 (ssnl/moco_align_uniform README.md,
hubconf.py)."""

PCL_V1_200: Final = Weights(
    url="https://storage.googleapis.com/sfr-pcl-data-research/PCL_checkpoint/PCL_v1_epoch200.pth.tar",
    prefix="module.encoder_q.",
)
"""PCL, 200 epochs, batch 256; linear top-1 61.5 (salesforce/PCL README.md, eval_cls_imagenet.py)."""
PCL_V2_200: Final = Weights(
    url="https://storage.googleapis.com/sfr-pcl-data-research/PCL_checkpoint/PCL_v2_epoch200.pth.tar",
    prefix="module.encoder_q.",
)
"""PCL v2, 200 epochs, batch 256; linear top-1 67.6 (salesforce/PCL README.md, eval_cls_imagenet.py)."""

OBOW_200: Final = Weights(
    url="https://github.com/valeoai/obow/releases/download/v0.1.0/ImageNetFull_ResNet50_OBoW_full_feature_extractor.zip"
)
"""OBoW's student, 200 epochs, batch 256; linear top-1 73.8; an archive with one file, torchvision's names
(valeoai/obow README.md)."""

NPID_200: Final = Weights(
    url=f"{VISSL}/converted_vissl_rn50_npid_lemniscate_neg4k_stepLR_8gpu.torch", prefix="_feature_blocks."
)
"""NPID's own updated encoder in VISSL's format, 200 epochs, batch 256; linear top-1 54.99
(facebookresearch/vissl MODEL_ZOO.md)."""
PIRL_200: Final = Weights(
    url=f"{VISSL}/pirl_jigsaw_4node_200ep_pirl_jigsaw_4node_resnet_22_07_20.ffd17b75/model_final_checkpoint_phase199.torch",
    prefix="_feature_blocks.",
)
"""PIRL, 200 epochs, batch 1024; linear top-1 62.55 (facebookresearch/vissl MODEL_ZOO.md)."""
PIRL_800: Final = Weights(
    url=f"{VISSL}/pirl_jigsaw_4node_pirl_jigsaw_4node_resnet_22_07_20.34377f59/model_final_checkpoint_phase799.torch",
    prefix="_feature_blocks.",
)
"""PIRL, 800 epochs, batch 1024; linear top-1 64.29 (facebookresearch/vissl MODEL_ZOO.md)."""

SIMCLR_100: Final = Weights(
    url=f"{VISSL}/simclr_rn50_100ep_simclr_8node_resnet_16_07_20.8edb093e/model_final_checkpoint_phase99.torch",
    prefix="_feature_blocks.",
)
"""SimCLR as VISSL trains it, 100 epochs, batch 4096; linear top-1 64.4 (facebookresearch/vissl
MODEL_ZOO.md)."""
SIMCLR_200: Final = Weights(
    url=f"{VISSL}/simclr_rn50_200ep_simclr_8node_resnet_16_07_20.a816c0ef/model_final_checkpoint_phase199.torch",
    prefix="_feature_blocks.",
)
"""SimCLR as VISSL trains it, 200 epochs, batch 4096; linear top-1 66.61 (facebookresearch/vissl
MODEL_ZOO.md)."""
SIMCLR_400: Final = Weights(
    url=f"{VISSL}/simclr_rn50_400ep_simclr_8node_resnet_16_07_20.36b338ef/model_final_checkpoint_phase399.torch",
    prefix="_feature_blocks.",
)
"""SimCLR as VISSL trains it, 400 epochs, batch 4096; linear top-1 67.71 (facebookresearch/vissl
MODEL_ZOO.md)."""
SIMCLR_800: Final = Weights(
    url=f"{VISSL}/simclr_rn50_800ep_simclr_8node_resnet_16_07_20.7e8feed1/model_final_checkpoint_phase799.torch",
    prefix="_feature_blocks.",
)
"""SimCLR as VISSL trains it, 800 epochs, batch 4096; linear top-1 69.68 (facebookresearch/vissl
MODEL_ZOO.md)."""
SIMCLR_1000: Final = Weights(
    url=f"{VISSL}/simclr_rn50_1000ep_simclr_8node_resnet_16_07_20.afe428c7/model_final_checkpoint_phase999.torch",
    prefix="_feature_blocks.",
)
"""SimCLR as VISSL trains it, 1000 epochs, batch 4096; linear top-1 68.8 (facebookresearch/vissl
MODEL_ZOO.md)."""
