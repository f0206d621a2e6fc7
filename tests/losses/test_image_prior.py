import math

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.losses.diversity import mode_seeking
from kd_lightning.losses.image_prior import activation, information_entropy, one_hot
from kd_lightning.losses.smoothness import l2_norm, total_variation
from kd_lightning.losses.teacher_ratio import teacher_ratio_diversity
from kd_lightning.losses.weighting import ExponentialIncrement, weighted_sum


def grad(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def confident(classes: list[int], margin: float = 200.0) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 10) * margin


# Predictions


@pytest.mark.parametrize(("margin", "expected"), [(0, 2.302585), (1, 1.461150), (5, 0.058874), (200, 0.0)])
def test_one_hot_closed_form(margin: float, expected: float) -> None:
    assert one_hot(confident([3, 7], margin)).item() == pytest.approx(expected, abs=1e-6)


def test_one_hot_ignores_the_order_of_classes_and_constants() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 10)
    torch.testing.assert_close(one_hot(logits[:, torch.randperm(10)]), one_hot(logits))
    torch.testing.assert_close(one_hot(logits + torch.randn(6, 1)), one_hot(logits))


def test_one_hot_gradient_takes_its_label_as_given() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 10, requires_grad=True)
    one_hot(logits).backward()
    label = torch.nn.functional.one_hot(logits.argmax(1), 10)
    torch.testing.assert_close(grad(logits), (logits.detach().softmax(1) - label) / 6)


@pytest.mark.parametrize(
    ("classes", "expected"), [([4] * 10, 0.0), (list(range(10)), -math.log(10)), ([2, 9] * 3, -math.log(2))]
)
def test_information_entropy_closed_form(classes: list[int], expected: float) -> None:
    assert information_entropy(confident(classes)).item() == pytest.approx(expected, abs=1e-6)


def test_information_entropy_with_decimal_logarithm() -> None:
    assert information_entropy(confident(list(range(10))), log="10").item() == pytest.approx(-1, abs=1e-6)
    with pytest.raises(ValueError, match="take e or 10"):
        information_entropy(torch.zeros(1, 2), log="2")  # type: ignore[arg-type]


def test_information_entropy_survives_underflow_with_its_gradient() -> None:
    logits = confident([0, 1]).float().requires_grad_()
    loss = information_entropy(logits)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(2), abs=1e-6)
    assert grad(logits).isfinite().all()


def test_information_entropy_equals_a_loop_and_depends_on_the_batch_mean_only() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 5) * 2
    mean = [sum(row[k] for row in logits.softmax(1).tolist()) / 8 for k in range(5)]
    expected = sum(p * math.log(p) for p in mean)
    assert information_entropy(logits).item() == pytest.approx(expected, rel=1e-5)
    assert information_entropy(logits[torch.randperm(8)]).item() == pytest.approx(expected, rel=1e-5)
    assert information_entropy(torch.cat([logits, logits])).item() == pytest.approx(expected, rel=1e-5)


def test_authenticity_and_class_diversity_conflict_until_both_are_met() -> None:
    uniform, one_class, balanced = torch.zeros(10, 10), confident([0] * 10), confident(list(range(10)))
    pairs = [(one_hot(x).item(), information_entropy(x).item()) for x in (uniform, one_class, balanced)]
    assert pairs[0] == pytest.approx((math.log(10), -math.log(10)), abs=1e-6)
    assert pairs[1] == pytest.approx((0, 0), abs=1e-6)
    assert pairs[2] == pytest.approx((0, -math.log(10)), abs=1e-6)


def test_activation_closed_form() -> None:
    features = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    assert activation(features).item() == -1.5
    assert activation(features, reduction="sum").item() == -3
    assert activation(features.reshape(2, 1, 1, 2), reduction="sum").item() == -3
    with pytest.raises(ValueError, match="mean or sum"):
        activation(features, reduction="max")  # type: ignore[arg-type]


# BatchNorm statistics


def running(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(layer, _BatchNorm)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def layer_with(mean: list[float], var: list[float]) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(mean)).eval()
    for buffer, values in zip(running(layer), (mean, var), strict=True):
        buffer.copy_(torch.tensor(values))
    return layer


def test_batch_norm_closed_form() -> None:
    layer = layer_with([0, 1], [1, 4])
    statistics = [(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0]))]
    assert batch_norm_statistics(statistics, [layer]).item() == pytest.approx(math.sqrt(5) + 3, abs=1e-6)
    second = layer_with([2, 2], [1, 3])
    weighted = batch_norm_statistics(statistics * 2, [layer, second], first_layer_weight=10)
    assert weighted.item() == pytest.approx(10 * (math.sqrt(5) + 3) + 2, abs=1e-4)


