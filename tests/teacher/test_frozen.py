"""A frozen teacher whose batch norms are folded answers the same, and shows hooks what they ask for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.core.feature_hooks import capture
from kd_lightning.errors import TeacherError
from kd_lightning.losses.batch_norm import BatchNormTap
from kd_lightning.networks.classifiers.lenet import LeNet5
from kd_lightning.networks.classifiers.resnet import CifarResNet
from kd_lightning.networks.classifiers.wide_resnet import WideResNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.teachers.white_box import FrozenTeacher

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "post-activation": lambda: CifarResNet(depth=8, num_classes=5),
    "pre-activation": lambda: WideResNet(depth=10, widen=1, num_classes=5),
}


def trained(net: nn.Module) -> Normalized:
    """With running statistics and weights of batch norm as training leaves them, unlike 0 and 1."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return Normalized(net, mean=[0.4] * 3, std=[0.2] * 3)


@pytest.fixture(params=NETWORKS)
def pair(request: pytest.FixtureRequest) -> tuple[FrozenTeacher, FrozenTeacher]:
    """A teacher as it is, and folded, in double precision."""
    torch.manual_seed(0)
    net = trained(NETWORKS[request.param]()).double()
    plain, folded = FrozenTeacher(copy.deepcopy(net)), FrozenTeacher(net)
    folded.fold_batchnorm()
    return plain, folded


def spoil(teacher: FrozenTeacher) -> None:
    """Change what only the network itself has, so that one sees who answers."""
    norms = [module for module in teacher._only_in_net if isinstance(module, _BatchNorm)]
    assert norms
    for norm in norms:
        norm.bias.add_(1.0)


def test_a_folded_teacher_gives_the_same_answers_and_the_same_gradients(
    pair: tuple[FrozenTeacher, FrozenTeacher],
) -> None:
    plain, folded = pair
    x = torch.rand(3, 3, 32, 32, dtype=torch.double, requires_grad=True)
    want, got = plain(x), folded(x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(answers.square().sum(), x)[0] for answers in (want, got)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)
    spoil(folded)
    torch.testing.assert_close(folded(x), got)  # its batch norms take no part any more
    assert (plain.asked, folded.asked) == (3, 6)


def test_whoever_looks_inside_sees_the_network_itself(pair: tuple[FrozenTeacher, FrozenTeacher]) -> None:
    plain, folded = pair
    x = torch.rand(2, 3, 32, 32, dtype=torch.double)
    before = folded(x)
    with BatchNormTap(plain.net) as wanted, BatchNormTap(folded.net) as tap:
        plain(x), folded(x)
    for want, got in zip(wanted.statistics, tap.statistics, strict=True):
        torch.testing.assert_close(got, want)
    spoil(folded)
    norms = [path for path, module in folded.net.named_modules() if isinstance(module, _BatchNorm)]
    path = next(path for path in norms if folded.net.get_submodule(path) in folded._only_in_net)
    with capture(folded.net, outputs=(path,)) as taps:
        seen = folded(x)
    assert path in taps
    assert not torch.allclose(seen, before)
    torch.testing.assert_close(folded(x), before)


def test_what_enters_a_shared_layer_is_seen_without_unfolding() -> None:
    teacher = FrozenTeacher(trained(CifarResNet(depth=8, num_classes=5)))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), capture(teacher.net, inputs=("net.head",)) as taps:
        before = teacher(x)
        want = taps["net.head"]
        teacher.fold_batchnorm()
        spoil(teacher)
        taps.clear()
        torch.testing.assert_close(teacher(x), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(taps["net.head"], want, rtol=1e-4, atol=1e-4)


def test_a_folded_teacher_moves_and_owns_nothing() -> None:
    teacher = FrozenTeacher(trained(WideResNet(depth=10, widen=1, num_classes=5)))
    teacher.fold_batchnorm()
    assert not list(teacher.parameters())
    assert not teacher.state_dict()
    with torch.inference_mode():
        teacher.double().to(memory_format=torch.channels_last)
        assert teacher(torch.rand(2, 3, 32, 32, dtype=torch.double)).dtype == torch.double
    assert all(not p.requires_grad for net in teacher._held for p in net.parameters())


class Branches(nn.Module):
    """Looks at the values of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3)."""
        return self.norm(x if x.sum() > 0 else -x).mean((2, 3))  # type: ignore[no-any-return]


def test_a_network_that_cannot_be_traced_is_named_and_one_without_batch_norm_is_left_alone() -> None:
    with pytest.raises(TeacherError, match=r"cannot trace Branches: .*control flow\. Type fold_batchnorm=false"):
        FrozenTeacher(trained(Branches())).fold_batchnorm()
    teacher = FrozenTeacher(LeNet5())
    teacher.fold_batchnorm()
    assert len(teacher._held) == 1


def test_a_folded_run_gives_the_same_numbers_by_a_fit_of_its_own(
    tiny: Callable[..., Outcome], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[FrozenTeacher] = []
    fold = FrozenTeacher.fold_batchnorm
    monkeypatch.setattr(FrozenTeacher, "fold_batchnorm", lambda self: (calls.append(self), fold(self))[1])
    as_written = tiny("method=kd", "teacher.net.batch_norm=true")
    fits = len(list(store.glob("fit-*")))
    assert not calls
    folded = tiny("method=kd", "teacher.net.batch_norm=true", "fold_batchnorm=true")
    assert len(list(store.glob("fit-*"))) == 2 * fits
    assert (as_written["fold_batchnorm"], folded["fold_batchnorm"]) == (False, True)
    assert folded["metrics"] == pytest.approx(as_written["metrics"], abs=0.02)
    assert calls
