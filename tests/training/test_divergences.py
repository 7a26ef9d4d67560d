"""Divergences against plain float64 formulas, numbers worked out by hand, and finite differences."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import srd
from srd.base.errors import UserError
from srd.training.divergences import base, fkl
from srd.training.divergences.base import DIVERGENCES, loss_scale

PAPER = ("fkl", "rkl", "jsd", "tvd", "sfkl", "srkl")
NAMES = (*PAPER, "ab", "akl", "entropy_aware", "distillm2")
TEMPERATURES = (0.5, 1.0, 2.0)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Sum of p log(p / q) where p > 0."""
    return torch.where(p > 0, p * (p.log() - q.log()), torch.zeros_like(p)).sum(-1)


def naive(name: str, student: Tensor, teacher: Tensor, temperature: float = 1.0, share: float | None = None) -> Tensor:
    """The definitions of the method, on probabilities, in float64."""
    p = torch.softmax(teacher.double() / temperature, -1)
    q = torch.softmax(student.double() / temperature, -1)
    if name == "fkl":
        return kl(p, q)
    if name == "rkl":
        return kl(q, p)
    if name == "tvd":
        return 0.5 * (p - q).abs().sum(-1)
    if name == "ab":
        return naive_alpha_beta(p, q, 0.2, 0.7)
    if name == "akl":
        return naive_adaptive_kl(p, q)
    if name == "entropy_aware":
        entropy = -torch.where(p > 0, p * p.log(), 0).sum(-1)
        return kl(q, p) + torch.where(entropy > 1.0, kl(p, q), 0)
    if name == "jsd":
        lam = 0.9 if share is None else share
        middle = (1 - lam) * p + lam * q
        return lam * kl(q, middle) + (1 - lam) * kl(p, middle)
    alpha = 0.1 if share is None else share
    if name in ("sfkl", "distillm2"):
        return kl(p, alpha * p + (1 - alpha) * q)
    return kl(q, (1 - alpha) * p + alpha * q)


def naive_alpha_beta(p: Tensor, q: Tensor, alpha: float, beta: float) -> Tensor:
    """The definition, for powers that are neither 0 nor opposite."""
    power = alpha + beta
    terms = p**alpha * q**beta - alpha / power * p**power - beta / power * q**power
    return -terms.sum(-1) / (alpha * beta)


def naive_adaptive_kl(p: Tensor, q: Tensor, mu: float = 0.5) -> Tensor:
    """The definition by sorting; the weight is a constant."""
    values = p.detach().sort(-1).values
    least = torch.where(values.cumsum(-1) < mu, torch.inf, values).amin(-1, keepdim=True)
    distance = (p - q).abs().detach()
    head = torch.where(p.detach() < least, 0, distance).sum(-1) / distance.sum(-1)
    return head * kl(p, q) + (1 - head) * kl(q, p)


def random_logits(rows: int, vocabulary: int, *, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64) * scale
    return student, teacher


def all_aliases() -> dict[str, str]:
    """Every other name of a divergence; each is known when its file is read."""
    for name in DIVERGENCES.names():
        DIVERGENCES.get(name)
    assert len(DIVERGENCES.aliases) >= 10
    return DIVERGENCES.aliases


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_plain_formula(name: str, temperature: float) -> None:
    student, teacher = random_logits(7, 53)
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    value = srd.divergence(name, ours, teacher, temperature=temperature)
    expected = naive(name, theirs, teacher, temperature)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    (value * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "share"), [(n, s) for n in ("jsd", "sfkl", "srkl") for s in (0.0, 0.3, 0.5, 1.0)])
def test_parameters_enter_as_defined(name: str, share: float) -> None:
    student, teacher = random_logits(5, 31, seed=1)
    parameter = "lam" if name == "jsd" else "alpha"
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    value = srd.divergence(name, ours, teacher, **{parameter: share})
    expected = naive(name, theirs, teacher, share=share)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES.names())
