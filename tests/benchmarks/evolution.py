"""CE-GAN's generation beside the authors' code: equal weights, images and draws, in one process.

``DIR`` holds a checkout of github.com/AlephZr/CE-GAN as ``DIR/CE-GAN``. Prints the largest difference of the
discriminator's loss with its penalty and of every fitness, how often both chose the same operator, and CPU time a
generation. Today's ``load_state_dict`` of an optimiser shares tensors with what it loads, so that in their code one
mutation writes into the moments that the next begins with; ``--as-it-runs`` leaves that as it is.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import types
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "methods"))
from toy import trainer

from kd_lightning.core.tasks import Classification
from kd_lightning.data.batches import Batch
from kd_lightning.data.datasets.digits import load
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.methods.generators.ce_gan import CeGan
from kd_lightning.networks.generators.gan_blocks import from_pixels
from kd_lightning.networks.generators.plain_gans import LinearCritic, LinearGenerator

EVAL, PART, STEPS, LATENT = 96, 32, 3, 16
NAMES = {"nsgan": "heuristic", "lsgan": "least_squares", "vanilla": "minimax", "crossover": "crossover"}


class Theirs:
    """Their evolution and discriminator, with networks of ours in the space of tanh."""

    def __init__(
        self, folder: Path, generator: LinearGenerator, critic: LinearCritic, args: argparse.Namespace
    ) -> None:
        for name in ("tflib", "tflib.save_images", "core.utils"):
            sys.modules[name] = MagicMock()  # plots and tables
        sys.path.insert(0, str(folder / "CE-GAN"))
        from algos.gan import GAN
        from algos.neuroevolution import SSNE

        torch.manual_seed(0)
        g = copy.deepcopy(nn.Sequential(generator.net, nn.Unflatten(1, generator.shape)))
        d = copy.deepcopy(nn.Sequential(critic.net, nn.Flatten(0)))
        settings: dict[str, Any] = {
            "device": "cpu",
            "z_dim": LATENT,
            "pop_size": 1,
            "crossover_size": 1,
            "eval_size": EVAL,
        }
        settings |= {"g_loss_mode": [*NAMES][:3], "d_loss_mode": "vanilla", "lambda_f": 0.01, "netG": "FC2"}
        settings |= {"batch_size": PART, "use_comprehensive_selection": True, "eval_parents": False, "use_gp": True}
        settings |= {"eval_criteria": "QalD" if args.diversity else "discriminator", "writer": MagicMock()}
        settings |= {"dataset_name": "digits", "input_nc": 1, "crop_size": 8, "D_iters": STEPS}
        self.args = types.SimpleNamespace(**settings)
        opt_g, opt_d = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (g, d))
        if not args.as_it_runs:
            into = opt_g.load_state_dict
            opt_g.load_state_dict = lambda state: into(copy.deepcopy(state))  # type: ignore[method-assign]
        self.evolver = SSNE(self.args, g, opt_g, d)
        self.gan = GAN.__new__(GAN)
        given = {"args": self.args, "netG": g, "netD": d, "optimizerG": opt_g, "optimizerD": opt_d, "LAMBDA": 10}
        given |= {"CRITIC_ITERS": STEPS, "batch_size": PART, "device": "cpu", "writer": MagicMock(), "num_updates": 0}
        given |= {
            "criterion_BCEL": nn.BCEWithLogitsLoss(),
            "ones_label": torch.ones(PART),
            "zeros_label": torch.zeros(PART),
        }
        self.gan.__dict__ |= given
        self.fitness: list[float] = []
        judge = self.evolver.env.eval_worker
        self.evolver.env.eval_worker = lambda *what: self.noted(judge(*what))

    def noted(self, judged: Any) -> Any:
        self.fitness.append(float(judged[0]))
        return judged

    def generation(self, x: Tensor, latents: list[Tensor], order: Tensor, shares: list[Tensor]) -> tuple[str, float]:
        """The operator chosen, and the loss of the discriminator's last step."""
        mutate, seed, cross = latents
        normal, uniform = iter([mutate, cross, seed]), iter(shares)
        with (
            patch("torch.randn", lambda *_, **__: next(normal)),
            patch("torch.rand", lambda *_, **__: next(uniform)[:, None]),
            patch("torch.randperm", lambda *_: order),
        ):
            images, chosen = self.evolver.epoch(0, None, None, x[-EVAL:])
            self.gan.update_vanilla_nsgan(images, x)
        return chosen, float(self.gan.writer.add_scalar.call_args[0][1])


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--double", action="store_true", help="in double precision, losses included")
    parser.add_argument("--diversity", action="store_true", help="E-GAN's fitness")
    parser.add_argument("--as-it-runs", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kind = torch.float64 if args.double else torch.float32
    torch.set_default_dtype(kind)
    if args.double:
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.manual_seed(0)
    generator, critic = LinearGenerator(latent=LATENT), LinearCritic()
    adam = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)
    ours = CeGan(
        student=nn.Linear(1, 1),
        teacher=None,
        task=Classification(10),
        log_every=1,
        show_every=10**9,
        generator=generator,
        discriminator=critic,
        optimizer_d=adam,
        optimizer_g=adam,
        latent=LATENT,
        eval_size=EVAL,
        d_steps=STEPS,
        draws="two",
        child_adam="inherit",
        mutation_grad="raw",
        **({"fitness": "quality_diversity", "gamma": 0.01} if args.diversity else {}),
    )
    theirs = Theirs(args.references, generator, critic, args)
    rng, step, judge = torch.Generator().manual_seed(5), ours.training_step, ours.judged
    mine: list[float] = []
    spent, gaps, same = {"ours": 0.0, "theirs": 0.0}, {"loss": 0.0, "fitness": 0.0}, list[bool]()

    def judged(*what: Any) -> Any:
        found = judge(*what)
        mine.append(float(found.fitness))
        return found

    def both(batch: Batch, batch_idx: int) -> None:
        x = batch.x.to(kind)
        latents = [torch.randn(n, LATENT, generator=rng) for n in (EVAL, PART, EVAL)]
        order = torch.randperm(EVAL, generator=rng)
        shares = [torch.rand(PART, generator=rng) for _ in range(STEPS)]
        drawn, share = iter(latents), iter(shares)

        def between(real: Tensor, fake: Tensor) -> Tensor:
            return torch.lerp(from_pixels(fake), from_pixels(real), next(share)[:, None, None, None]).requires_grad_(
                True
            )

        ours.latents, ours.shuffled = lambda n: (next(drawn),), lambda n: order  # type: ignore[method-assign]
        ours.between = between  # type: ignore[method-assign]
        mine.clear()
        theirs.fitness.clear()
        start = time.process_time()
        step(batch._replace(x=x), batch_idx)
        middle = time.process_time()
        chosen, loss = theirs.generation(from_pixels(x), latents, order, shares)
        spent["theirs"] += time.process_time() - middle
        spent["ours"] += middle - start
        told = ours.latest["train/d"] + ours.latest["train/penalty"]
        gaps["loss"] = max(gaps["loss"], abs(told - loss) / max(1.0, abs(loss)))
        gaps["fitness"] = max([gaps["fitness"], *(abs(a - b) for a, b in zip(mine, theirs.fitness, strict=True))])
        same.append(NAMES[chosen] == ours.population[0].operator)

    ours.judged, ours.training_step = judged, both  # type: ignore[method-assign]
    ours.train()
    digits = load().train
    assert digits is not None
    loader = TensorLoader(digits.images, digits.labels, batch_size=PART * STEPS, shuffle=True, drop_last=True)
    trainer(args.epochs).fit(ours, Images(loader, None))
    n = len(same)
    per = {name: 1e3 * seconds / n for name, seconds in spent.items()}
    print(f"{n} generations, the same operator in {sum(same)}; largest gaps: loss {gaps['loss']:.1e}, ", end="")
    print(f"fitness {gaps['fitness']:.1e}; CPU ms: ours {per['ours']:.1f}, theirs {per['theirs']:.1f}, ", end="")
    print(f"quotient {per['ours'] / per['theirs']:.3f}")


if __name__ == "__main__":
    main()