def test_batch_norm_momentum_shrinks_the_penalty_where_the_average_already_matches() -> None:
    layer = layer_with([0, 1], [1, 4])
    past = running(layer)
    delta = torch.tensor([0.3, -0.4])
    batch = (past[0] + delta, past[1])

    def loss(ema: tuple[torch.Tensor, torch.Tensor]) -> float:
        return batch_norm_statistics([batch], [layer], ema=[ema], momentum=0.9).item()

    assert loss(past) == pytest.approx(0.1 * 0.5, abs=1e-6)
    assert loss(batch) == pytest.approx(0.5, abs=1e-6)
    assert batch_norm_statistics([batch], [layer], momentum=0.9).item() == pytest.approx(0.5, abs=1e-6)


def test_tap_takes_the_biased_statistics_of_what_enters_each_batch_norm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(3 * 36)).eval()
    x = torch.randn(4, 2, 8, 8, requires_grad=True)
    with BatchNormTap(net) as tap:
        net(x)
    inside = net[0](x)
    expected = 0.0
    for values, layer in ((inside, net[1]), (net[2](net[1](inside)), net[3])):
        mean_gap = var_gap = 0.0
        for c in range(values.shape[1]):
            column = values[:, c].flatten().tolist()
            mean = sum(column) / len(column)
            var = sum((v - mean) ** 2 for v in column) / len(column)
            mean_gap += (mean - running(layer)[0][c].item()) ** 2
            var_gap += (var - running(layer)[1][c].item()) ** 2
        expected += math.sqrt(mean_gap) + math.sqrt(var_gap)
    assert tap.layers == [net[1], net[3]]
    loss = batch_norm_statistics(tap.statistics, tap.layers)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    loss.backward()
    assert grad(x).abs().sum() > 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(not b.requires_grad for b in net.buffers())


def test_batch_norm_loss_is_zero_and_harmless_for_a_batch_that_matches() -> None:
    x = torch.randn(16, 3, 4, 4)
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    layer = layer_with(mean.tolist(), var.tolist())
    with BatchNormTap(layer) as tap:
        layer(x)
    assert batch_norm_statistics(tap.statistics, tap.layers).item() == pytest.approx(0, abs=1e-6)
    with tap:
        layer(x[torch.randperm(16)])
    assert batch_norm_statistics(tap.statistics, tap.layers).item() == pytest.approx(0, abs=1e-6)
    y = x.clone().requires_grad_()
    with tap:
        layer(y)
    batch_norm_statistics(tap.statistics, [layer_with(*(s.tolist() for s in tap.statistics[0]))]).backward()
    assert grad(y).isfinite().all()


def test_tap_follows_the_order_of_execution_and_keeps_the_last_pass_only() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.BatchNorm2d(2)
            self.unused = nn.BatchNorm2d(2)
            self.first = nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.second(self.first(x))
            return y

    net = Backwards().eval()
    with BatchNormTap(net) as tap:
        net(torch.randn(2, 2, 3, 3))
        net(torch.full((2, 2, 3, 3), 5.0))
    assert tap.layers == [net.first, net.second]
    torch.testing.assert_close(tap.statistics[0][0], torch.full((2,), 5.0))


def test_tap_leaves_no_hook_behind_even_after_an_error() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    tap = BatchNormTap(net)
    with tap:
        assert all(len(m._forward_pre_hooks) == 1 for m in net)
    assert not any(m._forward_pre_hooks for m in net)
    with pytest.raises(ValueError, match="expected 4D input"), tap:
        net(torch.zeros(2, 2))
    assert not any(m._forward_pre_hooks for m in net)
    taken = len(tap.statistics)
    net(torch.randn(2, 2, 3, 3))
    assert len(tap.statistics) == taken == 1
    with tap:
        assert tap.statistics == []
        with pytest.raises(RuntimeError, match="already entered"):
            tap.__enter__()


def test_a_net_without_batch_norm_is_an_error_and_not_a_silent_zero() -> None:
    for net in (nn.Conv2d(1, 1, 1), nn.BatchNorm2d(2, track_running_stats=False)):
        with pytest.raises(ValueError, match="nothing to match"):
            BatchNormTap(net)
    with pytest.raises(ValueError, match="at least one BatchNorm"):
        batch_norm_statistics([], [])
    one = (torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="2 for 1 layers"):
        batch_norm_statistics([one, one], [layer_with([0, 0], [1, 1])])
    with pytest.raises(ValueError, match="and 0 averages"):
        batch_norm_statistics([one], [layer_with([0, 0], [1, 1])], ema=[])


def test_batch_norm_statistics_are_taken_in_fp32() -> None:
    layer = layer_with([0.0], [1.0])
    x = torch.full((64, 1, 8, 8), 100.0).bfloat16()
    with BatchNormTap(layer) as tap:
        layer.bfloat16()(x)
    assert tap.statistics[0][0].dtype == torch.float32
    assert tap.statistics[0][0].item() == 100