@pytest.mark.parametrize("share", [None, 0.3])
def test_beta_is_gkds(name: str, share: float | None) -> None:
    """Where there is one: KL(p ‖ m) and KL(q ‖ m) with m = β p + (1-β) q, weighted by β and 1-β; KLs at the ends."""
    known, (student, teacher) = DIVERGENCES.get(name), random_logits(4, 9)
    parameters = {"lam": share} if share and "lam" in known.defaults else {}
    beta = known.beta_with(parameters)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    if beta is None:
        assert name not in ("fkl", "rkl", "jsd")
        return
    middle = beta * p + (1 - beta) * q
    expected = {0: kl(p, q), 1: kl(q, p)}.get(beta, beta * kl(p, middle) + (1 - beta) * kl(q, middle))
    torch.testing.assert_close(srd.divergence(name, student.double(), teacher.double(), **parameters), expected)


def test_generalised_jsd_is_symmetric_at_one_half() -> None:
    student, teacher = random_logits(4, 20)
    torch.testing.assert_close(
        srd.divergence("jsd", student, teacher, lam=0.5), srd.divergence("jsd", teacher, student, lam=0.5)
    )
    with_lam = srd.divergence("jsd", student, teacher, lam=0.9)
    assert not torch.allclose(with_lam, srd.divergence("jsd", student, teacher, lam=0.1))


@pytest.mark.parametrize(
    ("alpha", "beta", "same"),
    [
        (1, 0, lambda p, q: kl(p, q)),
        (0, 1, lambda p, q: kl(q, p)),
        (0.5, 0.5, lambda p, q: 2 * (p.sqrt() - q.sqrt()).square().sum(-1)),  # 4 H², where H² = 1 - Σ √(pq)
        (1, 1, lambda p, q: (p - q).square().sum(-1) / 2),
        (0, 0, lambda p, q: (p.log() - q.log()).square().sum(-1) / 2),
        (0.6, 0, lambda p, q: (p**0.6 * (p / q).log() / 0.6 - (p**0.6 - q**0.6) / 0.36).sum(-1)),
        (0, 0.6, lambda p, q: (q**0.6 * (q / p).log() / 0.6 - (q**0.6 - p**0.6) / 0.36).sum(-1)),
        *((a, b, lambda p, q, a=a, b=b: naive_alpha_beta(p, q, a, b)) for a, b in [(0.8, 0.3), (0.1, 0.8), (2, 0.5)]),
    ],
)
def test_alpha_beta_and_what_it_is_for_special_powers(alpha: float, beta: float, same: Any) -> None:
    student, teacher = random_logits(5, 31, seed=1)
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    value = srd.divergence("ab", ours, teacher, alpha=alpha, beta=beta)
    expected = same(torch.softmax(teacher, -1), torch.softmax(theirs, -1))
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_contrastive_divergence_on_the_students_own_text(masked: bool) -> None:
    """The student within the mixture is a constant: the value is `srkl`'s, its gradient is not."""
    student, teacher = random_logits(5, 31, seed=1)
    if masked:
        student[:, 3] = teacher[:, 3] = -torch.inf
    for alpha in (0.01, 0.1, 0.7):
        ours, theirs, other = (student.clone().requires_grad_() for _ in range(3))
        value = srd.divergence("distillm2", ours, teacher, alpha=alpha, own=1, share=1.5)
        ids = [0, 1, 2, *range(4, 31)] if masked else list(range(31))
        p, q = (torch.softmax(each[:, ids], -1) for each in (teacher, theirs))
        expected = 1.5 * kl(q, (1 - alpha) * p + alpha * q.detach())
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        value.sum().backward()
        expected.sum().backward()
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)
        skewed = 1.5 * srd.divergence("srkl", other, teacher, alpha=alpha)
        torch.testing.assert_close(skewed, value)
        skewed.sum().backward()
        assert other.grad is not None and not torch.allclose(other.grad, ours.grad, rtol=1e-3)


@pytest.mark.parametrize("mu", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_the_head_of_adaptive_kl_is_found_as_by_sorting(mu: float) -> None:
    """Also where it has more ids than are looked at first: a flat teacher of 2,000."""
    for scale in (0.1, 1.0, 4.0):
        student, teacher = random_logits(4, 2000, scale=scale)
        ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
        value = srd.divergence("akl", ours, teacher, mu=mu)
        expected = naive_adaptive_kl(torch.softmax(teacher, -1), torch.softmax(theirs, -1), mu)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        value.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "akl"])  # whose weight is a constant
