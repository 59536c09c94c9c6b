"""A training loop in plain steps, written from the paper's formulas: `pretrain` must end where it ends.

    trained = plain.train(spec, site)               # the method, LARS and section 7.1's rate
    trained.network, trained.logged                 # final weights; rate, loss, terms and tau of each step

It shares with the suite only what defines a run: the settings, the images, the random streams (`seeds`), the
backbones and heads, and `views.sample` of one view of one image. Losses take all views at once, and the
optimiser takes one weight after the other.

Another method is a subclass of `PlainMethod` with a network and a loss, listed in METHODS. Another optimiser
is a class like `PlainLARS`, another schedule a function like `section_7_1`:

    plain.train(spec, site, method=PlainMoCo(spec), optimizer=PlainSGD, rate=by_epochs)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from toys import originals

from reproduce.data import views
from reproduce.data.images import Images
from reproduce.nn import backbones, seeds
from reproduce.site import Site
from reproduce.spec import Pretrain


@dataclass(frozen=True)
class Step:
    """One step of a run, counted from 0, with its images."""

    epoch: int
    step: int
    steps_per_epoch: int
    num_steps: int
    images: list[int]
    """Numbers of the images in their data set, in the order of the batch."""


@dataclass(frozen=True)
class Trained:
    """The end of a plain run."""

    initial: dict[str, Tensor]
    """Weights and buffers before the first step, by the names of a checkpoint's network."""
    network: dict[str, Tensor]
    """Weights and buffers after the last step."""
    logged: list[dict[str, float]]
    """The rate `lr`, the `loss`, its terms and what the method adds (`tau`), step by step."""
    margin: float
    """Smallest distance of a trained ReLU's input from 0. Below about 1e-5 a rounding error may change the
    side, and the gradient with it: a comparison needs another seed."""

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The tensors of the encoder's file."""
        parts = ("online.backbone.", "online.projector.")
        return {
            name.removeprefix("online."): value
            for name, value in self.network.items()
            if name.startswith(parts)
        }


class Margin(TorchFunctionMode):
    """Measures the smallest distance of a ReLU's input from 0 where gradients are computed."""

    smallest = math.inf

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.relu and torch.is_grad_enabled():
            self.smallest = min(self.smallest, args[0].detach().abs().min().item())
        return func(*args, **(kwargs or {}))


# Methods


class PlainMethod:
    """A method in plain steps: a network, a loss and, where it has them, the updates between steps."""

    def __init__(self, spec: Pretrain) -> None:
        self.spec = spec
        self.settings: Any = spec.method

    def network(self, backbone: Any, num_images: int) -> Any:
        """Create the network, whose `online` is trained; names of tensors are those of a checkpoint."""
        raise NotImplementedError

    def loss(self, network: Any, views: list[Tensor], at: Step) -> dict[str, Tensor]:
        """Return `loss`, which is minimised, and the terms to log, from all views at once."""
        raise NotImplementedError

    def before_epoch(self, network: Any, at: Step) -> None: ...

    def before(self, network: Any, at: Step) -> None: ...

    def between(self, network: Any, at: Step) -> None:
        """Change gradients after the backward pass and before the optimiser's step."""

    def after(self, network: Any, at: Step) -> dict[str, float]:
        """Update what follows the optimiser, and return what is logged."""
        return {}


class Twins(nn.Module):
    """The online and the target network."""

    def __init__(self, backbone: Any, heads: Any) -> None:
        super().__init__()
        projector, predictor = heads.projector(backbone.num_features), heads.predictor()
        self.online = nn.ModuleDict({"backbone": backbone, "projector": projector, "predictor": predictor})
        self.target = nn.ModuleDict(
            {"backbone": copy.deepcopy(backbone), "projector": copy.deepcopy(projector)}
        )

    def predict(self, view: Tensor) -> Tensor:
        """Return p = h(g(f(v)))."""
        p: Tensor = self.online["predictor"](self.online["projector"](self.online["backbone"](view)))
        return p

    def project(self, view: Tensor) -> Tensor:
        """Return z' = g'(f'(v)) without gradients."""
        with torch.no_grad():
            z: Tensor = self.target["projector"](self.target["backbone"](view))
        return z


