import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses.dense import adaptation, affinity, channel_wise, dist_pixels, paraphrase
from kd_lightning.losses.response import kl, l1_logits

LOSSES = {"cwd": channel_wise, "dist": dist_pixels, "adaptation": adaptation, "affinity": affinity}


def maps(scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return scale * torch.randn(2, 3, 4, 5), scale * torch.randn(2, 3, 4, 5)


def grad(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def slow_cwd(student, teacher, temperature: float) -> float:
    total = 0.0
    for s, t in zip(student.double().flatten(0, 1), teacher.double().flatten(0, 1), strict=True):
        q, p = [[math.exp(v / temperature) for v in x.flatten().tolist()] for x in (s, t)]
        total += sum(b / sum(p) * math.log(b / sum(p) / (a / sum(q))) for a, b in zip(q, p, strict=True))
    return temperature**2 * total / (student.shape[0] * student.shape[1])


def pearson(a: list[float], b: list[float]) -> float:
    x, y = sum(a) / len(a), sum(b) / len(b)
    product = sum((u - x) * (v - y) for u, v in zip(a, b, strict=True))
    return product / math.sqrt(sum((u - x) ** 2 for u in a) * sum((v - y) ** 2 for v in b))


def slow_dist(student, teacher) -> float:
    p, q = ([row.tolist() for row in x.double().softmax(1).movedim(1, -1).reshape(-1, 3)] for x in (student, teacher))
    pixels = [pearson(a, b) for a, b in zip(p, q, strict=True)]
    classes = [pearson([row[c] for row in p], [row[c] for row in q]) for c in range(3)]
    return 2 - sum(pixels) / len(pixels) - sum(classes) / len(classes)


def slow_affinity(student, teacher) -> float:
    total = 0.0
    for s, t in zip(student.double().flatten(0, 1), teacher.double().flatten(0, 1), strict=True):
        a, b = (x.flatten() / x.norm() for x in (s, t))
        total += float((torch.outer(a, a) - torch.outer(b, b)).norm()) / a.numel()
    return total / len(student)


def slow_adaptation(student, teacher) -> float:
    a, b = ([x / x.norm() for x in y.double()] for y in (student, teacher))
    return float(torch.stack([(u - v).abs().mean() for u, v in zip(a, b, strict=True)]).mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_wise_equals_a_loop(temperature) -> None:
    s, t = maps()
    assert channel_wise(s, t, temperature=temperature).item() == pytest.approx(slow_cwd(s, t, temperature), rel=1e-4)


def test_the_others_equal_a_loop() -> None:
    s, t = maps()
    assert dist_pixels(s, t).item() == pytest.approx(slow_dist(s, t), rel=1e-4)
    assert affinity(s, t).item() == pytest.approx(slow_affinity(s, t), rel=1e-4)
    assert adaptation(s, t).item() == pytest.approx(slow_adaptation(s, t), rel=1e-4)


def test_closed_forms() -> None:
    # one channel, two positions: probabilities 1/2, 1/2 against 3/4, 1/4
    s, t = torch.zeros(1, 1, 1, 2), torch.tensor([math.log(3), 0.0]).view(1, 1, 1, 2)
    assert channel_wise(s, t, temperature=1.0).item() == pytest.approx(0.130812, abs=1e-6)
    # two classes that are exchanged everywhere: correlations are -1
    x = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    s, t = torch.stack((x, -x))[None], torch.stack((-x, x))[None]
    assert dist_pixels(s, t, inter=2.0, intra=0.5).item() == pytest.approx(2.0 * 2 + 0.5 * 2, rel=1e-5)
    assert dist_pixels(s, t, temperature=3.0).item() == pytest.approx(9 * 4, rel=1e-5)
    # two channels of four positions, orthogonal: |aa' - bb'| = sqrt 2, and u = e1 / sqrt 2 + ...
    a, b = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    a[..., 0, 0], b[..., 1, 1] = 5.0, 3.0
    assert affinity(a, b).item() == pytest.approx(2 * math.sqrt(2) / 4)
    assert adaptation(a, b).item() == pytest.approx(4 / math.sqrt(2) / 8)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_maps_cost_nothing_and_pull_nowhere(name) -> None:
    s, t = maps()
    s.requires_grad_()
    loss = LOSSES[name](s, s.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert grad(s).isfinite().all()
    assert LOSSES[name](s, t) > loss + 1e-3


def test_what_each_loss_does_not_see() -> None:
    s, t = maps()
    per_channel, per_pixel = torch.randn(2, 3, 1, 1), torch.randn(2, 1, 4, 5)
    torch.testing.assert_close(channel_wise(s + per_channel, t), channel_wise(s, t))
    torch.testing.assert_close(dist_pixels(s + per_pixel, t), dist_pixels(s, t))
    torch.testing.assert_close(adaptation(3 * s, t), adaptation(s, t))
    torch.testing.assert_close(affinity(s * per_channel, t), affinity(s, t))
    assert not torch.allclose(channel_wise(s + per_pixel, t), channel_wise(s, t), rtol=1e-2)
    assert not torch.allclose(dist_pixels(s + per_channel, t), dist_pixels(s, t), rtol=1e-2)


def test_dist_counts_every_pixel_of_the_batch_as_a_sample() -> None:
    s, t = maps()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    mixed = [x.movedim(1, -1).reshape(40, 3)[order].reshape(2, 4, 5, 3).movedim(-1, 1) for x in (s, t)]
    torch.testing.assert_close(dist_pixels(*mixed), dist_pixels(s, t))
    assert not torch.allclose(channel_wise(*mixed), channel_wise(s, t), rtol=1e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_constant_maps_of_either_side_stay_finite(name) -> None:
    for student, teacher in (
        (torch.zeros(2, 3, 4, 4), maps()[0][..., :4]),
        (100 * torch.eye(4).expand(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)),
    ):
        student = student.clone().requires_grad_()
        loss = LOSSES[name](student, teacher)
        loss.backward()
        assert loss.isfinite()
        assert grad(student).isfinite().all()


@pytest.mark.parametrize("name", [*LOSSES, "kl", "l1"])
def test_losses_of_bf16_maps_are_those_of_the_same_numbers_in_fp32(name) -> None:
    loss = {**LOSSES, "kl": kl, "l1": l1_logits}[name]
    s, t = (x.bfloat16() for x in maps(30.0))
    s.requires_grad_()
    value = loss(s, t)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert grad(s).isfinite().all()
    torch.testing.assert_close(value, loss(s.float(), t.float()), atol=0, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name) -> None:
    s, t = (x.double() for x in maps())
    s.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda tensor: tensor)
        assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, t), s)


@pytest.mark.parametrize("name", LOSSES)
def test_other_shapes_are_refused(name) -> None:
    s, t = maps()
    with pytest.raises(ValueError, match="one shape"):
        LOSSES[name](s, t[:, :1])
    with pytest.raises(ValueError, match=r"needs \(N, C, H, W\), got \(2, 3\)"):
        LOSSES[name](s[..., 0, 0], t[..., 0, 0])


def test_affinity_makes_no_matrix_of_positions() -> None:
    side = 256  # 65,536 positions: their matrix would take 16 GiB a channel
    x = torch.zeros(1, 2, side, side)
    x[..., 0, 0] = 1.0
    assert affinity(x, F.pad(x[..., :-1], (1, 0))).item() == pytest.approx(2 * math.sqrt(2) / side**2)


def test_a_paraphraser_pays_for_its_error_and_a_little_for_its_code() -> None:
    again, teacher = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    code = torch.full((2, 1, 4, 4), -2.0, dtype=torch.bfloat16)
    assert paraphrase([again, code], teacher, sparsity=1e-3).item() == pytest.approx(0.25 + 1e-3 * 64)
    assert paraphrase([again, code], teacher).item() == pytest.approx(0.25 + 64e-7)
