"""Decisions that deviate from the paper or fill its gaps, and that concern several tables."""

CHOICES = (
    r"Precision: the small and paper scales train networks in bfloat16. The paper does not state its "
    r"precision, and its V100 GPUs do not support bfloat16. Only the backbones compute in bfloat16: "
    r"parameters, heads, losses and the optimiser stay in float32, and so does every evaluation. "
    r"`--set precision=float32` trains the backbones in float32, too. On recent GPUs the convolutions of "
    r"float32 use TF32, PyTorch's default.",
    r"Decay rate of the target: the paper does not state the initial $\tau$. It is 0.99 in all runs with "
    r"the paper's settings, as in the protocol of the small runs (htdt/self-supervised `cfg.py`) and in "
    r"BYOL's presets for up to 300 epochs (deepmind-research `byol/configs/byol.py`). Rows of BYOL with its "
    r"own settings have the $\tau$ of their preset.",
    r"BatchNorm: the paper does not state whether its 8 GPUs synchronise the statistics. Ours are those of "
    r"the whole batch over all devices.",
    r"Weights of the losses: section 4.5 states $\lambda_b = 0.5$ and $\lambda_s = 0.004$ for "
    r"ImageNet-100 only. The other data sets use the same values, a choice. For white noise, "
    r"$\mathcal{L}_s$ is $d (d + 1) / (n - 1)$: 32 on ImageNet-100 and STL-10, 129 on ImageNet, and 65 "
    r"in Table 6.",
    r"Eq. 1 is one direction of BYOL's loss; training sums both directions.",
    r"Eq. 3: the centroid is the mean of normalised projections and is not normalised again.",
    r"Eq. 4: each image has one random unit vector in each step, which its K views share.",
    r"Eq. 5: $n$ is the number of images in the whole batch over all processes, and the predictions "
    r"$p$ are not normalised.",
    r"Moving average: section 3.1 calls it bias-corrected but gives the plain formula; the plain one "
    r"is used.",
    r"Features: section 3.1 says that $z$ is used downstream and that the heads are discarded. "
    r"Evaluations use the backbone's pooled features.",
    r"Baselines: by default only MSBReg and BYOL are trained, and rows of other methods are quoted from "
    r"the paper. `--baselines released` evaluates released encoders, and `--baselines trained` trains the "
    r"methods that this suite has.",
    r"Paper scale: this project has not run anything at paper scale.",
)
"""Decisions that concern several tables; the code states each of them where it applies it."""
