import math

import pytest
import torch
from doors import degrade

from kd_lightning.losses.response import kl, l1_logits
from kd_lightning.losses.soft_labels import answer_cross_entropy, imitation, soft_cross_entropy


def grad(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def slow_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    total = 0.0
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        q = [math.exp(v / temperature) for v in s]
        p = [math.exp(v / temperature) for v in t]
        total += sum(b / sum(p) * math.log(b / sum(p) / (a / sum(q))) for a, b in zip(q, p, strict=True))
    return temperature**2 * total / len(student)


def test_kl_closed_form() -> None:
    s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    assert kl(s, t).item() == pytest.approx(0.130812, abs=1e-6)
    assert kl(s, t, reduction="mean").item() == pytest.approx(0.065406, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_equals_a_loop(temperature: float) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(5, 7) * 3, torch.randn(5, 7) * 3
    assert kl(s, t, temperature=temperature).item() == pytest.approx(slow_kl(s, t, temperature), rel=1e-4)


def test_kl_counts_every_position_of_a_dense_answer_once() -> None:
    s, t = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    flat = kl(s.movedim(1, -1).reshape(-1, 5), t.movedim(1, -1).reshape(-1, 5))
    torch.testing.assert_close(kl(s, t), flat)


def test_temperature_hardly_changes_the_gradient_of_small_logits() -> None:
    torch.manual_seed(0)
    t = torch.randn(8, 10) * 0.01
    gradients = []
    for temperature in (1.0, 10.0):
        s = (torch.randn(8, 10, generator=torch.Generator().manual_seed(1)) * 0.01).requires_grad_()
        kl(s, t, temperature=temperature).backward()
        gradients.append(grad(s))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.1, atol=1e-5)


def test_kl_stays_finite_where_probabilities_underflow_and_reaches_both_sides() -> None:
    s = torch.tensor([[0.0, 300.0]], requires_grad=True)
    t = torch.tensor([[300.0, 0.0]], requires_grad=True)
    loss = kl(s, t)
    loss.backward()
    assert loss.item() == pytest.approx(300.0)
    torch.testing.assert_close(grad(s), torch.tensor([[-1.0, 1.0]]))
    assert grad(t).isfinite().all()


def test_kl_teacher_receives_the_gradient_of_finite_differences() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(2, 3), torch.randn(2, 3, requires_grad=True)
    kl(s, t, temperature=2.0).backward()
    for index in ((0, 1), (1, 2)):
        up, down = t.detach().clone(), t.detach().clone()
        up[index] += 1e-2
        down[index] -= 1e-2
        assert grad(t)[index].item() == pytest.approx((slow_kl(s, up, 2) - slow_kl(s, down, 2)) / 2e-2, abs=1e-3)


def test_soft_cross_entropy_equals_a_loop_and_has_no_square_of_temperature() -> None:
    torch.manual_seed(0)
    s, p = torch.randn(4, 6), torch.randn(4, 6).softmax(1)
    expected = 0.0
    for row, target in zip((s / 3).tolist(), p.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(v) for v in row))
        expected += sum(t * (log_sum - v) for v, t in zip(row, target, strict=True)) / 4
    assert soft_cross_entropy(s, p, temperature=3.0).item() == pytest.approx(expected, rel=1e-5)


def test_soft_cross_entropy_differs_from_kl_by_the_entropy_of_its_targets() -> None:
    s, t = torch.randn(4, 6), torch.randn(4, 6)
    p = t.softmax(1)
    entropy = torch.special.entr(p).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(s, p), kl(s, t) + entropy)


@pytest.mark.parametrize("level", ["probs", "topk", "label"])
def test_the_student_of_fs_bbt_is_pulled_to_the_answer_and_ends_at_its_entropy(level: str) -> None:
    torch.manual_seed(0)
    student, answer = torch.randn(5, 8, requires_grad=True), degrade(3 * torch.randn(5, 8), level, k=3)
    told = answer.exp()
    torch.testing.assert_close(told.sum(1), torch.ones(5))
    answer_cross_entropy(student, answer).backward()
    torch.testing.assert_close(grad(student), (student.detach().softmax(1) - told) / 5)
    least = answer_cross_entropy(answer, answer)
    torch.testing.assert_close(least, torch.special.entr(told).sum(1).mean())
    assert answer_cross_entropy(answer + 0.1 * torch.randn(5, 8), answer) > least


def test_l1_closed_forms() -> None:
    s, t = torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 2.0]])
    assert l1_logits(s, t).item() == 1.5
    assert -torch.log1p(l1_logits(s, t)).item() == pytest.approx(-0.916291, abs=1e-6)


def test_l1_equals_a_loop_on_dense_answers() -> None:
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    pairs = list(zip(s.flatten().tolist(), t.flatten().tolist(), strict=True))
    assert l1_logits(s, t).item() == pytest.approx(sum(abs(a - b) for a, b in pairs) / len(pairs), rel=1e-5)


@pytest.mark.parametrize("loss", [kl, l1_logits, soft_cross_entropy])
def test_losses_compute_in_fp32_and_refuse_to_broadcast(loss) -> None:
    s, t = torch.randn(4, 3, dtype=torch.bfloat16), torch.rand(4, 3, dtype=torch.bfloat16)
    assert loss(s, t).dtype == torch.float32
    torch.testing.assert_close(loss(s, t), loss(s.float(), t.float()), atol=0, rtol=0)
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(3,\)"):
        loss(s, t[0])


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="batchmean, mean or none"):
        kl(torch.zeros(1, 2), torch.zeros(1, 2), reduction="sum")  # type: ignore[arg-type]


def test_imitation_is_a_squared_difference_of_numbers_and_hintons_loss_of_logits() -> None:
    student, teacher = torch.tensor([[0.2], [0.8]]), torch.tensor([[0.5], [0.7]])
    assert float(imitation(student, teacher, temperature=4.0)) == pytest.approx((0.09 + 0.01) / 2)
    torch.manual_seed(0)
    s, t = torch.randn(5, 3), torch.randn(5, 3)
    assert torch.equal(imitation(s, t, temperature=4.0), kl(s, t, temperature=4.0))
    assert torch.equal(imitation(s[..., None], t[..., None]), kl(s[..., None], t[..., None]))
    with pytest.raises(ValueError, match="one shape"):
        imitation(student, teacher[:, 0])
