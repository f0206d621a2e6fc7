"""Files in the layouts that others publish are read name by name; what does not fit is named and nothing is loaded."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.errors import TeacherError
from kd_lightning.networks.generators import biggan_deep, tiny_gan
from kd_lightning.networks.generators.cgn_imagenet import ImageNetCgn
from kd_lightning.networks.generators.u2net import U2Net
from kd_lightning.networks.pretrained import (
    cgn_mnist_names,
    load_biggan_deep,
    load_tiny_gan,
    load_u2net,
)
from kd_lightning.networks.weights import load_weights

Named = dict[str, Tensor]
STEPS = ((False, 16, 8), (True, 8, 4), (True, 4, 2), (False, 2, 1))


@cache
def built(kind: Callable[..., nn.Module], seed: int, **settings: Any) -> nn.Module:
    """One network for each seed, for they are long in the making."""
    return kind(**settings)


def biggan(seed: int) -> Any:
    small: dict[str, Any] = {"size": 16, "num_classes": 10, "latent": 4, "ch": 4, "layers": STEPS, "attention": 2}
    return shaken(built(biggan_deep.BigGanDeepGenerator, seed, **small), seed)


def u2net(seed: int, mids: int = 2) -> Any:
    return shaken(built(U2Net, seed, mids=mids, outs=3), seed)


def shaken(net: nn.Module, seed: int) -> Any:
    """Every value is drawn, buffers too, so that whatever is not loaded differs."""
    torch.manual_seed(seed)
    for value in net.state_dict().values():
        value.copy_(torch.rand(value.shape) + 0.1) if value.is_floating_point() else value.random_(1, 1000)
    return net.eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def unchanged(now: Named, before: Named) -> bool:
    return all(torch.equal(now[name], value) for name, value in before.items())


def spectral(layer: Any) -> Named:
    """As PyTorch used to name what spectral norm holds."""
    held = layer.parametrizations.weight
    found = {"weight_orig": held.original, "weight_u": held[0]._u, "weight_v": held[0]._v}
    return found if getattr(layer, "bias", None) is None else found | {"bias": layer.bias}


def under(prefix: str, named: Named) -> Named:
    return {f"{prefix}.{name}": value.detach().clone() for name, value in named.items()}


def huggingface(net: Any) -> Named:
    """A BigGAN-deep as its file has it."""
    found = under("embeddings", {"weight": net.embeddings.weight})
    found |= under("generator.gen_z", spectral(net.gen_z)) | under("generator.conv_to_rgb", spectral(net.conv_to_rgb))
    tables = {"running_means": net.bn.running_means, "running_vars": net.bn.running_vars}
    found |= under("generator.bn", {"weight": net.weight, "bias": net.bias} | tables)
    for i, layer in enumerate(net.layers):
        prefix = f"generator.layers.{i}"
        if i == 2:
            for theirs, ours in (("theta", layer.query), ("phi", layer.key), ("g", layer.value), ("o_conv", layer.out)):
                found |= under(f"{prefix}.snconv1x1_{theirs}", spectral(ours))
            found |= under(prefix, {"gamma": layer.scale.reshape(1)})
            continue
        for j in range(4):
            norm = layer.norms[j]
            tables = {
                "running_means": norm.statistics.running_means,
                "running_vars": norm.statistics.running_vars,
            }
            found |= under(f"{prefix}.bn_{j}", tables) | under(f"{prefix}.conv_{j}", spectral(layer.convs[j]))
            found |= under(f"{prefix}.bn_{j}.scale", spectral(norm.scale))
            found |= under(f"{prefix}.bn_{j}.offset", spectral(norm.offset))
    return found


def authors(net: U2Net) -> Named:
    """A U2-Net as its file has it."""
    found = under("outconv", net.outconv.state_dict())
    for i in range(6):
        found |= under(f"side{i + 1}", net.sides[i].state_dict())
    stages = {f"stage{i + 1}": stage for i, stage in enumerate(net.encoder)}
    for name, stage in {**stages, **{f"stage{5 - i}d": stage for i, stage in enumerate(net.decoder)}}.items():
        convs: dict[str, Any] = {"in": stage.enter}
        depth = {"1": 7, "2": 6, "3": 5}.get(name[5], 4)
        convs |= {f"{k}": stage.down[k - 1] for k in range(1, depth + 1)}
        convs |= {f"{k}d": stage.up[depth - 1 - k] for k in range(1, depth)}
        for which, conv in convs.items():
            found |= under(f"{name}.rebnconv{which}.conv_s1", conv[0].state_dict())
            found |= under(f"{name}.rebnconv{which}.bn_s1", conv[1].state_dict())
    return found


def cgn_file() -> tuple[Named, dict[str, Any]]:
    """A CGN for ImageNet, and the networks that it is made of."""
    parts: dict[str, Any] = {"biggan_GT": biggan(1), "f_shape": biggan(2), "f_text": biggan(3), "f_bg": biggan(4)}
    found = {k: v for name, net in parts.items() for k, v in under(name, huggingface(net)).items()}
    parts["u2net"] = u2net(5)
    return found | under("u2net", authors(parts["u2net"])), parts


class Reference(nn.Module):
    """The indices of CGN's layers on MNIST; Identity where the authors have one that holds nothing."""

    def __init__(self, ngf: int = 3) -> None:
        super().__init__()
        no = nn.Identity
        norm, conv = nn.BatchNorm2d, partial(nn.Conv2d, kernel_size=3, padding=1)
        wide = 2 * ngf
        self.label_emb = nn.Embedding(10, 10)
        self.f_shape = nn.Sequential(
            *(nn.Linear(14, wide * 64), no(), no(), no(), conv(wide, ngf, bias=False), norm(ngf), no(), no(), no()),
            *(conv(ngf, 1, bias=False), norm(1), no(), no()),
        )
        texture: Callable[[], nn.Module] = lambda: nn.Sequential(  # noqa: E731
            *(nn.Linear(14, wide * 64), no(), no(), conv(wide, wide, bias=False), norm(wide), no(), no()),
            *(conv(wide, ngf, bias=False), norm(ngf), no(), conv(ngf, 3), norm(3), no()),
        )
        self.f_text1, self.f_text2 = texture(), texture()


