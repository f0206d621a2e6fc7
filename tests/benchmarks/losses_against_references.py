"""Our losses beside those of RepDistiller, mdistiller, torchdistill and of authors, on the same tensors.

    python tests/benchmarks/losses_against_references.py [--repdistiller DIR] [--mdistiller DIR] [--torchdistill DIR]
        [--simkd DIR] [--sskd DIR] [--mlkd DIR] [--dml DIR] [--ghnd DIR]

Each DIR is a checkout, which nothing here fetches: HobbitLong/RepDistiller, megvii-research/mdistiller,
yoshitomo-matsubara/torchdistill, DefangChen/SimKD, xuguodong03/SSKD, Jin-Ying/Multi-Level-Logit-Distillation,
YingZhangDUT/Deep-Mutual-Learning, yoshitomo-matsubara/hnd-ghnd-object-detectors. Their functions are imported as they
are. Printed are both values and the difference, relative where they exceed 1; where it is larger than 1e-5 there is a
reason.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from kd_lightning.losses import feature_maps, feature_vectors, logits, relations, self_supervision
from kd_lightning.losses.contrastive_memory import ContrastiveMemory
from kd_lightning.losses.response import kl
from kd_lightning.losses.variational import VariationalInformation
from kd_lightning.networks.adapters import Averaged, MeanRegressors
from kd_lightning.networks.attention_fusion import AttentionFusion
from kd_lightning.networks.classifiers.reused import ReusedHead

Row = tuple[str, Callable[[], Any], Callable[[], Any], str]
"""Name, ours, theirs, and why they differ."""
N, K = 16, 10


class Given:
    """The tensors of one comparison."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng)

        self.maps = (
            [randn(N, 4, 16, 16), randn(N, 6, 8, 8), randn(N, 8, 4, 4)],
            [
                randn(N, 4, 16, 16),
                randn(N, 6, 8, 8),
                randn(N, 8, 4, 4),
            ],
        )
        self.wide = [randn(N, 12, 8, 8), randn(N, 16, 4, 4), randn(N, 20, 4, 4)]
        self.vectors = randn(N, 32), randn(N, 32)
        self.logits = 3 * randn(N, K), 3 * randn(N, K)
        self.labels = torch.randint(K, (N,), generator=rng)


def repdistiller(g: Given) -> list[Row]:
    """RepDistiller's losses."""
    zoo: Any = importlib.import_module("distiller_zoo")
    memory: Any = importlib.import_module("crd.memory")
    memory.AliasMethod.cuda = lambda self: None
    criterion: Any = importlib.import_module("crd.criterion")
    (s, t), (u, v), (a, b) = g.maps, g.vectors, g.logits
    vid = zoo.VIDLoss(4, 12, 12)
    regressors = MeanRegressors(student_shapes=[(4, 16, 16)], teacher_shapes=[(12, 8, 8)])
    for ours, theirs in zip(regressors.parameters(), vid.regressor.parameters(), strict=True):
        ours.data.copy_(theirs.data)
    bound = VariationalInformation(teacher_shapes=[(12, 8, 8)])
    return [
        ("KD", lambda: kl(a, b, temperature=4.0), lambda: zoo.DistillKL(4)(a, b), ""),
        ("FitNet", lambda: feature_maps.squared_difference(s[1], t[1]), lambda: zoo.HintLoss()(s[1], t[1]), ""),
        ("AT", lambda: feature_maps.attention(s, g.wide), lambda: sum(zoo.Attention()(s, g.wide)), ""),
        ("SP", lambda: relations.similarity_preserving(s, t), lambda: sum(zoo.Similarity()(s, t)), ""),
        ("CC", lambda: relations.correlation_congruence(u, v), lambda: zoo.Correlation()(u, v), ""),
        ("VID", lambda: bound(*regressors(s[0], g.wide[0])), lambda: vid(s[0], g.wide[0]), ""),
        ("RKD", lambda: relations.relational(u, v), lambda: zoo.RKDLoss()(u, v), ""),
        ("PKT", lambda: relations.probabilistic_transfer(u, v), lambda: zoo.PKT()(u, v), ""),
        ("AB", lambda: feature_maps.activation_boundary(s, t), lambda: sum(zoo.ABLoss(3)(s, t)), ""),
        (
            "FT, code",
            lambda: feature_maps.factor_transfer(s[1], t[1], variant="code"),
            lambda: zoo.FactorTransfer()(s[1], t[1]),
            "",
        ),
        (
            "FSP",
            lambda: feature_maps.solution_flow(s, t),
            lambda: sum(zoo.FSP([m.shape for m in s], [m.shape for m in t])(s, t)),
            "",
        ),
        ("NST", lambda: feature_maps.neuron_selectivity(s, g.wide), lambda: sum(zoo.NSTLoss()(s, g.wide)), ""),
        *contrast(g, criterion),
    ]


