"""What the distillation losses are tested on, and what they should be: fp64 autograd, dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_soaes.losses.distillation import distillation_losses, token_divergences
from megatron_soaes.losses.divergences import (
    AcceptanceHybrid,
    Divergence,
    ForwardKL,
    JensenShannon,
    NegativeLogAcceptance,
    ReverseKL,
    TotalVariation,
)
from megatron_soaes.losses.teachers import DenseTeacher, SampledTeacher, Teacher, draw, top_k

PADDED = 64
DIVERGENCES: dict[str, Divergence] = {
    "forward-kl": ForwardKL(),
    "reverse-kl": ReverseKL(),
    "jensen-shannon": JensenShannon(0.5),
    "jensen-shannon-0.1": JensenShannon(0.1),
    "total-variation": TotalVariation(),
    "negative-log-acceptance": NegativeLogAcceptance(),
    "hybrid": AcceptanceHybrid(3.0),
}


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor, beta: float) -> Tensor:
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


def overlap(p: Tensor, q: Tensor) -> Tensor:
    return torch.minimum(p, q).sum(-1)


def hybrid(p: Tensor, q: Tensor) -> Tensor:
    weight = torch.exp(-3.0 * overlap(p, q).detach())
    return weight * kl(p, q) + (1 - weight) * (1 - overlap(p, q))


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward-kl": kl,
    "reverse-kl": lambda p, q: kl(q, p),
    "jensen-shannon": lambda p, q: jensen_shannon(p, q, 0.5),
    "jensen-shannon-0.1": lambda p, q: jensen_shannon(p, q, 0.1),
    "total-variation": lambda p, q: 1 - overlap(p, q),
    "negative-log-acceptance": lambda p, q: -overlap(p, q).log(),
    "hybrid": hybrid,
}


@dataclass(frozen=True)
class Case:
    """One call; `teacher` is dense, top K or sampled N."""

    divergence: str
    teacher: str = "dense"
    vocab_size: int = 59
    temperature: float = 1.0
    cross_entropy_weight: float = 0.0
    positions: int = 6
    padded: int = PADDED
    scale: float = 3.0
    seed: int = 0

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Student's and teacher's logits [2, positions, padded], labels and loss weights.

        The padding and the positions without weight hold NaN.
        """
        generator = torch.Generator().manual_seed(self.seed)
        shape = (2, self.positions)
        student = torch.randn(*shape, self.padded, generator=generator) * self.scale
        teacher = student + torch.randn(*shape, self.padded, generator=generator) * self.scale
        labels = torch.randint(self.vocab_size, shape, generator=generator)
        weights = torch.rand(shape, generator=generator) + 0.5
        weights[0, 0] = 0.0
        for logits in (student, teacher):
            logits[..., self.vocab_size :] = torch.nan
            logits[0, 0] = torch.nan
        return student, teacher, labels, weights


def call(case: Case, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """Losses, and the gradient of their weighted sum, on one of `ranks` tensor-parallel ranks."""
    student, teacher_logits, labels, weights = case.tensors()
    part = student.chunk(ranks, dim=-1)[rank].clone().requires_grad_()
    teacher = make_teacher(case, teacher_logits.chunk(ranks, dim=-1)[rank])
    divergence = DIVERGENCES[case.divergence]
    settings = {"vocab_size": case.vocab_size, "temperature": case.temperature}
    if case.cross_entropy_weight:
        losses = distillation_losses(
            part, labels, weights, teacher, divergence=divergence,
            cross_entropy_weight=case.cross_entropy_weight, **settings,
        )  # fmt: skip
    else:
        losses = token_divergences(part, weights, teacher, divergence=divergence, **settings)
    (losses * weights).sum().backward()
    assert part.grad is not None
    return {"losses": losses.detach(), "gradient": part.grad}


def make_teacher(case: Case, logits: Tensor) -> Teacher:
    kind, *size = case.teacher.split()
    if kind == "dense":
        return DenseTeacher(logits)
    if kind == "top":
        return top_k(logits, int(size[0]), case.vocab_size, case.temperature)
    numbers = uniform(*logits.shape[:2], int(size[0]), seed=1)
    return draw(logits, numbers, case.vocab_size, exponent=0.7, temperature=case.temperature)[0]


def uniform(*shape: int, seed: int) -> Tensor:
    """What decides the draws, fp64 in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected(case: Case, teacher: Teacher | None = None) -> dict[str, Tensor]:
    """What `call` should find; `teacher` are the draws of a sampled one."""
    student, teacher_logits, labels, weights = case.tensors()
    leaf = student.double().requires_grad_()
    logits = leaf[..., : case.vocab_size]
    log_q = (logits / case.temperature).log_softmax(-1)
    p = (teacher_logits[..., : case.vocab_size].double() / case.temperature).softmax(-1)
    if isinstance(teacher, SampledTeacher):
        drawn = teacher.log_probs.double() - log_q.gather(-1, teacher.ids)
        losses = (teacher.log_weights.double().exp() * drawn).sum(-1)
    else:
        q = log_q.exp()
        kind, *size = case.teacher.split()
        if kind == "top":
            p, q = buckets(p, q, int(size[0]))
        losses = FORMULAS[case.divergence](p, q)
    label = -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    share = case.cross_entropy_weight
    losses = (1 - share) * case.temperature**2 * losses + share * label
    weighed = weights > 0
    (losses * weights)[weighed].sum().backward()
    assert leaf.grad is not None
    gradient = torch.where(weighed[..., None], leaf.grad.nan_to_num(), 0.0)
    return {
        "losses": torch.where(weighed, losses, 0.0).detach().float(),
        "gradient": gradient.float(),
    }


def buckets(p: Tensor, q: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both over the k most likely tokens of p, and all others as one."""
    ids = p.nan_to_num().topk(k).indices
    others = torch.ones_like(p).scatter(-1, ids, 0.0)
    together = [
        torch.cat((x.gather(-1, ids), (x * others).sum(-1, keepdim=True)), -1) for x in (p, q)
    ]
    # Of the whole vocabulary nothing is left over.
    p, q = (x[..., : p.shape[-1]] for x in together)
    return p, q


def all_cases() -> dict[str, Case]:
    """By name."""
    cases = {}
    for name in DIVERGENCES:
        for teacher in ("dense", "top 7"):
            for temperature in (1.0, 2.5):
                case = Case(name, teacher, temperature=temperature)
                cases[f"{name}-{teacher}-at-{temperature}"] = case
    for teacher in ("dense", "top 7", "sampled 5"):
        for vocab_size in (64, 32, 20):
            case = Case("forward-kl", teacher, vocab_size=vocab_size)
            cases[f"{teacher}-{vocab_size}-tokens"] = case
        mixed = Case("forward-kl", teacher, temperature=2.0, cross_entropy_weight=0.3)
        cases[f"{teacher}-mixed"] = mixed
    cases["large-logits"] = Case("hybrid", scale=30.0)
    for teacher in ("dense", "top 7"):
        far = Case("negative-log-acceptance", teacher, scale=15.0)
        cases[f"{teacher}-hardly-overlapping"] = far
    return cases
