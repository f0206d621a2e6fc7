from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_resnet50, lraspp_mobilenet_v3_large

from kd_lightning.networks.generators.dcgan import GeneratorB
from kd_lightning.networks.segmenters.deeplab import DeepLab
from kd_lightning.networks.segmenters.encoder_decoder import EncoderDecoder
from kd_lightning.networks.segmenters.lraspp import LrAspp
from kd_lightning.networks.segmenters.small import SmallSegmenter

STUDENT = {"num_classes": 11, "backbone": "mobilenet_v2", "rates": (12, 24, 32)}
TEACHER = {"num_classes": 11, "rates": (12, 24, 32), "dropout": 0.0}


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def counted(net: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Multiply-adds of all convolutions, and values that pass a batch norm; nothing is computed."""
    total = [0, 0]

    def note(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            total[0] += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.BatchNorm2d):
            total[1] += output.numel()

    for module in net.modules():
        module.register_forward_hook(note)
    net(torch.zeros(1, 3, height, width, device="meta"))
    return total[0], total[1]


@pytest.mark.parametrize(
    ("settings", "size", "convolutions", "norms", "printed"),
    [(STUDENT, 5_111_307, 5_447_492_608, 24_202_752, 5.54), (TEACHER, 39_636_299, 40_892_628_992, 34_472_192, 41.0)],
    ids=["student", "teacher"],
)
def test_dfads_networks_have_the_authors_count(settings, size, convolutions, norms, printed) -> None:
    with torch.device("meta"):
        net = DeepLab(**settings).eval()
    assert parameters(net) == size
    assert counted(net, 256, 256) == (convolutions, norms)
    # the authors' table also counts two multiplications and two additions of each batch norm
    assert round((convolutions + 4 * norms) / 1e9, 2 if printed < 10 else 1) == printed


def test_the_students_blocks_dilate_from_an_eighth_of_the_image_on() -> None:
    net = DeepLab(**STUDENT).eval()
    blocks = [m for m in net.backbone.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [m.dilation[0] for m in blocks] == [1] * 10 + [2] * 6 + [4]
    assert [m.stride[0] for m in blocks] == [1, 2, 1, 2, *[1] * 13]
    with torch.no_grad():
        assert net.backbone(torch.rand(1, 3, 64, 48))["out"].shape == (1, 320, 8, 6)


def test_a_block_pads_before_its_first_convolution() -> None:
    torch.manual_seed(0)
    block = DeepLab(**STUDENT).eval().backbone["12"]  # dilation 2, residual
    expand, depthwise, project, norm = block.conv
    for m in block.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.bias)
    x = torch.randn(2, 96, 6, 5)
    with torch.no_grad():
        plain = F.conv2d(expand(x), depthwise[0].weight, padding=2, dilation=2, groups=depthwise[0].groups)
        wide = F.conv2d(expand(F.pad(x, (2,) * 4)), depthwise[0].weight, dilation=2, groups=depthwise[0].groups)
        rest = [x + norm(project(depthwise[2](depthwise[1](y)))) for y in (wide, plain)]
        torch.testing.assert_close(block(x), rest[0])
        assert not torch.allclose(block(x), rest[1], atol=1e-2)


@pytest.mark.parametrize("name", ["deeplab", "lraspp"])
def test_torchvisions_weights_fit_and_give_its_output(name) -> None:
    torch.manual_seed(0)
    build = {"deeplab": deeplabv3_resnet50, "lraspp": lraspp_mobilenet_v3_large}[name]
    theirs = build(weights=None, weights_backbone=None, num_classes=5).eval()
    ours = (DeepLab(num_classes=5) if name == "deeplab" else LrAspp(num_classes=5)).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    assert all(key.startswith("backbone.fc") for key in unexpected)
    x = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x)["out"])


@pytest.mark.parametrize(
    "build", [lambda: DeepLab(**STUDENT), lambda: LrAspp(num_classes=11)], ids=["deeplab", "lraspp"]
)
def test_published_networks_take_any_height_and_width(build) -> None:
    with torch.no_grad():
        assert build().eval()(torch.rand(1, 3, 45, 33)).shape == (1, 11, 45, 33)


def test_dropout_is_in_the_students_head_and_active_while_it_trains() -> None:
    torch.manual_seed(0)
    head = DeepLab(**STUDENT).classifier
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [0.5]
    assert [m.p for m in DeepLab(**TEACHER).classifier.modules() if isinstance(m, nn.Dropout)] == [0.0]
    x = torch.randn(2, 320, 4, 4)
    with torch.no_grad():
        assert not torch.equal(head.train()(x), head(x))
        assert torch.equal(head.eval()(x), head(x))


@pytest.mark.parametrize("size", [(7, 5), (32, 32), (17, 40)])
@pytest.mark.parametrize(
    "make",
    [partial(EncoderDecoder, widths=(4, 6, 8), dropout=0.5), partial(SmallSegmenter, widths=(4, 6, 8, 8, 8))],
    ids=["encoder_decoder", "small_segmenter"],
)
def test_small_networks_take_odd_sizes_and_see_all_of_their_maps(make, size) -> None:
    torch.manual_seed(0)
    net = make(num_classes=4, in_channels=1)
    y = net(torch.rand(2, 1, *size))
    assert y.shape == (2, 4, *size)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def encoder_decoder_count(widths, classes: int) -> int:
    down = sum(9 * a * b + 2 * b for a, b in zip((3, *widths), widths, strict=False))
    up = sum(9 * (a + b) * a + 2 * a for a, b in pairwise(widths))
    return down + up + (widths[0] + 1) * classes


def test_the_small_encoder_decoders_size() -> None:
    assert parameters(EncoderDecoder(num_classes=11)) == encoder_decoder_count((16, 32, 64), 11) == 58_539
    with pytest.raises(ValueError, match="at least one width"):
        EncoderDecoder(num_classes=11, widths=())


def reference_b(latent: int, channels: int, start: tuple[int, int], ngf: int) -> tuple[nn.Linear, nn.Sequential]:
    """Generator B of DFAD, layer by layer."""
    layers: list[nn.Module] = [nn.BatchNorm2d(8 * ngf)]
    for a, b in ((8, 4), (4, 2), (2, 1), (1, 1)):
        layers += [nn.ConvTranspose2d(a * ngf, b * ngf, 4, 2, 1, bias=False), nn.BatchNorm2d(b * ngf)]
        layers += [nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(ngf, channels, 3, padding=1), nn.Tanh()]
    return nn.Linear(latent, 8 * ngf * start[0] * start[1]), nn.Sequential(*layers)


def test_generator_b_equals_the_papers_layers_in_data_units_for_any_shape() -> None:
    torch.manual_seed(0)
    net = GeneratorB(latent=5, channels=3, size=(32, 48), ngf=2)
    linear, rest = reference_b(5, 3, (2, 3), 2)
    with torch.no_grad():
        values = iter(net.parameters())
        for p in (*linear.parameters(), *rest.parameters()):
            p.copy_(torch.nn.init.normal_(next(values)))
    z = torch.randn(4, 5)
    x = net(z)
    assert x.shape == (4, 3, 32, 48)
    torch.testing.assert_close(x, (rest(linear(z).view(4, 16, 2, 3)) + 1) / 2)
    assert 0 <= x.min() < 0.1 < 0.9 < x.max() <= 1


def test_generator_b_has_the_papers_size_and_first_weights() -> None:
    torch.manual_seed(0)
    net = GeneratorB()
    convolutions = 16 * 64 * 64 * (8 * 4 + 4 * 2 + 2 + 1)
    assert parameters(net) == 257 * 8**2 * 512 + 2 * 64 * (8 + 4 + 2 + 1 + 1) + convolutions + (9 * 64 + 1) * 3
    assert net.project.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert not net.project.bias.any()
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("size", [24, 0, (32, 40)])
def test_generator_b_refuses_sizes_that_it_cannot_double_to(size) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        GeneratorB(size=size)