def contrast(g: Given, criterion: Any) -> list[Row]:
    """CRD over three steps: the same projections, memory and negatives."""
    (u, v), images, negatives, width = g.vectors, 64, 20, 8
    settings = {"s_dim": 32, "t_dim": 32, "feat_dim": width, "nce_k": negatives, "nce_t": 0.07, "nce_m": 0.5}
    theirs = criterion.CRDLoss(SimpleNamespace(**settings, n_data=images))
    ours = ContrastiveMemory(num_images=images, width=width, negatives=negatives)
    ours.student_memory.copy_(theirs.contrast.memory_v1)
    ours.teacher_memory.copy_(theirs.contrast.memory_v2)
    rng = torch.Generator().manual_seed(1)
    index = [torch.randperm(images, generator=rng)[:N] for _ in range(3)]
    drawn = [torch.randint(images, (N, negatives), generator=rng) for _ in range(3)]
    embed_s, embed_t = theirs.embed_s.linear, theirs.embed_t.linear

    def our_steps() -> Tensor:
        losses = []
        for i in range(3):
            ours.draw = lambda _, i=i: drawn[i]  # type: ignore[method-assign, misc]
            losses.append(ours(embed_s(u), embed_t(v), index=index[i]))
        return torch.stack(losses)

    def their_steps() -> Tensor:
        picked = [torch.cat([index[i][:, None], drawn[i]], 1) for i in range(3)]
        return torch.cat([theirs(u, v, index[i], picked[i]) for i in range(3)])

    return [("CRD, 3 steps", our_steps, their_steps, "")]


def mdistiller(g: Given) -> list[Row]:
    """The losses that mdistiller has and RepDistiller has not."""
    of = "mdistiller.distillers."
    dkd, review, ofd = (importlib.import_module(of + name) for name in ("DKD", "ReviewKD", "OFD"))
    (s, t), (a, b) = g.maps, g.logits
    shapes = [tuple(m.shape[1:]) for m in s], [tuple(m.shape[1:]) for m in g.wide]
    fusion = AttentionFusion(student_shapes=shapes[0], teacher_shapes=shapes[1])
    theirs = [review.ABF(m[0], 8, w[0], i < 2) for i, (m, w) in enumerate(zip(*shapes, strict=True))]
    for i, abf in enumerate(theirs):
        fusion.squeeze[i].load_state_dict(abf.conv1.state_dict())
        fusion.expand[i].load_state_dict(abf.conv2.state_dict())
        if i < 2:
            fusion.weigh[i].load_state_dict(abf.att_conv.state_dict())

    def fused() -> list[Tensor]:
        out, later = theirs[2](s[2], out_shape=4)
        found = [out]
        for i in (1, 0):
            out, later = theirs[i](s[i], later, s[i].shape[2], g.wide[i].shape[2])
            found.insert(0, out)
        return found

    norms = []
    for m in t:
        norm = nn.BatchNorm2d(m.shape[1])
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
        norms.append(norm)
    margins = [feature_maps.expected_negative(n.bias.detach(), n.weight.detach()) for n in norms]
    connected: Any = ofd.OFD.__new__(ofd.OFD)
    nn.Module.__init__(connected)
    connected.init_ofd_modules([m.shape[1] for m in t], [m.shape[1] for m in s], norms)
    connected.connectors.connectors = nn.ModuleList(nn.Identity() for _ in s)
    return [
        (
            "DKD",
            lambda: logits.decoupled(a, b, labels=g.labels),
            lambda: dkd.dkd_loss(a, b, g.labels, 1.0, 8.0, 4.0),
            "",
        ),
        (
            "ReviewKD",
            lambda: feature_maps.hierarchical_context(*fusion(s, g.wide)),
            lambda: review.hcl_loss(fused(), g.wide),
            "",
        ),
        (
            "OFD",
            lambda: feature_maps.partial_l2(s, t, margins=margins),
            lambda: connected.ofd_loss(s, t),
            "",
        ),
    ]