class Ours(nn.Module):
    """The same layers at other indices, some of them a level deeper."""

    @property
    def published(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in cgn_mnist_names(self).items()}

    def __init__(self, ngf: int = 3) -> None:
        super().__init__()
        theirs = Reference(ngf)
        self.label_emb = theirs.label_emb
        for part, net in (("bg", theirs.f_text2), ("fg", theirs.f_text1), ("shape", theirs.f_shape)):
            held = [layer for layer in net if not isinstance(layer, nn.Identity)]
            setattr(self, part, nn.Sequential(held[0], nn.Tanh(), nn.Sequential(nn.ReLU(), *held[1:3]), *held[3:]))


def test_biggan_deep(tmp_path: Path) -> None:
    theirs, ours = biggan(0), biggan(1)
    named = huggingface(theirs)
    assert len(named) == len(theirs.state_dict()) == 218
    torch.save(OrderedDict((f"module.{name}", value) for name, value in named.items()), tmp_path / "biggan.bin")
    assert not same(ours, theirs)
    load_biggan_deep(ours, tmp_path / "biggan.bin")
    assert same(ours, theirs)
    z, y = torch.randn(2, 4), torch.tensor([3, 8])
    torch.testing.assert_close(ours(z, y, 0.44), theirs(z, y, 0.44))


def test_vectors_of_spectral_norm_are_loaded_not_estimated(tmp_path: Path) -> None:
    net = biggan(0)
    named = huggingface(net)
    for prefix in ("generator.gen_z", "generator.layers.0.conv_1", "generator.layers.2.snconv1x1_theta"):
        for which in ("u", "v"):  # far from the leading pair
            vector = named[f"{prefix}.weight_{which}"]
            vector.copy_(F.normalize(torch.randn(vector.shape), dim=0))
    torch.save(named, tmp_path / "biggan.bin")
    ours = biggan(1)
    load_biggan_deep(ours, tmp_path / "biggan.bin")
    attention: Any = ours.layers[2]
    for prefix, layer in (
        ("generator.gen_z", ours.gen_z),
        ("generator.layers.0.conv_1", ours.layers[0].convs[1]),  # type: ignore[index, union-attr]
        ("generator.layers.2.snconv1x1_theta", attention.query),
    ):
        weight, u, v = (named[f"{prefix}.weight_{which}"] for which in ("orig", "u", "v"))
        torch.testing.assert_close(layer.weight, weight / (u @ weight.flatten(1) @ v), rtol=1e-4, atol=0)


