"""A classifier's body with a head for regression."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.networks import head_of


class Regressor(nn.Module):
    """A network of this package, torchvision or timm with its head replaced: (N,C,H,W) -> (N,1).

    The head of cGAN-KD's regression networks (Ding et al. 2023): linear layers with BatchNorm and ReLU, then one output
    with ReLU. That output is a place in the range of the labels, see `tasks.Regression`.

    Deviation: the authors' last bias is 0, with which the ReLU may output 0 on every image from the start and never
    learn; here it starts at `start`.

    Args:
        net: a network with a head that `networks.head_of` finds, of any number of outputs.
        hidden: widths of the linear layers.
        relu: whether a ReLU follows the last linear layer.
        start: initial output for every image: the mean of the labels' places.

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
            raise ValueError(f"the head of {type(net).__name__}, {path}, has no linear layer to replace")
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
