"""How long a step of classic distillation takes here beside mdistiller's and torchdistill's, as ratios of one run.

    python tests/benchmarks/classic_steps.py [--mdistiller DIR] [--torchdistill DIR] [--steps 10] [--rounds 5]
        [--methods KD CRD ReviewKD] [--compile]

Each DIR is a checkout of megvii-research/mdistiller or yoshitomo-matsubara/torchdistill, which nothing here fetches.
ResNet-20 teaches ResNet-8 on random images of 32x32 in batches of 64, SGD, fp32, the same methods and settings; CRD has
a memory of 50,000 images and 16,384 negatives. Theirs is the body of their loop without meters, of torchdistill with
its hooks, wrappers and loss modules; the negatives of their CRD are drawn beforehand, as their loaders' workers do.
Ours runs under Lightning with everything that a run has:

    here      as problem=cifar100_resnet56_resnet20 composes it, with channels_last
    fast      and with fold_batchnorm, in bf16 where the CPU multiplies in it, with --compile compiled (adapters, and
              networks inside which nothing is looked at)
    kept      fast, with the teacher's answers stored (source=queried): KD only, and for images without augmentation

A round times all sides, in CPU time of one thread; ratios are those of the medians.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from functools import partial
from types import SimpleNamespace as Settings
from typing import Any

import torch
from step_time import ours
from torch import nn

from kd_lightning.core.log_filters import quiet
from kd_lightning.core.tasks import Classification
from kd_lightning.data.loader import TensorLoader
from kd_lightning.distributed.device import fast_precision
from kd_lightning.engine.compiled import compile_adapters, compile_networks
from kd_lightning.losses.contrastive_memory import ContrastiveMemory
from kd_lightning.losses.feature_maps import hierarchical_context
from kd_lightning.losses.response import kl
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.networks.adapters import Embeddings
from kd_lightning.networks.attention_fusion import AttentionFusion
from kd_lightning.networks.classifiers.resnet import CifarResNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.teachers.white_box import FrozenTeacher

BATCH, CLASSES, WARM, NEGATIVES, IN_MEMORY = 64, 100, 2, 16384, 50_000
STATISTICS: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
HINTON = {"response": {"weight": 0.9, "loss": partial(kl, temperature=4.0)}}
TERMS: dict[str, tuple[float, dict[str, Any]]] = {
    "KD": (0.1, HINTON),
    "CRD": (
        1.0,
        {
            "contrast": {
                "weight": 0.8,
                "student": "@pooled",
                "teacher": "@pooled",
                "adapt": Embeddings,
                "loss": partial(ContrastiveMemory, negatives=NEGATIVES),
            }
        },
    ),
    "ReviewKD": (
        1.0,
        {
            "review": {
                "weight": 0.6,
                "student": ["@blocks", "@pooled"],
                "teacher": ["@before", "@pooled"],
                "adapt": AttentionFusion,
                "loss": hierarchical_context,
            }
        },
    ),
}


def images(steps: int) -> TensorLoader:
    """Random images, as many as the steps take."""
    rng = torch.Generator().manual_seed(0)
    n = BATCH * (steps + WARM)
    pixels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return TensorLoader(pixels, torch.randint(CLASSES, (n,), generator=rng), batch_size=BATCH, shuffle=True)


def mdistillers(name: str, steps: int) -> float:
    """Seconds of mdistiller's steps after the first few."""
    distillers: Any = importlib.import_module("mdistiller.distillers")
    models: Any = importlib.import_module("mdistiller.models").cifar_model_dict
    torch.manual_seed(0)
    student, teacher = (models[net][0](num_classes=CLASSES) for net in ("resnet8", "resnet20"))
    loader = images(steps)
    channels, shapes = [16, 32, 64, 64], [1, 8, 16, 32]
    cfg = Settings(
        KD=Settings(TEMPERATURE=4.0, LOSS=Settings(CE_WEIGHT=0.1, KD_WEIGHT=0.9)),
        CRD=Settings(
            LOSS=Settings(CE_WEIGHT=1.0, FEAT_WEIGHT=0.8),
            FEAT=Settings(STUDENT_DIM=64, TEACHER_DIM=64, DIM=128),
            NCE=Settings(K=NEGATIVES, MOMENTUM=0.5, TEMPERATURE=0.07),
        ),
        REVIEWKD=Settings(
            SHAPES=shapes,
            OUT_SHAPES=shapes,
            IN_CHANNELS=channels,
            OUT_CHANNELS=channels,
            CE_WEIGHT=1.0,
            REVIEWKD_WEIGHT=0.6,
            WARMUP_EPOCHS=1,
            STU_PREACT=False,
            MAX_MID_CHANNEL=512,
        ),
    )
    nn.Module.cuda = lambda self, *_: self  # type: ignore[method-assign, assignment]
    if name == "CRD":
        importlib.import_module("mdistiller.distillers.CRD").AliasMethod.cuda = lambda self: None
    more = (IN_MEMORY,) if name == "CRD" else ()
    method = getattr(distillers, name)(student, teacher, cfg, *more)
    optimizer = sgd(method.get_learnable_parameters())
    method.train()
    drawn = torch.randint(IN_MEMORY, (BATCH, NEGATIVES))
    mean, std = (torch.tensor(STATISTICS[key]).view(-1, 1, 1) for key in ("mean", "std"))
    start = 0.0
    for i, batch in enumerate(loader):
        if i == WARM:
            start = time.process_time()
        optimizer.zero_grad()
        told: dict[str, Any] = {"image": (batch.x - mean) / std, "target": batch.y, "epoch": 1}
        if name == "CRD":
            told |= {"index": batch.index, "contrastive_index": torch.cat([batch.index[:, None], drawn], 1)}
        _, losses = method(**told)
        sum(each.mean() for each in losses.values()).backward()
        optimizer.step()
    return time.process_time() - start