class OnTwins(PlainMethod):
    """A method with a target that is a moving average of the online network."""

    def network(self, backbone: Any, num_images: int) -> Twins:
        return Twins(backbone, self.settings.heads)

    def after(self, network: Twins, at: Step) -> dict[str, float]:
        tau = 1 - (1 - self.settings.tau) * (math.cos(math.pi * at.step / at.num_steps) + 1) / 2
        online = dict(network.online.named_parameters())
        with torch.no_grad():
            for name, xi in network.target.named_parameters():
                xi.copy_(tau * xi + (1 - tau) * online[name])
        return {"tau": tau}


class PlainBYOL(OnTwins):
    """Eq. 1 in both directions, or over all ordered pairs of different views, with the dispersive terms."""

    def loss(self, network: Twins, views: list[Tensor], at: Step) -> dict[str, Tensor]:
        K, s = len(views), self.settings
        z, p = [network.project(view) for view in views], [network.predict(view) for view in views]
        pairs = [(p[i], z[j]) for i in range(K) for j in range(K) if i != j]
        terms = {"L_byol": 2 * mean([(unit(a) - unit(b)).square().sum(1).mean() for a, b in pairs])}
        terms |= dispersive_terms(p, s, self.spec.seed, at.step)
        total = terms["L_byol"]
        if s.lambda_uniform:
            terms["L_uniform"] = mean([uniformity(x, s.uniform_t) for x in p])
            total = total + s.lambda_uniform * terms["L_uniform"]
        return {"loss": total + dispersion(terms, s)} | terms


class PlainMSBReg(OnTwins):
    """Eq. 2 to 6."""

    def loss(self, network: Twins, views: list[Tensor], at: Step) -> dict[str, Tensor]:
        z, p = [network.project(view) for view in views], [network.predict(view) for view in views]
        centroid = sum(unit(x) for x in z) / len(z)
        terms = {"L_c": mean([(unit(x) - centroid).square().sum(1).mean() for x in p])}
        terms |= dispersive_terms(p, self.settings, self.spec.seed, at.step)
        return {"loss": terms["L_c"] + dispersion(terms, self.settings)} | terms


METHODS: dict[str, type[PlainMethod]] = {"byol": PlainBYOL, "msbreg": PlainMSBReg}
"""The plain version of each method."""


def unit(x: Tensor) -> Tensor:
    """Return the rows of x divided by their lengths."""
    return x / x.square().sum(dim=1, keepdim=True).sqrt()


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def noise(n: int, d: int, seed: int, step: int) -> Tensor:
    """Return n hat of Eq. 4 for a whole batch, (n, d)."""
    return unit(torch.randn(n, d, generator=seeds.generator("noise", seed, step)))


def dispersive_terms(p: list[Tensor], settings: Any, seed: int, step: int) -> dict[str, Tensor]:
    """Return L_b (Eq. 4) and L_s (Eq. 5 and 6), each if its weight is not 0."""
    terms, d = {}, p[0].shape[1]
    if settings.lambda_b:
        n = noise(len(p[0]), d, seed, step)
        terms["L_b"] = mean([(n * unit(x)).sum(1).mean() for x in p])
    if settings.lambda_s:
        terms["L_s"] = mean([(torch.cov(x.T) - torch.eye(d)).square().sum() for x in p])
    return terms


def dispersion(terms: dict[str, Tensor], settings: Any) -> Tensor:
    """Return lambda_b L_b + lambda_s L_s."""
    weights = {"L_b": settings.lambda_b, "L_s": settings.lambda_s}
    return sum((weight * terms[name] for name, weight in weights.items() if weight), torch.zeros(()))


def uniformity(p: Tensor, t: float) -> Tensor:
    """Return the log of the mean over pairs i < j of exp(-t || p hat_i - p hat_j ||^2)."""
    n = len(p)
    pairs = [(unit(p)[i] - unit(p)[j]).square().sum() for i in range(n) for j in range(i)]
    return torch.exp(-t * torch.stack(pairs)).mean().log()


# Optimisers and schedules


class Optimizer(Protocol):
    """An optimiser: made from the trained parameters by name, their gradients are set before each step."""

    def step(self, rate: float) -> None: ...