def torchdistill(g: Given) -> list[Row]:
    """Losses of torchdistill, whose arguments are dicts of what was tapped."""
    mid: Any = importlib.import_module("torchdistill.losses.mid_level")
    (s, t), (u, v), (a, b) = g.maps, g.vectors, g.logits

    def told(theirs: Any, student: Any, teacher: Any) -> Any:
        names = "abc"[: len(student)]
        taps = [{n: {"output": m} for n, m in zip(names, side, strict=True)} for side in (student, teacher)]
        return theirs(*taps, g.labels)

    def pairs(**more: Any) -> dict[str, Any]:
        tap = {n: {"io": "output", "path": n, **more} for n in "abc"}
        return {n: {"student": tap[n], "teacher": tap[n]} for n in tap}

    flow = {}
    for first, second in ("ab", "bc"):
        taps = {"first": {"io": "output", "path": first}, "second": {"io": "output", "path": second}}
        flow[first] = {f"{side}_{place}": tap for side in ("student", "teacher") for place, tap in taps.items()}
    one = {"student_module_path": "a", "student_module_io": "output"}
    one |= {"teacher_module_path": "a", "teacher_module_io": "output"}
    kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    rkd = mid.RKDLoss("a", "a", 1.0, 2.0, "mean")
    boundary = mid.AltActTransferLoss({"a": pairs()["a"]}, 1.0, "mean")
    channels = mid.ChSimLoss({"b": pairs()["b"]})
    context = mid.HierarchicalContextLoss("a", "output", "a", "output")
    variance = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32))
    pad = feature_vectors.PredictedVariance(student_shapes=[(32,)])
    pad.log_variance.load_state_dict(variance.state_dict())

    def predicted() -> Any:
        return mid.PADL2Loss("a", "a")(
            {"a": {"output": u}, "var_estimator": {"output": variance(u)}}, {"a": {"output": v}}
        )

    def same_sd(rows: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(rows, None, None, training=True, eps=1e-4)

    return [
        ("AT, code", lambda: feature_maps.attention(s, t), lambda: told(mid.ATLoss(pairs()), s, t), ""),
        (
            "AT, paper",
            lambda: feature_maps.attention(s, t, variant="paper"),
            lambda: told(mid.ATLoss(pairs(), "paper"), s, t),
            "",
        ),
        (
            "FSP, paper",
            lambda: feature_maps.solution_flow(s, t, variant="paper"),
            lambda: told(mid.FSPLoss(flow), s, t),
            "theirs adds the lengths of the matrices' columns, the paper squares",
        ),
        (
            "PKT",
            lambda: relations.probabilistic_transfer(u, v),
            lambda: told(mid.PKTLoss("a", "output", "a", "output"), [u.clone()], [v.clone()]),
            "",
        ),
        (
            "FT, paper",
            lambda: feature_maps.factor_transfer(s[1], t[1]),
            lambda: mid.FTLoss()({"translator": {"output": s[1]}}, {"paraphraser": {"output": t[1]}}),
            "",
        ),
        (
            "AB, one layer",
            lambda: feature_maps.activation_boundary(s[0], t[0], scale=1.0),
            lambda: told(boundary, s[:1], t[:1]),
            "",
        ),
        ("RKD", lambda: relations.relational(u, v, distance=1.0, angle=2.0), lambda: told(rkd, [u], [v]), ""),
        (
            "CC, paper",
            lambda: relations.correlation_congruence(u, v, variant="paper"),
            lambda: told(mid.CCKDLoss("a", "a", kernel, "batchmean"), [u], [v]),
            "",
        ),
        (
            "SP",
            lambda: relations.similarity_preserving(u, v),
            lambda: told(mid.SPKDLoss("a", "a", "batchmean"), [u], [v]),
            "theirs gives rows a sum of 1 (p=1), the paper and RepDistiller unit length",
        ),
        ("PAD", lambda: pad(u, v), predicted, ""),
        (
            "ReviewKD, one layer",
            lambda: feature_maps.hierarchical_context(s[0], t[0]),
            lambda: context({"a": {"output": (s[0], None)}}, {"a": {"output": t[0]}}),
            "",
        ),
        (
            "ICKD, pairs",
            lambda: feature_maps.channel_correlation(s[1], t[1], divisor="pairs"),
            lambda: told(channels, s, t),
            "",
        ),
        ("DIST", lambda: logits.dist(a, b, temperature=4.0), lambda: told(mid.DISTLoss(**one, tau=4.0), [a], [b]), ""),
        (
            "SRD + KL",
            lambda: 2 * feature_vectors.standardised_power(u, v) + kl(a, b),
            lambda: mid.SRDLoss("f", "output", "f", "output", "a", "output", "a", "output", exponent=4.0)(
                {"f": {"output": same_sd(u)}, "a": {"output": a}}, {"f": {"output": same_sd(v)}, "a": {"output": b}}
            ),
            "",
        ),
        (
            "LogitStd",
            lambda: 9 * logits.standardised_kl(a, b) + 0.1 * torch.nn.functional.cross_entropy(a, g.labels),
            lambda: told(mid.LogitStdKDLoss(**one, temperature=2.0, alpha=0.1, beta=9.0), [a], [b]),
            "",
        ),
    ]


def simkd(g: Given) -> list[Row]:
    """SimKD's projector and loss, with the teacher's classifier behind it."""
    util: Any = importlib.import_module("models.util")
    theirs = util.SimKD(s_n=6, t_n=12, factor=2)

    class Net(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(x).flatten(1))

    pairs = {"SimKD": (6, 8, 8), "SimKD, larger maps": (6, 16, 16)}
    rows: list[Row] = []
    for name, shape in pairs.items():
        maps, wide = torch.randn(N, *shape), g.wide[0]
        ours = ReusedHead(trunk=Net(6), teacher=_Of(wide.shape[1:], Net(12)), image=shape)
        ours.projector.load_state_dict(theirs.transfer.state_dict())
        # their heights and widths are aligned before the projector on either side

        def our_loss(ours: Any = ours, maps: Tensor = maps, wide: Tensor = wide) -> Tensor:
            found: list[Tensor] = []
            ours.projector.register_forward_hook(lambda _module, _args, output: found.append(output))
            answers = ours(maps)
            return feature_maps.squared_difference(*Averaged()(found[0], wide)) + answers.square().mean()

        def their_loss(ours: Any = ours, maps: Tensor = maps, wide: Tensor = wide) -> Tensor:
            s, t, answers = theirs(maps, wide, ours.head)
            return nn.functional.mse_loss(s, t) + answers.square().mean()

        rows.append((name, our_loss, their_loss, ""))
    return rows


class _Of(nn.Module):
    """A network whose last maps have a shape, whatever the image."""

    def __init__(self, shape: Any, net: Any) -> None:
        super().__init__()
        self.shape, self.pool, self.head = tuple(shape), net.pool, net.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.zeros(len(x), *self.shape)).flatten(1))