def test_gradient_by_finite_differences(name: str, temperature: float) -> None:
    student, teacher = random_logits(3, 9, scale=1.0)
    assert torch.autograd.gradcheck(
        lambda z: srd.divergence(name, z, teacher, temperature=temperature), (student.requires_grad_(),)
    )


# p = (1/2, 1/2), q = (1/4, 3/4): what each divergence is, by hand.
BY_HAND = {
    "fkl": 0.5 * math.log(2) + 0.5 * math.log(2 / 3),
    "rkl": 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2),
    "tvd": 0.25,
    # m = 0.1 p + 0.9 q = (0.275, 0.725)
    "jsd": 0.9 * (0.25 * math.log(0.25 / 0.275) + 0.75 * math.log(0.75 / 0.725))
    + 0.1 * (0.5 * math.log(0.5 / 0.275) + 0.5 * math.log(0.5 / 0.725)),
    # 0.1 p + 0.9 q, the same mixture
    "sfkl": 0.5 * math.log(0.5 / 0.275) + 0.5 * math.log(0.5 / 0.725),
    # 0.9 p + 0.1 q = (0.475, 0.525)
    "srkl": 0.25 * math.log(0.25 / 0.475) + 0.75 * math.log(0.75 / 0.525),
    "ab": sum(
        (0.2 * p**0.9 + 0.7 * q**0.9) / 0.9 - p**0.2 * q**0.7 for p, q in ((0.5, 0.25), (0.5, 0.75))
    ) / 0.14,
    # p is flat: all of it is head
    "akl": 0.5 * math.log(2) + 0.5 * math.log(2 / 3),
    "distillm2": 0.5 * math.log(0.5 / 0.275) + 0.5 * math.log(0.5 / 0.725),
    # log 2 nats are below the threshold of 1
    "entropy_aware": 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_values_worked_out_by_hand(name: str) -> None:
    teacher = torch.zeros(1, 2)
    student = torch.tensor([[0.0, math.log(3)]])
    assert srd.divergence(name, student, teacher).item() == pytest.approx(BY_HAND[name], rel=1e-6)
    # At T = 2 a student of (0, 2 log 3) has the same distribution.
    assert srd.divergence(name, 2 * student, teacher, temperature=2).item() == pytest.approx(BY_HAND[name], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_zero_where_the_distributions_are_equal_and_positive_elsewhere(name: str) -> None:
    student, teacher = random_logits(50, 40)
    same = teacher.float().clone().requires_grad_()
    value = srd.divergence(name, same, teacher.float() + 5)  # a constant shifts logits, not the distribution
    value.sum().backward()
    assert value.abs().max() < 2e-6
    if name != "tvd":  # its slope jumps at p = q
        assert same.grad is not None and same.grad.abs().max() < 2e-6
    assert (value >= 0).all()
    assert (srd.divergence(name, student, teacher) > 1e-3).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", NAMES)
def test_large_vocabulary_in_float32(name: str, temperature: float) -> None:
    student, teacher = random_logits(4, 50_000, scale=2)
    ours, theirs = student.float().requires_grad_(), student.float().double().requires_grad_()
    value = srd.divergence(name, ours, teacher.float(), temperature=temperature)
    expected = naive(name, theirs, teacher.float(), temperature)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    value.sum().backward()
    expected.sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    error = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
    assert error < (1e-4 if name == "ab" else 2e-5)  # its slope is large in the tail: q's own rounding counts more


@pytest.mark.parametrize(("vocabulary", "scale"), [(5000, 1.0), (5000, 6.0), (300, 3.0)], ids=["flat", "peaked", "few"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "tvd"])
def test_small_values_are_right_in_float32(name: str, vocabulary: int, scale: float) -> None:
    """Down to 1e-6 nats a row: what remains is not the rounding of the normalisers."""
    student, teacher = random_logits(8, vocabulary, scale=scale)
    for distance in (1.0, 0.1, 0.01, 0.002):
        near = (student + distance / scale * (teacher - student)).float()
        value = srd.divergence(name, student.float(), near)
        exact = srd.divergence(name, student.float().double(), near.double())
        torch.testing.assert_close(value.double(), exact, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_worked_out_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = (logits.to(dtype) for logits in random_logits(6, 300))
    ours, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    value = srd.divergence(name, ours, teacher)
    expected = naive(name, theirs, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    value.sum().backward()
    expected.sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_stay_finite(name: str, temperature: float) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, -1e4], [0.0, 0.0, 1e4]]).requires_grad_()
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, -1e4, 1e4], [1e4, -1e4, 0.0]])
    value = srd.divergence(name, student, teacher, temperature=temperature)
    value.sum().backward()
    assert torch.isfinite(value).all() and (value >= 0).all()
    assert student.grad is not None and torch.isfinite(student.grad).all()
    assert value[1] < 1e-6
    if name in ("fkl", "rkl"):  # all mass on one id, whose log-probability is 2e4/T lower for the other
        assert value[0].item() == pytest.approx(2e4 / temperature, rel=1e-6)
    if name == "tvd":
        assert value[0].item() == pytest.approx(1.0)
    if name == "sfkl":  # KL(p | 0.1 p) where the student has nothing
        assert value[0].item() == pytest.approx(math.log(10), rel=1e-6)
    if name == "srkl":
        assert value[0].item() == pytest.approx(math.log(10), rel=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", NAMES)
def test_ids_masked_in_both_do_not_exist(name: str, temperature: float) -> None:
    student, teacher = random_logits(5, 12)
    masked = torch.zeros(12, dtype=torch.bool)
    masked[[0, 5, 11]] = True
    ours = student.clone().masked_fill(masked, -torch.inf).requires_grad_()
    value = srd.divergence(name, ours, teacher.masked_fill(masked, -torch.inf), temperature=temperature)
    theirs = student[:, ~masked].clone().requires_grad_()
    expected = naive(name, theirs, teacher[:, ~masked], temperature)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    value.sum().backward()
    expected.sum().backward()
    assert ours.grad is not None
    assert (ours.grad[:, masked] == 0).all()
    torch.testing.assert_close(ours.grad[:, ~masked], theirs.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mass", [0.3, 1e-6, 1e-15])
def test_a_mask_in_one_of_them(mass: float, dtype: torch.dtype) -> None:
    """Where only the teacher forbids an id, KL(q|p) is infinite however little mass q has there."""
    other = math.log((1 - mass) / 2)
    student = torch.tensor([[other, other, math.log(mass)]], dtype=dtype)
    teacher = torch.tensor([[0.0, 0.5, -torch.inf]], dtype=dtype)
    assert srd.divergence("rkl", student, teacher).item() == torch.inf
    assert srd.divergence("fkl", teacher, student).item() == torch.inf
    assert srd.divergence("akl", student, teacher).item() == torch.inf
    assert srd.divergence("entropy_aware", student, teacher).item() == torch.inf
    assert srd.divergence("entropy_aware", teacher, student, threshold=0).item() == torch.inf
    for name in ("fkl", "jsd", "tvd", "sfkl", "srkl", "ab", "distillm2"):
        value = srd.divergence(name, student, teacher).double()
        torch.testing.assert_close(value, naive(name, student, teacher), rtol=1e-5, atol=1e-7)
    for name in ("rkl", "jsd", "tvd", "sfkl", "srkl", "ab", "entropy_aware", "distillm2"):
        value = srd.divergence(name, teacher, student).double()
        torch.testing.assert_close(value, naive(name, teacher, student), rtol=1e-5, atol=1e-7)


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    """A masked row sends the batch through the careful form; the other rows' values stay."""
    student, teacher = random_logits(3, 8)
    alone = srd.divergence("rkl", student[:1], teacher[:1])
    teacher[1, 2] = -torch.inf
    student[2, 4] = teacher[2, 4] = -torch.inf
    values = srd.divergence("rkl", student, teacher)
    assert values[0] == alone[0]
    assert values[1] == torch.inf
    assert torch.isfinite(values[2])


def test_no_rows_give_no_values() -> None:
    assert srd.divergence("fkl", torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


def test_the_teacher_is_a_constant() -> None:
    student, teacher = random_logits(2, 5)
    student.requires_grad_()
    teacher.requires_grad_()
    srd.divergence("jsd", student, teacher).sum().backward()
    assert teacher.grad is None and student.grad is not None


@pytest.mark.parametrize(("alias", "name"), all_aliases().items())
def test_names_of_the_papers_scripts(alias: str, name: str) -> None:
    assert DIVERGENCES.name_of(alias) == name
    student, teacher = random_logits(2, 5)
    assert torch.equal(srd.divergence(alias, student, teacher), srd.divergence(name, student, teacher))


def test_paper_names_cover_every_divergence() -> None:
    assert {DIVERGENCES.name_of("t" + name) for name in PAPER} == set(PAPER)
    assert DIVERGENCES.name_of("kd") == "fkl" and DIVERGENCES.name_of("rkld") == "rkl"


@pytest.mark.parametrize("name", ["fkll", "random", "on", "KL"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown objective '{name}'.*Known: .*srkl"):
        srd.divergence(name, torch.zeros(1, 2), torch.zeros(1, 2))


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UserError, match="did you mean 'srkl'"):
        DIVERGENCES.name_of("skrl")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("fkl", {"alpha": 0.1}, "no parameter 'alpha'; it has none"),
        ("jsd", {"lamda": 0.1}, "no parameter 'lamda'; did you mean 'lam'"),
        ("jsd", {"lam": 1.5}, "lam is 1.5, but it must be within 0 and 1"),
        ("sfkl", {"alpha": -0.1}, "alpha is -0.1"),
        ("srkl", {"alpha": math.nan}, "alpha is nan"),
        ("srkl", {"alpha": "0.1"}, "alpha must be a number, but is '0.1'"),
        ("srkl", {"alpha": True}, "alpha must be a number, but is True"),
        ("ab", {"beta": -0.5}, "beta is -0.5, but it must be within 0 and 2"),
        ("akl", {"mu": 1.5}, "mu is 1.5, but it must be within 0 and 1"),
        ("entropy_aware", {"threshold": math.nan}, "threshold is nan, but it must be within -1 and inf"),
    ],
)
def test_wrong_parameters_are_refused(name: str, parameters: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        srd.divergence(name, torch.zeros(1, 2), torch.zeros(1, 2), **parameters)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_wrong_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=f"temperature is {temperature}"):
        srd.divergence("fkl", torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(UserError, match=r"\[1, 3\].*\[1, 2\].*padding rows"):
        srd.divergence("fkl", torch.zeros(1, 3), torch.zeros(1, 2))


@pytest.mark.parametrize("name", NAMES)
def test_conventions_for_temperature_squared(name: str) -> None:
    assert loss_scale(name, 1.5, "all") == 2.25
    assert loss_scale(name, 1.5, "none") == 1.0
    assert loss_scale(name, 1.5, "paper") == (1.0 if name in ("rkl", "tvd", "sfkl") else 2.25)


def documented_example() -> str:
    """The code block of the module's docstring."""
    assert base.__doc__ is not None
    _, _, block = base.__doc__.partition("::\n\n")
    lines = [line[4:] for line in block.splitlines() if not line or line.startswith("    ")]
    return "\n".join(lines)


def test_the_documented_example_registers_a_divergence() -> None:
    exec(documented_example(), {"srd": srd})
    student, teacher = random_logits(6, 17)
    for temperature in TEMPERATURES:
        ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
        value = srd.divergence("hellinger", ours, teacher, temperature=temperature)
        p, q = torch.softmax(teacher / temperature, -1), torch.softmax(theirs / temperature, -1)
        expected = 0.5 * (p.sqrt() - q.sqrt()).square().sum(-1)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        value.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)
    assert (srd.divergence("hellinger", student, student).abs() < 1e-12).all()
    assert loss_scale("hellinger", 2.0, "paper") == 4.0


def test_a_registered_divergence_may_have_parameters() -> None:
    @srd.register_divergence("power", squared=False)
    def power(log_p: Tensor, log_q: Tensor, order: float = 2.0) -> Tensor:
        return (log_p.exp() - log_q.exp()).abs().pow(order).sum(-1)

    student, teacher = random_logits(3, 7)
    p, q = torch.softmax(teacher, -1), torch.softmax(student, -1)
    torch.testing.assert_close(srd.divergence("power", student, teacher), (p - q).square().sum(-1))
    torch.testing.assert_close(srd.divergence("power", student, teacher, order=1), (p - q).abs().sum(-1))
    with pytest.raises(UserError, match="no parameter 'ordre'; did you mean 'order'"):
        srd.divergence("power", student, teacher, ordre=1)
    assert loss_scale("power", 2.0, "paper") == 1.0


@pytest.mark.parametrize("name", ["fkl", "kd", "tsrkl"])
def test_a_taken_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"a divergence '{name}' already"):
        srd.register_divergence(name)(lambda log_p, log_q: (log_p - log_q).sum(-1))
    assert name in all_aliases() or DIVERGENCES.get(name).function is fkl.forward_kl


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda log_p, log_q: log_q, "a tensor [3, 4]"),
        (lambda log_p, log_q: log_q.sum(), "a tensor []"),
        (lambda log_p, log_q: log_q.sum(-1, keepdim=True), "a tensor [3, 1]"),
        (lambda log_p, log_q: log_p.sum(-1), "a tensor [3] for"),  # does not follow from the student
        (lambda log_p, log_q: None, "NoneType"),
        (lambda log_p, log_q: [0.0, 0.0, 0.0], "list"),
    ],
)
def test_what_a_divergence_gives_is_looked_at(given: Any, words: str) -> None:
    srd.register_divergence("given")(given)
    with pytest.raises(UserError, match=re.escape(words)):
        srd.divergence("given", torch.zeros(3, 4, requires_grad=True), torch.ones(3, 4))


