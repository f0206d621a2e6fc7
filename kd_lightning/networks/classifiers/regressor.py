"""A classifier's body under a head that says a number."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.networks import head_of


class Regressor(nn.Module):
    """Any network of ours, torchvision's or timm's with its head replaced: (N,C,H,W) -> (N,1).

    The head of cGAN-KD's regression networks (Ding et al. 2023): linear layers with BatchNorm and ReLU, then one output
    that a ReLU keeps from going below 0. That output is a place in the range of the labels, see `tasks.Regression`.
    With ReLU and a last bias of 0, as their code has it, an unlucky start says 0 to all images and learns no more:
    here it begins by saying `start`.

    Args:
        net: a network with a head that `networks.head_of` finds, whatever that says.
        hidden: widths of the linear layers.
        relu: whether the output ends in ReLU; without, it is what the last linear layer says.
        start: what it says to all images at first: the mean of the labels' places.

    Raises:
        ValueError: the head of `net` has no linear layer.
    """

    needs = frozenset({"task.regression"})

    def __init__(
        self, net: nn.Module, *, hidden: Sequence[int] = (512, 512), relu: bool = True, start: float = 0.5
    ) -> None:
        super().__init__()
        path = head_of(net)
        linear = next((m for m in net.get_submodule(path).modules() if isinstance(m, nn.Linear)), None)
        if linear is None:
            raise ValueError(f"the head of {type(net).__name__}, {path}, got no linear layer to replace")
        layers: list[nn.Module] = []
        inputs = linear.in_features
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
            inputs = width
        last = nn.Linear(inputs, 1)
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.constant_(last.bias, start)
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, nn.Sequential(*layers, last))
        self.net, self.relu = net, relu

    def forward(self, x: Tensor) -> Tensor:
        """Places (N,1) in the range of the labels."""
        place: Tensor = self.net(x)
        return F.relu(place) if self.relu else place