def sskd(g: Given) -> list[Row]:
    """SSKD's four losses as its script has them, which is read and run up to the first update."""
    source = (Path(sys.path[0]) / "student.py").read_text()
    begin, end = "        batch = int(x.size(0) / 4)\n", "        loss = args.ce_weight"
    start = source.index("        output, s_feat, _ = s_model(x, bb_grad=True)")
    step = source[source.rindex(begin, 0, start) : source.index(end, start)].replace(".cuda()", "")
    rng = torch.Generator().manual_seed(2)
    logits_s, logits_t = (torch.randn(4 * N, K, generator=rng) for _ in range(2))
    feats_s, feats_t = torch.randn(4 * N, 12, generator=rng), torch.randn(4 * N, 20, generator=rng)
    args = SimpleNamespace(kd_T=4.0, tf_T=4.0, ss_T=0.5, ratio_tf=1.0, ratio_ss=1.0)
    known: dict[str, Any] = {"args": args, "torch": torch, "F": nn.functional, "x": logits_s, "target": g.labels}
    known["s_model"] = lambda x, bb_grad: (logits_s, feats_s, None)
    known["t_model"] = lambda x: (logits_t, feats_t, None)
    exec(textwrap.dedent(step), known)
    ours_of = torch.cat([torch.arange(N) * 4 + view for view in range(4)])  # theirs lie image by image
    a, b, u, v = (rows[ours_of] for rows in (logits_s, logits_t, feats_s, feats_t))
    labels = g.labels.repeat(4)
    return [
        ("SSKD, KD", lambda: kl(a[:N], b[:N], temperature=4.0), lambda: known["loss2"], ""),
        ("SSKD, turned", lambda: self_supervision.answers_to_views(a, b, labels=labels), lambda: known["loss3"], ""),
        ("SSKD, similarity", lambda: self_supervision.similarities(u, v, wrong=1.0), lambda: known["loss4"], ""),
        (
            "SSKD, the head's",
            lambda: self_supervision.which_image(v),
            lambda: nn.functional.cross_entropy(known["t_simi"], known["aug_target"]),
            "",
        ),
    ]


