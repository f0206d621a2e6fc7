import math

import pytest
import torch

from kd_lightning.losses.adversarial import attention_transfer, jensen_shannon, masked_kl
from kd_lightning.losses.response import kl


def grad(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def probabilities(row: list[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(v / temperature) for v in row]
    return [w / sum(weights) for w in weights]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_masked_kl_is_zero_where_all_disagree_and_minus_kl_where_all_agree() -> None:
    s = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert masked_kl(s, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])).item() == 0
    agreeing = torch.tensor([[5.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    torch.testing.assert_close(masked_kl(s, agreeing), -kl(s, agreeing))


def test_masked_kl_equals_a_loop_that_divides_by_the_whole_batch() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(12, 3), torch.randn(12, 3)
    total, agreeing = 0.0, 0
    for a, b in zip(s.tolist(), t.tolist(), strict=True):
        if a.index(max(a)) == b.index(max(b)):
            agreeing += 1
            total += divergence(probabilities(b), probabilities(a))
    assert 0 < agreeing < 12
    assert masked_kl(s, t).item() == pytest.approx(-total / 12, rel=1e-4)


def test_masked_kl_pulls_on_agreeing_samples_only_through_both_nets() -> None:
    s = torch.tensor([[2.0, 0.0], [2.0, 0.0]], requires_grad=True)
    t = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    masked_kl(s, t).backward()
    for logits in (s, t):
        assert grad(logits)[0].abs().sum() > 0
        assert grad(logits)[1].abs().sum() == 0


def test_jensen_shannon_closed_form() -> None:
    here, there = torch.tensor([[900.0, 0.0]]), torch.tensor([[0.0, 900.0]])
    assert jensen_shannon(here, there).item() == pytest.approx(math.log(2), abs=1e-6)
    assert jensen_shannon(here, here).item() == pytest.approx(0, abs=1e-6)
    assert jensen_shannon(here, there, variant="code").item() == pytest.approx(1.61446, abs=1e-5)
    assert jensen_shannon(here, here, variant="code").item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="paper or code"):
        jensen_shannon(here, there, variant="legacy")  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_jensen_shannon_equals_a_loop(temperature: float) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(5, 4) * 4, torch.randn(5, 4) * 4
    paper = code = 0.0
    for a, b in zip(s.tolist(), t.tolist(), strict=True):
        q, p = probabilities(a, temperature), probabilities(b, temperature)
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        paper += (divergence(p, m) + divergence(q, m)) / 10
        cp, cq, cm = ([min(max(v, 0.01), 0.99) for v in row] for row in (p, q, m))
        code += (divergence(cm, cp) + divergence(cm, cq)) / 10
    assert jensen_shannon(s, t, temperature=temperature).item() == pytest.approx(paper, rel=1e-4)
    assert jensen_shannon(s, t, temperature=temperature, variant="code").item() == pytest.approx(code, rel=1e-4)


def test_jensen_shannon_is_symmetric_and_keeps_a_gradient_for_opposite_answers() -> None:
    s = torch.tensor([[6.0, 0.0, 1.0]], requires_grad=True)
    t = torch.tensor([[0.0, 6.0, 1.0]], requires_grad=True)
    loss = jensen_shannon(s, t)
    torch.testing.assert_close(loss, jensen_shannon(t, s))
    loss.backward()
    for logits in (s, t):
        assert grad(logits).isfinite().all()
        assert grad(logits).abs().sum() > 1e-3


def test_attention_transfer_closed_form() -> None:
    s, t = torch.zeros(1, 2, 2, 4), torch.zeros(1, 3, 2, 4)
    s[0, :, 0, 0] = 5
    t[0, :, 1, 2] = -3
    assert attention_transfer([s], [t]).item() == pytest.approx(0.25)
    assert attention_transfer([s, s], [t, t]).item() == pytest.approx(0.5)
    assert attention_transfer([s * 7], [s]).item() == pytest.approx(0)


def test_attention_transfer_equals_a_loop() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 2, 2), torch.randn(2, 5, 2, 2)

    def attention(x: torch.Tensor) -> list[float]:
        flat = [sum(v * v for v in column) / len(column) for column in x.flatten(1).T.tolist()]
        length = math.sqrt(sum(v * v for v in flat))
        return [v / length for v in flat]

    gaps = [(a - b) ** 2 for n in range(2) for a, b in zip(attention(s[n]), attention(t[n]), strict=True)]
    assert attention_transfer([s], [t]).item() == pytest.approx(sum(gaps) / 8, rel=1e-5)


def test_attention_transfer_of_dead_maps_has_a_finite_gradient() -> None:
    s = torch.zeros(1, 2, 2, 2, requires_grad=True)
    attention_transfer([s], [torch.ones(1, 2, 2, 2)]).backward()
    assert grad(s).isfinite().all()


def test_attention_transfer_refuses_maps_that_do_not_pair() -> None:
    x = torch.zeros(1, 2, 4, 4)
    for student, teacher in (([], []), ([x], []), ([x], [x[..., :2]]), ([x], [torch.zeros(2, 2, 4, 4)])):
        with pytest.raises(ValueError, match="maps"):
            attention_transfer(student, teacher)


@pytest.mark.parametrize("loss", [masked_kl, jensen_shannon])
def test_adversarial_losses_compute_in_fp32_and_refuse_to_broadcast(loss) -> None:
    s, t = torch.randn(4, 3).bfloat16(), torch.randn(4, 3).bfloat16()
    assert loss(s, t).dtype == torch.float32
    torch.testing.assert_close(loss(s, t), loss(s.float(), t.float()), atol=0, rtol=0)
    with pytest.raises(ValueError, match="one shape"):
        loss(s, t[:1])