class PlainLARS:
    """LARS, one weight after the other: vectors have neither decay nor a rate of their own."""

    def __init__(self, parameters: dict[str, nn.Parameter], settings: Any) -> None:
        self.parameters, self.settings = parameters, settings
        self.m = {name: torch.zeros_like(w) for name, w in parameters.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        s = self.settings
        for name, w in self.parameters.items():
            assert w.grad is not None, name
            u = w.grad.clone()
            if w.ndim > 1:
                u = u + s.weight_decay * w
                lengths = w.square().sum().sqrt(), u.square().sum().sqrt()
                if all(lengths):
                    u = s.trust_coefficient * lengths[0] / lengths[1] * u
            self.m[name] = s.momentum * self.m[name] + u
            w.copy_(w - rate * self.m[name])


def section_7_1(spec: Pretrain, at: Step) -> float:
    """Return base_lr x B / 256 x K after a linear warm-up by steps from 0, then along a cosine to 0."""
    settings: Any = spec.optimizer
    peak = settings.base_lr * spec.batch_size / 256
    if settings.scale_with_views:
        peak = peak * spec.method.num_views
    warmup = settings.warmup_epochs * at.steps_per_epoch
    if at.step < warmup:
        return float(peak * at.step / warmup)
    return float(peak * (1 + math.cos(math.pi * (at.step - warmup) / (at.num_steps - warmup))) / 2)


# The loop


def train(
    spec: Pretrain,
    site: Site,
    *,
    method: PlainMethod | None = None,
    optimizer: Callable[[dict[str, nn.Parameter], Any], Optimizer] = PlainLARS,
    rate: Callable[[Pretrain, Step], float] = section_7_1,
) -> Trained:
    """Train `spec` from its initial weights to its last step."""
    method = method or METHODS[spec.method.name](spec)
    images = spec.dataset.load(spec.dataset.pretrain_split, site)
    network = initial(spec, method, len(images))
    started = copy.deepcopy(network.state_dict())
    updates = optimizer(dict(network.online.named_parameters()), spec.optimizer)
    steps_per_epoch, logged = len(images) // spec.batch_size, list[dict[str, float]]()
    margin = Margin()
    for epoch in range(spec.epochs):
        order = permutation(len(images), spec.seed, epoch)
        for index in range(steps_per_epoch):
            chosen = order[index * spec.batch_size : index * spec.batch_size + spec.batch_size]
            at = Step(
                epoch,
                epoch * steps_per_epoch + index,
                steps_per_epoch,
                spec.epochs * steps_per_epoch,
                chosen,
            )
            if index == 0:
                method.before_epoch(network, at)
            method.before(network, at)
            network.zero_grad()
            batch = views_of(spec, images, chosen, epoch)
            with margin:
                terms = method.loss(network, batch, at)
            terms["loss"].backward()  # type: ignore[no-untyped-call]
            method.between(network, at)
            lr = rate(spec, at)
            updates.step(lr)
            values = {name: value.item() for name, value in terms.items()}
            logged.append(values | {"lr": lr} | method.after(network, at))
    return Trained(started, network.state_dict(), logged, margin.smallest)


def initial(spec: Pretrain, method: PlainMethod, num_images: int) -> Any:
    """Return the network with the weights of the run's seed: backbone, projector and predictor in turn."""
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed("weights", spec.seed))
        return method.network(backbones.build(spec.backbone), num_images).train()


def permutation(num_images: int, seed: int, epoch: int) -> list[int]:
    """Return the order of the images in an epoch."""
    return torch.randperm(num_images, generator=seeds.generator("order", seed, epoch)).tolist()


def views_of(spec: Pretrain, images: Images, chosen: list[int], epoch: int) -> list[Tensor]:
    """Return the K normalised views of the images, (images, 3, size, size) each, made one by one."""
    return [
        torch.stack([view_of(spec, images, index, epoch, view) for index in chosen])
        for view in range(spec.method.num_views)
    ]


def view_of(spec: Pretrain, images: Images, index: int, epoch: int, view: int) -> Tensor:
    """Return one normalised view of one image, (3, size, size)."""
    dataset, small = spec.dataset, spec.augmentation.small
    pixels, sizes = originals(images, [index])
    x = views.sample(
        pixels,
        sizes,
        torch.tensor([index]),
        augmentation=spec.augmentation,
        size=dataset.size if small is None or view < small.num_large else small.size,
        seed=spec.seed,
        epoch=epoch,
        view=view,
    )[0]
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (dataset.mean, dataset.std))
    return (x - shift) / scale


def widest_margin(spec: Pretrain, site: Site, runs: int = 150) -> tuple[float, int]:
    """Return the widest margin among the seeds 1 to `runs`, and its seed."""
    return max((train(spec.replace("seed", seed), site).margin, seed) for seed in range(1, runs + 1))