# Pixels and pairs


def test_total_variation_closed_form() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).reshape(1, 1, 2, 2)
    assert total_variation(x, norm="l1").item() == pytest.approx(7)
    assert total_variation(x).item() == pytest.approx(8.242641, abs=1e-6)
    with pytest.raises(ValueError, match="l2 or l1"):
        total_variation(x, norm="l0")  # type: ignore[arg-type]


def test_total_variation_equals_a_loop_and_grows_with_the_root_of_the_batch() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 5)
    squares, means = [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        gaps = [
            (x[n, c, i + dy, j + dx] - x[n, c, i, j]).item()
            for n in range(3)
            for c in range(2)
            for i in range(4 - dy)
            for j in range(5)
            if 0 <= j + dx < 5
        ]
        squares.append(math.sqrt(sum(g * g for g in gaps)))
        means.append(sum(abs(g) for g in gaps) / len(gaps))
    assert total_variation(x).item() == pytest.approx(sum(squares), rel=1e-5)
    assert total_variation(x, norm="l1").item() == pytest.approx(sum(means), rel=1e-5)
    torch.testing.assert_close(total_variation(torch.cat([x] * 4)), 2 * total_variation(x))


def test_norms_of_a_constant_image_have_a_finite_gradient() -> None:
    x = torch.zeros(2, 1, 4, 4, requires_grad=True)
    (total_variation(x) + l2_norm(x)).backward()
    assert not grad(x).any()


def test_l2_norm_is_of_the_whole_batch() -> None:
    assert l2_norm(torch.full((4, 1, 2, 2), 3.0)).item() == pytest.approx(12)


def test_mode_seeking_closed_form() -> None:
    x = torch.cat([torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), -2.0)])
    z = torch.cat([torch.zeros(2, 5), torch.full((2, 5), 4.0)])
    assert mode_seeking(x, z).item() == pytest.approx(1.99996, abs=1e-5)


def test_mode_seeking_equals_a_loop_and_refuses_what_has_no_halves() -> None:
    torch.manual_seed(0)
    x, z = torch.randn(6, 1, 2, 2), torch.randn(6, 3)

    def gap(t: torch.Tensor) -> float:
        rows = t.flatten(1).tolist()
        pairs = [(a, b) for r, s in zip(rows[:3], rows[3:], strict=True) for a, b in zip(r, s, strict=True)]
        return sum(abs(a - b) for a, b in pairs) / len(pairs)

    assert mode_seeking(x, z).item() == pytest.approx(1 / (gap(x) / gap(z) + 1e-5), rel=1e-5)
    for images, latents in ((x[:5], z[:5]), (x, z[:4]), (x[:0], z[:0])):
        with pytest.raises(ValueError, match="two halves"):
            mode_seeking(images, latents)