def test_registering_twice_is_refused() -> None:
    srd.register_divergence("mine")(lambda log_p, log_q: (log_p - log_q).abs().sum(-1))
    with pytest.raises(UserError, match="a divergence 'mine' already"):
        srd.register_divergence("mine")(lambda log_p, log_q: (log_p - log_q).square().sum(-1))


def test_a_parameter_without_default_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs a default for its parameters \['share'\]"):
        srd.register_divergence("mine")(lambda log_p, log_q, share: (log_p - log_q).sum(-1) * share)


@pytest.mark.parametrize("temperature", [0, -1, 1e-300, 1e30, math.nan, math.inf, None, "1"])
def test_a_temperature_that_is_none(temperature: Any) -> None:
    """Logits divided by a very small one leave float32, and the divergence would be NaN."""
    with pytest.raises(UserError, match=r"must be a number between 0\.001 and 1000"):
        srd.divergence("fkl", torch.ones(1, 3), torch.zeros(1, 3), temperature=temperature)
    with pytest.raises(UserError, match="unknown objective 'None'"):
        srd.divergence(None, torch.ones(1, 3), torch.zeros(1, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"student's logits are \[3\]; expected a torch tensor \[N, V\]"),
        (torch.zeros(1, 3), np.zeros((1, 3)), "teacher's logits are ndarray"),
        (torch.zeros(1, 3), torch.tensor([[0, math.nan, 0]]), "teacher's logits hold NaN"),
        (torch.tensor([[0, math.inf, 0]]), torch.zeros(1, 3), "student's logits hold NaN or infinity"),
        (torch.zeros(1, 3, dtype=torch.complex64), torch.zeros(1, 3), "of real numbers"),
    ],
)
def test_logits_that_are_none(student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        srd.divergence("fkl", student, teacher)
    assert srd.divergence("fkl", torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
    assert srd.divergence("fkl", torch.zeros(1, 3), torch.zeros(1, 3)).tolist() == [0.0]


def test_a_registration_says_aliases_and_ranges() -> None:
    @srd.register_divergence("scaled", aliases=["tscaled"], ranges={"factor": (0, 2)})
    def scaled(log_p: Tensor, log_q: Tensor, factor: float = 1.0) -> Tensor:
        return factor * (log_p.exp() * (log_p - log_q)).sum(-1)

    student, teacher = random_logits(3, 7)
    expected = 2 * srd.divergence("fkl", student, teacher)
    torch.testing.assert_close(srd.divergence("tscaled", student, teacher, factor=2), expected)
    for factor in (-0.1, 2.1):
        with pytest.raises(UserError, match=f"scaled: factor is {factor}, but it must be within 0 and 2"):
            srd.divergence("scaled", student, teacher, factor=factor)
    with pytest.raises(UserError, match="has a range for 'alfa', but no such parameter"):
        srd.register_divergence("other", ranges={"alfa": (0, 1)})(lambda log_p, log_q, alpha=1: log_q.sum(-1))