HOOKS: dict[str, dict[str, Any]] = {
    "KD": {"teacher": {}, "student": {}},
    "CRD": {
        side: {"input": ["empty"], "output": [f"{place}avgpool", "normalizer"]}
        for side, place in (("teacher", "model."), ("student", "model."))
    },
    "ReviewKD": {
        "teacher": {"input": [f"layer{i}.-1.relu" for i in (1, 2, 3)], "output": ["avgpool"]},
        "student": {
            "input": [f"student_model.layer{i}.-1.relu" for i in (1, 2, 3)],
            "output": ["student_model.avgpool", *(f"abf_modules.{i}" for i in range(4))],
        },
    },
}


def torchdistills(name: str, steps: int) -> float:
    """Seconds of torchdistill's steps after the first few: its networks, hooks, wrappers and losses."""
    of = "torchdistill."
    modules: list[Any] = [
        importlib.import_module(of + module)
        for module in (
            "core.util",
            "losses.mid_level",
            "losses.high_level",
            "models.wrapper",
            "models.classification.resnet",
        )
    ]
    core, mid, high, wrapper, resnet = modules
    torch.manual_seed(0)
    nets = (resnet.ResNet4Cifar(resnet.BasicBlock, [n] * 3, CLASSES) for n in (1, 3))
    student, teacher = nets
    teacher.eval().requires_grad_(False)
    loader, device = images(steps), torch.device("cpu")
    answers = {"student_module_path": ".", "student_module_io": "output"}
    answers |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    source = {"is_from_teacher": False, "module_path": ".", "io": "output"}
    label = mid.SimpleLossWrapper(nn.CrossEntropyLoss(), input=source, target={"uses_label": True})
    alone = {"device": device, "device_ids": None, "distributed": False}
    terms: dict[str, Any] = {"label": {"criterion": label, "weight": 1.0}}
    if name == "KD":
        both = mid.KDLoss(**answers, temperature=4.0, alpha=0.1, beta=0.9)
        terms = {"kd": {"criterion": both, "weight": 1.0}}
    elif name == "CRD":
        linear = {"input_module_path": "model.avgpool", "linear_kwargs": {"in_features": 64, "out_features": 128}}
        student = wrapper.Linear4CRD(**linear, **alone, student_model=student)
        teacher = wrapper.Linear4CRD(**linear, **alone, teacher_model=teacher)
        sizes = {"input_size": 128, "output_size": IN_MEMORY, "num_samples": IN_MEMORY}
        contrast = mid.CRDLoss("normalizer", "empty", "normalizer", num_negative_samples=NEGATIVES, **sizes)
        terms["crd"] = {"criterion": contrast, "weight": 0.8}
    else:
        fused = [("input", f"student_model.layer{i}.-1.relu", 16 * 2 ** (i - 1)) for i in (1, 2, 3)]
        abfs = [
            {"io": io, "path": path, "kwargs": {"in_channels": c, "mid_channels": 64, "out_channels": c}}
            for io, path, c in [*fused, ("output", "student_model.avgpool", 64)]
        ]
        student = wrapper.Student4KnowledgeReview(student, abfs, **alone, sizes=[1, 8, 16, 32])
        theirs = [("avgpool", "output"), *((f"layer{i}.-1.relu", "input") for i in (3, 2, 1))]
        for i, (path, io) in enumerate(theirs):
            loss = mid.HierarchicalContextLoss(f"abf_modules.{i}", "output", path, io)
            terms[f"level{i}"] = {"criterion": loss, "weight": 0.6}
    criterion = high.WeightedSumLoss(sub_terms=terms)
    taps: dict[str, dict[str, Any]] = {"student": {}, "teacher": {}}
    for side, net in (("student", student), ("teacher", teacher)):
        core.set_hooks(net, net, {"forward_hook": HOOKS[name][side]}, taps[side])
    learning = [p for net in (student, teacher) for p in net.parameters() if p.requires_grad]
    optimizer = sgd(learning)
    student.train()
    drawn = torch.randint(IN_MEMORY, (BATCH, NEGATIVES))
    mean, std = (torch.tensor(STATISTICS[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def passed(side: str, net: nn.Module, *given: Any) -> dict[str, Any]:
        output = net(*given)
        found = core.extract_io_dict(taps[side], device)
        found["."]["output"] = output
        if isinstance(net, wrapper.AuxiliaryModelWrapper):
            net.secondary_forward(found)
            core.update_io_dict(found, core.extract_io_dict(taps[side], device))
        return found

    start = 0.0
    for i, batch in enumerate(loader):
        if i == WARM:
            start = time.process_time()
        x = (batch.x - mean) / std
        told = (
            {"pos_idx": batch.index, "contrast_idx": torch.cat([batch.index[:, None], drawn], 1)}
            if name == "CRD"
            else 0
        )
        given = (x, told) if name == "CRD" else (x,)
        with torch.set_grad_enabled(name == "CRD"):
            of_teacher = passed("teacher", teacher, *given)
        loss = criterion({"teacher": of_teacher, "student": passed("student", student, *given)}, {}, batch.y)
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - start


def our_seconds(name: str, steps: int, how: str, *, compiled: bool = False) -> float:
    """Seconds of as many of our steps, ``here``, ``fast`` or ``kept``."""
    torch.manual_seed(0)
    nets = (CifarResNet(depth=depth, num_classes=CLASSES, shortcut="B") for depth in (8, 20))
    student, teacher = (Normalized(net, **STATISTICS).to(memory_format=torch.channels_last) for net in nets)  # type: ignore[call-overload]
    label, terms = TERMS[name]
    given: dict[str, Any] = {"optimizer": partial(sgd, fused=True), "label": label, "terms": terms}
    method = Distill(student=student, teacher=FrozenTeacher(teacher), task=Classification(CLASSES), **given)
    loader = images(steps)
    if how == "here":
        precision = "32-true"
    else:
        precision = fast_precision("cpu")
        method.teacher.fold_batchnorm()
        if compiled:
            compile_networks(method, "inductor")
    if how == "kept":
        loader.answers = torch.randn(len(loader.images), CLASSES)
    method.build_terms((3, 32, 32), IN_MEMORY)
    if compiled and how != "here":
        compile_adapters(method, "inductor")
    return ours(method, loader, precision, WARM, clock=time.process_time)


def main() -> None:
    """Print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    references = {"mdistiller": mdistillers, "torchdistill": torchdistills}
    for reference in references:
        parser.add_argument(f"--{reference}", metavar="DIR")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=TERMS, default=list(TERMS))
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    given = [name for name in references if getattr(args, name)]
    if not given:
        parser.error("nothing to compare with: give --mdistiller DIR or --torchdistill DIR")
    quiet()
    torch.set_num_threads(1)
    sys.path[:0] = [getattr(args, name) for name in given]
    print("method     of             theirs ms   here  ratio   fast  ratio   kept  ratio")
    for name in args.methods:
        hows = ["here", "fast", "kept"] if name == "KD" else ["here", "fast"]
        own = [partial(our_seconds, how=how, compiled=args.compile) for how in hows]
        sides = [*(references[of] for of in given), *own]
        found: list[list[float]] = [[] for _ in sides]
        for _ in range(args.rounds):
            for seconds, side in zip(found, sides, strict=True):
                seconds.append(side(name, args.steps) / args.steps * 1e3)
        medians = [statistics.median(each) for each in found]
        for of, theirs in zip(given, medians, strict=False):
            told = " ".join(f"{ms:6.1f} {ms / theirs:6.2f}" for ms in medians[len(given) :])
            print(f"{name:10} {of:14} {theirs:9.1f} {told}", flush=True)


if __name__ == "__main__":
    main()