def mlkd(g: Given) -> list[Row]:
    """MLKD's distances, and the whole loss of its script's two views."""
    sys.modules.setdefault("turtle", SimpleNamespace(st=None))  # type: ignore[arg-type]  # imported there, not used
    theirs: Any = importlib.import_module("mdistiller.distillers.KD_ours")
    rng = torch.Generator().manual_seed(3)
    views_s, views_t = (3 * torch.randn(2 * N, K, generator=rng) for _ in range(2))

    def answers(of: Tensor) -> Any:
        given = iter(of.chunk(2))
        return lambda _: (next(given), None)

    def whole() -> dict[str, Tensor]:
        both = theirs.KD_ours.__new__(theirs.KD_ours)
        nn.Module.__init__(both)
        both.student, both.teacher, both.temperature = answers(views_s), answers(views_t), 4.0
        both.ce_loss_weight = both.kd_loss_weight = 1.0
        losses: dict[str, Tensor] = both.forward_train(None, None, g.labels)[1]
        return losses

    (a, b), degrees = g.logits, (2.0, 3.0, 4.0, 5.0, 6.0)
    levels = theirs.kd_loss, theirs.bc_loss, theirs.cc_loss
    return [
        (
            "MLKD, one view",
            lambda: logits.multi_level(a, b),
            lambda: sum(level(a, b, degree) for level in levels for degree in degrees),
            "",
        ),
        (
            "MLKD, code",
            lambda: logits.multi_level(views_s, views_t, views=2, variant="code"),
            lambda: sum(value for name, value in whole().items() if name != "loss_ce"),
            "",
        ),
        (
            "MLKD, paper",
            lambda: logits.multi_level(views_s, views_t, views=2),
            lambda: sum(value for name, value in whole().items() if name != "loss_ce"),
            "theirs halves the first view, and leaves the second view's distances of samples and classes out",
        ),
        (
            "MLKD, labels",
            lambda: 2 * logits.smoothed_labels(views_s, labels=g.labels.repeat(2), epsilon=0.0),
            lambda: whole()["loss_ce"],
            "",
        ),
    ]