def test_u2net(tmp_path: Path) -> None:
    theirs, ours = u2net(0), u2net(1)
    named = authors(theirs)
    assert len(named) == 798
    torch.save(named, tmp_path / "u2net.pth")
    load_u2net(ours, tmp_path / "u2net.pth")
    assert same(ours, theirs)


def test_a_u2net_of_another_size_is_told_by_its_shapes(tmp_path: Path) -> None:
    torch.save(authors(u2net(0, mids=3)), tmp_path / "u2netp.pth")
    ours, before = u2net(1), authors(u2net(1))
    with pytest.raises(TeacherError) as refusal:
        load_u2net(ours, tmp_path / "u2netp.pth")
    said = str(refusal.value)
    assert "stage1.rebnconv1.conv_s1.weight: shape (3, 3, 3, 3), the network has (2, 3, 3, 3)" in said
    assert "All names match: these are weights of another part, or of another size" in said
    assert unchanged(authors(ours), before)


def cgn(seed: int) -> ImageNetCgn:
    shape, text, behind = (copy.deepcopy(biggan(seed + i)) for i in range(3))
    return ImageNetCgn(f_shape=shape, f_text=text, f_bg=behind, u2net=copy.deepcopy(u2net(seed)))


def test_cgn_for_imagenet(tmp_path: Path) -> None:
    named, theirs = cgn_file()
    torch.save(named, tmp_path / "cgn.pth")
    ours = cgn(6)
    load_weights(ours, tmp_path / "cgn.pth")
    for part in ("f_shape", "f_text", "f_bg", "u2net"):
        assert same(ours.get_submodule(part), theirs[part])
    save_file(ours.state_dict(), tmp_path / "generator.safetensors")
    again = cgn(0)
    load_weights(again, tmp_path / "generator.safetensors")
    assert same(again, ours), "a file of ours, too"


def test_of_a_cgn_for_imagenet_all_parts_are_loaded_or_none(tmp_path: Path) -> None:
    named, _ = cgn_file()
    del named["u2net.side3.bias"]
    named["f_extra.weight"] = torch.zeros(1)
    torch.save(named, tmp_path / "cgn.pth")
    ours = cgn(0)
    before = huggingface(biggan(0))
    with pytest.raises(TeacherError, match=r"(?s)u2net\.sides\.2\.bias: missing.*f_extra\.weight: not in the network"):
        load_weights(ours, tmp_path / "cgn.pth")
    assert unchanged(huggingface(ours.f_shape), before)


def test_cgn_for_mnist(tmp_path: Path) -> None:
    theirs, ours = shaken(Reference(), 0), Ours()
    assert len(theirs.state_dict()) == 57
    torch.save(theirs.state_dict(), tmp_path / "ckp.pth")
    load_weights(ours, tmp_path / "ckp.pth")
    assert torch.equal(ours.label_emb.weight, theirs.label_emb.weight)
    x = torch.rand(2, 14)
    for part, their_part in (("shape", "f_shape"), ("fg", "f_text1"), ("bg", "f_text2")):
        ours_held, theirs_held = ours.get_submodule(part).state_dict(), theirs.get_submodule(their_part).state_dict()
        assert all(torch.equal(a, b) for a, b in zip(ours_held.values(), theirs_held.values(), strict=True))
    assert torch.equal(ours.fg[0](x), theirs.f_text1[0](x))  # type: ignore[operator]


def test_cgn_for_mnist_of_another_depth(tmp_path: Path) -> None:
    torch.save(Reference().state_dict(), tmp_path / "ckp.pth")
    ours: Any = Ours()
    ours.fg.append(nn.BatchNorm2d(3))
    with pytest.raises(TeacherError, match="has 7 layers with weights in f_text1, the network has 8 in fg"):
        load_weights(ours, tmp_path / "ckp.pth")