def test_diversity_closed_form() -> None:
    x1, p1 = torch.zeros(2, 1, 2, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    x2, p2 = torch.ones(2, 1, 2, 2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert teacher_ratio_diversity(x1, x2, p1, p2).item() == pytest.approx(0.5)
    assert teacher_ratio_diversity(x1, x2 * 2, p1, p2).item() == pytest.approx(0.25)


def test_diversity_equals_the_authors_form_where_that_one_is_defined() -> None:
    torch.manual_seed(0)
    x1, x2 = torch.randn(2, 4, 1, 3, 3)
    p1, p2 = torch.randn(2, 4, 5).softmax(-1)
    dx = math.sqrt(sum((a - b) ** 2 for a, b in zip(x1.flatten().tolist(), x2.flatten().tolist(), strict=True)))
    dp = math.sqrt(sum((a - b) ** 2 for a, b in zip(p1.flatten().tolist(), p2.flatten().tolist(), strict=True)))
    assert teacher_ratio_diversity(x1, x2, p1, p2).item() == pytest.approx(1 / (dx / dp + 1e-20), rel=1e-5)


@pytest.mark.parametrize(("images", "answers"), [("same", "other"), ("other", "same"), ("same", "same")])
def test_diversity_is_finite_with_its_gradient_where_pairs_coincide(images: str, answers: str) -> None:
    x1 = torch.zeros(2, 1, 2, 2, requires_grad=True)
    p1 = torch.tensor([[1.0, 0.0]] * 2, requires_grad=True)
    x2 = torch.zeros(2, 1, 2, 2) if images == "same" else torch.ones(2, 1, 2, 2)
    p2 = p1.detach().clone() if answers == "same" else torch.tensor([[0.0, 1.0]] * 2)
    loss = teacher_ratio_diversity(x1, x2, p1, p2)
    loss.backward()
    assert loss.isfinite()
    assert (loss == 0) == (answers == "same")
    for tensor in (x1, p1):
        assert grad(tensor).isfinite().all()


# Sums of terms


@pytest.mark.parametrize(
    ("value", "anchor", "expected"),
    [(1.3, 1.3, 1.0), (0.5, 1.0, 0.606531), (2.0, 1.0, 2.718282), (2.3, 0.0, 9.974182)],
)
def test_exponential_increment_closed_form(value: float, anchor: float, expected: float) -> None:
    increment = ExponentialIncrement(["oh"])
    increment.anchors.fill_(anchor)
    assert increment({"oh": torch.tensor(value)}, 0).item() == pytest.approx(expected, abs=1e-5)


def test_exponential_increment_weighs_each_gradient_by_its_value() -> None:
    increment = ExponentialIncrement(["oh", "ie"], anchor_at=0)
    increment({"oh": torch.tensor(1.0), "ie": torch.tensor(-2.0)}, 0)
    oh, ie = torch.tensor(1.7, requires_grad=True), torch.tensor(-2.5, requires_grad=True)
    loss = increment({"ie": ie, "oh": oh}, 1)
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(0.7) + math.exp(-0.5), rel=1e-5)
    assert grad(oh).item() == pytest.approx(math.exp(0.7), rel=1e-5)
    assert grad(ie).item() == pytest.approx(math.exp(-0.5), rel=1e-5)
    assert not increment.anchors.requires_grad


def test_one_exponential_keeps_its_argmin_and_a_sum_of_several_moves_it() -> None:
    w = torch.linspace(-2, 2, 401)
    oh, ie = (w - 1).square(), 2 * (w + 1).square()

    def least(**terms: torch.Tensor) -> float:
        values = zip(*terms.values(), strict=True)
        increment = ExponentialIncrement(list(terms), anchor_every=1000, anchor_at=999)
        losses = [increment(dict(zip(terms, each, strict=True)), 0) for each in values]
        return w[torch.stack(losses).argmin()].item()

    assert least(oh=oh) == w[oh.argmin()].item()
    assert least(ie=ie) == w[ie.argmin()].item()
    assert abs(least(oh=oh, ie=ie) - w[(oh + ie).argmin()].item()) > 0.05


def test_anchors_move_at_their_steps_after_the_loss_and_start_at_zero() -> None:
    increment = ExponentialIncrement(["oh"])
    moved = []
    for step in range(361):
        before = increment.anchors.clone()
        value = torch.tensor(float(step + 1) / 100)
        loss = increment({"oh": value}, step)
        assert loss.item() == pytest.approx(math.exp(value.item() - before.item()), rel=1e-5)
        if not torch.equal(before, increment.anchors):
            moved.append(step)
            assert increment.anchors.item() == value.item()
    assert moved == [1, 121, 241]


def test_anchors_resume_with_the_checkpoint() -> None:
    source, target = ExponentialIncrement(["oh"], anchor_at=0), ExponentialIncrement(["oh"])
    source({"oh": torch.tensor(1.25)}, 0)
    target.load_state_dict(source.state_dict())
    assert target.anchors.item() == 1.25


def test_an_increment_beyond_the_limit_stays_finite_and_keeps_pulling() -> None:
    value = torch.tensor(500.0, requires_grad=True)
    loss = ExponentialIncrement(["oh"])({"oh": value}, 0)
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(20), rel=1e-5)
    assert grad(value).item() == pytest.approx(math.exp(20), rel=1e-5)


def test_exponential_increment_computes_in_fp32_and_names_what_does_not_fit() -> None:
    increment = ExponentialIncrement(["oh", "ie"])
    half = {"oh": torch.tensor(15.0).half(), "ie": torch.tensor(0.0).half()}
    assert increment(half, 0).item() == pytest.approx(math.exp(15) + 1, rel=1e-5)
    with pytest.raises(ValueError, match=r"\['ie', 'oh'\], got \['oh'\]"):
        increment({"oh": torch.tensor(0.0)}, 0)
    with pytest.raises(ValueError, match=r"0\.\.9, got 10"):
        ExponentialIncrement(["oh"], anchor_every=10, anchor_at=10)


def test_weighted_sum() -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    loss = weighted_sum({"a": a, "b": b}, {"a": 0.5, "b": -2.0, "absent": 0.0})
    loss.backward()
    assert loss.item() == -5
    assert (grad(a).item(), grad(b).item()) == (0.5, -2)


def test_weighted_sum_refuses_a_misspelt_name() -> None:
    with pytest.raises(ValueError, match=r"no weight for \['acts'\], no term for \['act'\]"):
        weighted_sum({"acts": torch.tensor(1.0)}, {"act": 1.0})
    with pytest.raises(ValueError, match="terms and weights differ"):
        weighted_sum({}, {})
