import pytest
import torch

from kd_lightning.losses.moments import mean_var

SHAPES = [(6, 3), (5, 3, 4), (4, 3, 5, 2), (2, 3, 2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_var_mean(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (100 + torch.randn(shape, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(2, 3, dtype=torch.float64)
    var, mean = torch.var_mean(x, dim=[d for d in range(x.ndim) if d != 1], correction=0)
    torch.testing.assert_close(mean_var(x), (mean, var))
    (wanted,) = torch.autograd.grad((weights * torch.stack([mean, var])).sum(), x)
    (got,) = torch.autograd.grad((weights * torch.stack(mean_var(x))).sum(), x)
    torch.testing.assert_close(got, wanted)
    assert torch.autograd.gradcheck(mean_var, x)


def test_any_layout_and_channels_far_from_zero() -> None:
    torch.manual_seed(0)
    x = 1000 + torch.randn(64, 3, 8, 8)
    var, mean = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    for view in (x, x.to(memory_format=torch.channels_last), x.mT):
        found_mean, found_var = mean_var(view)
        torch.testing.assert_close(found_mean.double(), mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(found_var.double(), var, rtol=1e-3, atol=0)