def test_textures_in_place_of_a_shape_are_named(tmp_path: Path) -> None:
    named = Reference().state_dict()
    named["f_shape.4.weight"], named["f_text1.7.weight"] = named["f_shape.9.weight"], named["f_shape.4.weight"]
    torch.save(named, tmp_path / "ckp.pth")
    with pytest.raises(TeacherError) as refusal:
        load_weights(Ours(), tmp_path / "ckp.pth")
    said = str(refusal.value)
    assert "shape.2.1.weight: shape (1, 3, 3, 3), the network has (3, 6, 3, 3)" in said
    assert "All names match" in said
    assert "fg.4" not in said, "of the same shape"


def tiny_pair(seed: int) -> tuple[Any, Any]:
    generator = built(tiny_gan.TinyGenerator, seed, num_classes=10, latent=6, size=8, conv_dim=4, repeat=2, embed=5)
    return shaken(generator, seed), shaken(
        built(tiny_gan.TinyDiscriminator, seed, num_classes=10, conv_dim=4, repeat=3), seed
    )


def tiny_files(generator: Any, discriminator: Any) -> tuple[Named, Named]:
    """TinyGAN's two networks as its file has them: an embedding misspelt, a list that counts activations."""
    g = {name.replace("embedding", "embeding"): value for name, value in generator.state_dict().items()}
    d = under("embeding", spectral(discriminator.embedding)) | under("fc_src", spectral(discriminator.fc_src))
    for i, layer in enumerate(discriminator.layers):
        d |= under(f"layers.{2 * i}", spectral(layer))
    return g, d


def test_tiny_gan(tmp_path: Path) -> None:
    theirs, ours = tiny_pair(0), tiny_pair(1)
    g, d = tiny_files(*theirs)
    assert {"embeding.weight", "blocks.1.cbn0.embed.bias", "blocks.0.cbn1.bn.num_batches_tracked"} <= g.keys()
    adam = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(3)}}, "param_groups": [{"betas": (0.0, 0.9)}]}
    states = {"G": g, "D": d, "g_optimizer": adam, "d_optimizer": adam}
    torch.save(states, tmp_path / "model_30.tar")
    load_tiny_gan(tmp_path / "model_30.tar", generator=ours[0], discriminator=ours[1])
    assert same(ours[0], theirs[0])
    assert same(ours[1], theirs[1])
    torch.save(g, tmp_path / "generator_15.pt")
    alone = tiny_pair(2)[0]
    load_tiny_gan(tmp_path / "generator_15.pt", generator=alone)
    assert same(alone, theirs[0])


def test_a_generator_alone_has_no_discriminator(tmp_path: Path) -> None:
    generator, discriminator = tiny_pair(0)
    torch.save(tiny_files(generator, discriminator)[0], tmp_path / "generator_15.pt")
    with pytest.raises(TeacherError, match="does not fit TinyGAN's discriminator"):
        load_tiny_gan(tmp_path / "generator_15.pt", discriminator=discriminator)


def test_a_missing_name_is_given_with_the_nearest(tmp_path: Path) -> None:
    named = huggingface(biggan(0))
    named["generator.gen_z.weight_org"] = named.pop("generator.gen_z.weight_orig")
    torch.save(named, tmp_path / "biggan.bin")
    ours, before = biggan(1), huggingface(biggan(1))
    with pytest.raises(TeacherError) as refusal:
        load_biggan_deep(ours, tmp_path / "biggan.bin")
    said = str(refusal.value)
    assert "generator.gen_z.weight_orig: missing (the file has generator.gen_z.weight_org)" in said
    assert "generator.gen_z.weight_org: not in the network (the network has generator.gen_z.weight_orig)" in said
    assert "All names match" not in said
    assert unchanged(huggingface(ours), before)


@pytest.mark.parametrize(
    ("content", "said"),
    [({"epoch": 3}, "holds no state dict"), ([1, 2], "holds no state dict"), (nn.Linear(1, 1), "can run code")],
)
def test_what_is_no_dict_of_tensors_is_refused(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    for load in (load_biggan_deep, load_u2net, load_weights):
        with pytest.raises(TeacherError, match=said):
            load(Ours(), tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=said):
        load_tiny_gan(tmp_path / "w.pth", generator=Ours())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"there is no file .*none\.pth"):
        load_u2net(u2net(0), tmp_path / "none.pth")
