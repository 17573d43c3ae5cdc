"""The optimizer (Muon or Adam), the moving average of weights (EMA), and filters that whiten patches of images.

Random filters nearly all respond to the brightness of a patch, because neighbouring pixels are alike. The filters of
`whiten` respond to a patch's principal components, each as strongly as the others, and training need not find them.
Sources: Coates and Ng, "Learning feature representations with k-means", 2012 (whitening of patches); Jordan, "94% on
CIFAR-10 in 3.29 seconds on a single GPU", 2024 (as the first layer of a network that is trained).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from carnet.config import MuonPrecision, ResolvedConfig
from carnet.models.residual_carnet import ResidualCARNet
from carnet.models.weights import normalize_on, on_threads
from carnet.spec import ModelSpec
from carnet.training.pipeline import Batch

_POLYNOMIALS = (7.711, -22.114, 16.249), (3.215, -2.411, 0.501)
"""Factors of x, x^3 and x^5 for each step: of all pairs of such steps these bring singular values between 1/50 of the
bound and the bound closest to one, to between 0.49 and 1.51."""
_SMALLEST_SIDE = 32
"""A narrower matrix has few directions to learn equally fast, and costs as many calls."""
NUM_IMAGES = 512
"""Images that `whiten` computes components from."""
_CHUNK = 8
"""Images at a time, because patches take several times the memory of a batch."""
_FAINTEST = 1e-3
"""Variance that is added to every component, so that noise is not amplified to the strength of the rest."""
_NO_VARIANCE = 1e-6
"""Less than rounding to pixels gives, as the differences between the channels of grey images have."""


class Muon(Optimizer):
    """Muon for the matrices of a network, AdamW for everything else.

    Muon replaces the momentum of a matrix by the nearest orthogonal matrix, so that every direction is learned equally
    fast; a convolution counts as the matrix (out_channels, in_channels x height x width). AdamW trains depthwise
    convolutions, the first layer, linear layers, biases and batch norms, at a smaller learning rate.
    Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Loshchilov and Hutter,
    "Decoupled weight decay regularization", 2019.

    Args:
        network: whose parameters are trained.
        lr: learning rate of the matrices.
        adamw_lr_ratio: learning rate of the others, as a share of `lr`.
        weight_decay: decay of matrices and other weights, times the learning rate; vectors have none.
        momentum: of the matrices.
        precision: of the products that make matrices orthogonal, fp32 or bf16; weights keep their own.
        has_matrices: False leaves everything to AdamW.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        adamw_lr_ratio: float,
        weight_decay: float,
        momentum: float = 0.95,
        precision: MuonPrecision = "fp32",
        has_matrices: bool = True,
    ) -> None:
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        matrices = hidden_matrices(network) if has_matrices else []
        known = set(map(id, matrices))
        others = [parameter for parameter in network.parameters() if id(parameter) not in known]
        weights = [parameter for parameter in others if parameter.ndim > 1]
        vectors = [parameter for parameter in others if parameter.ndim <= 1]
        adamw_lr = lr * adamw_lr_ratio
        groups: list[dict[str, Any]] = [
            {"params": matrices, "kind": "muon", "lr": lr, "weight_decay": weight_decay},
            {"params": weights, "kind": "adamw", "lr": adamw_lr, "weight_decay": weight_decay},
            {"params": vectors, "kind": "adamw", "lr": adamw_lr, "weight_decay": 0.0},
        ]
        defaults = {"momentum": momentum, "betas": (0.9, 0.99), "eps": 1e-8}
        super().__init__([group for group in groups if group["params"]], defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the weights by their gradients."""
        assert closure is None, "no closure is needed"
        for group in self.param_groups:
            (self._step_matrices if group["kind"] == "muon" else self._step_others)(group)
        return None

    def _step_matrices(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            ahead = parameter.grad.lerp(state["momentum"], group["momentum"])
            change = orthogonalized(ahead.flatten(1), self._dtype)
            tall = max(1.0, change.shape[0] / change.shape[1]) ** 0.5
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(change.view(parameter.shape), alpha=-group["lr"] * tall)

    def _step_others(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] |= {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        # Only processors take the fused kernel: on a GPU it would need the number of steps there too.
        on_cpu = parameters[0].device.type == "cpu"
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=not on_cpu,
            fused=on_cpu,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def hidden_matrices(network: nn.Module) -> list[Tensor]:
    """Return the weights of the convolutions that mix many channels, except the first one, which sees pixels."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.groups == 1]
    return [layer.weight for layer in convolutions[1:] if min(layer.weight.shape[:2]) >= _SMALLEST_SIDE]


def orthogonalized(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return roughly the nearest matrix whose rows, or columns if there are fewer, are orthonormal.

    (M, N) -> (M, N), singular values between 0.48 and 1.55; below that where they were under 1/50 of the bound

    Args:
        matrix: of any size.
        dtype: of the products. bfloat16 is exact enough, and faster where the hardware computes it.

    Source of the polynomials: Amsel et al., "The Polar Express: Optimal matrix sign methods and their application to
    the Muon algorithm", 2025.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.to(dtype)
    x = x.mT if is_tall else x
    x = x / (x.norm() + 1e-7)
    gram = x @ x.mT
    # This bound on the square of the largest singular value is closer than the squared norm of the matrix.
    bound = gram.norm() + 1e-7
    gram, x = gram / bound, x / bound.sqrt()
    for number, (a, b, c) in enumerate(_POLYNOMIALS):
        gram = x @ x.mT if number else gram
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrix.dtype)


def make_optimizer(network: nn.Module, config: ResolvedConfig) -> Optimizer:
    """Return the optimizer that a recipe names.

    Args:
        network: whose parameters are trained.
        config: names optimizer, learning rates and precision.
    """
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    is_muon = config.optimizer == "muon"
    return Muon(
        network,
        lr=config.lr,
        adamw_lr_ratio=config.adamw_lr_ratio if is_muon else 1.0,
        weight_decay=config.weight_decay,
        precision=config.muon_precision,
        has_matrices=is_muon,
    )


def state_names(group: Mapping[str, Any]) -> set[str]:
    """Return the names of the state that the optimizer keeps of each parameter of a group after its first update."""
    return {"momentum"} if group.get("kind") == "muon" else {"step", "exp_avg", "exp_avg_sq"}


def set_lr(optimizer: Optimizer, ratio: float) -> None:
    """Set the learning rate of every group of parameters to a share of its initial one."""
    for group in optimizer.param_groups:
        group["lr"] = ratio * group.setdefault("initial_lr", group["lr"])


class WeightAverage:
    """An exponential moving average of a network's weights and batch-norm statistics.

    Args:
        network: the network that is trained, already on its device.
        decay: weight of the average against the newest weights; smaller early in the run, so that the initial weights
            are forgotten.

    Attributes:
        network: a copy with averaged weights, ready to be evaluated.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        # Looked up once, because there are many; optimizers and checkpoints change tensors in place.
        self._averages, self._newest = (
            [tensor for tensor in each.state_dict().values() if tensor.is_floating_point()]
            for each in (self.network, network)
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the weights after a step; `step` is the number of steps before it, in the whole run."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._newest, 1 - decay)


def has_patches(network: nn.Module) -> bool:
    """Return whether the first layer of a network sees separate patches of the image, so that `whiten` can set it."""
    return isinstance(network, ResidualCARNet)


@torch.no_grad()
def whiten(network: nn.Module, batches: Iterable[Batch], spec: ModelSpec) -> None:
    """Set the first filters of a network that `has_patches`: each component and its negative, strongest first.

    Where there are more filters than components that vary, the others keep their weights.

    Args:
        network: on the processor.
        batches: augmented training images, of which the first `NUM_IMAGES` count.
        spec: of the network.
    """
    assert isinstance(network, ResidualCARNet)
    stem = network.stem[0]
    assert isinstance(stem, nn.Conv2d)
    size = stem.weight[0].numel()
    sums, moments = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    number, seen = 0, 0
    # One thread, because another number of threads, as a resumed run may have, would change the last digits.
    with on_threads(1):
        for batch in batches:
            for images in torch.split(batch.images, _CHUNK):
                pixels = normalize_on(torch.device("cpu"), images, spec)
                # (N, C, S, S) -> (N, C x K x K, places) -> (patches, C x K x K)
                columns = F.unfold(pixels, stem.kernel_size, stride=stem.stride)
                patches = columns.transpose(1, 2).flatten(0, 1).double()
                sums += patches.sum(0)
                moments += patches.T @ patches
                number += len(patches)
            seen += len(batch)
            if seen >= NUM_IMAGES:
                break
        mean = sums / number
        variances, components = torch.linalg.eigh(moments / number - torch.outer(mean, mean))
    filters = (components / (variances + _FAINTEST).sqrt())[:, variances > _NO_VARIANCE].T.flip(0)
    filters = torch.cat([filters, -filters])[: stem.out_channels]
    stem.weight[: len(filters)] = filters.view(-1, *stem.weight.shape[1:])