def dml(g: Given) -> list[Row]:
    """DML's loss, which is read from the authors' script and run with PyTorch's functions in place of TensorFlow's."""
    source = (Path(sys.path[0]) / "train_models.py").read_text()
    start = source.index("def kl_loss_compute")
    tf = SimpleNamespace(nn=SimpleNamespace(softmax=lambda z: z.softmax(1)), log=torch.log)
    tf.reduce_mean, tf.reduce_sum = torch.mean, torch.sum
    known: dict[str, Any] = {"tf": tf}
    exec(source[start : source.index("\n\n\n", start)], known)
    (a, b), theirs = g.logits, known["kl_loss_compute"]
    why = "theirs adds 1e-8 to probabilities and to their quotient; without it both are equal"
    return [
        ("DML", lambda: kl(a, b), lambda: theirs(a, b), why),
        ("DML, peer", lambda: kl(b, a), lambda: theirs(b, a), why),
    ]


def ghnd(g: Given) -> list[Row]:
    """The losses of HND and GHND, of as many maps as their settings name."""
    util = SimpleNamespace(get_loss=lambda kind, settings: getattr(nn, kind)(**settings))
    for name in ("myutils", "myutils.pytorch"):  # a submodule of theirs, which a checkout does not bring
        sys.modules[name] = SimpleNamespace(func_util=util)  # type: ignore[assignment]
    loss = importlib.import_module("src.distillation.loss").get_loss
    s, t = g.maps
    term = {"criterion": {"type": "MSELoss", "params": {"reduction": "sum"}}, "factor": 1.0}

    def theirs(count: int) -> Tensor:
        names = [f"layer{i + 1}" for i in range(count)]
        terms = {name: {**term, "ts_modules": [name, name]} for name in names}
        shown = {name: ((name, t[i]), (name, s[i])) for i, name in enumerate(names)}
        found: Tensor = loss({"type": "general", "params": {"org_loss_factor": 0.0}, "terms": terms})(shown, {})
        return found

    return [
        ("HND", lambda: feature_maps.squared_difference(s[:1], t[:1], total=True), lambda: theirs(1), ""),
        ("GHND", lambda: feature_maps.squared_difference(s, t, total=True), lambda: theirs(3), ""),
    ]


def main() -> None:
    """Compare with the checkouts given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides: dict[str, Callable[[Given], list[Row]]] = {
        "repdistiller": repdistiller,
        "mdistiller": mdistiller,
        "torchdistill": torchdistill,
        "simkd": simkd,
        "sskd": sskd,
        "mlkd": mlkd,
        "dml": dml,
        "ghnd": ghnd,
    }
    for name in sides:
        parser.add_argument(f"--{name}", metavar="DIR")
    given = vars(parser.parse_args())
    rows = []
    for name, side in sides.items():
        if given[name] is None:
            continue
        sys.path.insert(0, given[name])
        torch.manual_seed(0)
        for loss, ours, theirs, why in side(Given()):
            a, b = (torch.as_tensor(one()).detach().double() for one in (ours, theirs))
            difference = float(((a - b).abs() / b.abs().clamp(min=1)).max())
            told = [f"{float(x.flatten()[-1]):.6g}" for x in (a, b)]
            rows.append([name, loss, *told, f"{difference:.1e}", why or ("" if difference <= 1e-5 else "UNEXPLAINED")])
        sys.path.remove(given[name])
        for module in [
            key for key, one in sys.modules.items() if str(getattr(one, "__file__", "")).startswith(given[name])
        ]:
            del sys.modules[module]  # another checkout may have a package of that name
    print(tabulate(rows, ["of", "loss", "ours", "theirs", "difference", "why"], disable_numparse=True))


if __name__ == "__main__":
    main()
