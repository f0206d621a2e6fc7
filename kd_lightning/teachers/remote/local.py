"""A network as a query-only teacher: it lives in a thread, and the caller holds no reference to it."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kd_lightning.core.inference import at_once
from kd_lightning.teachers.access import told
from kd_lightning.teachers.answer_types import Answer, Described


class LocalAsker:
    """Queries a network through a queue: arrays go in, answers come out.

    Only the thread holds the network; it ends when the client is garbage-collected. This is no security boundary: for
    that, run the teacher in another process with ``kd-serve``.

    Args:
        net: images (N, C, H, W) in [0, 1] to logits (N, K).
        described: the description that it gives of itself.
        abstain_below: abstain where the largest probability is below this; None for never.
        device: on which it answers.
    """

    def __init__(
        self, net: nn.Module, described: Described, *, abstain_below: float | None = None, device: str = "cpu"
    ) -> None:
        self._described = described
        self._questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        arguments = (net.eval().requires_grad_(False), described, abstain_below, device, self._questions)
        thread = threading.Thread(target=_answer, args=arguments, name="teacher", daemon=True)
        thread.start()
        weakref.finalize(self, _end, self._questions, thread)

    def describe(self) -> Described:
        """The description given to the constructor."""
        return self._described

    def ask(self, images: np.ndarray) -> Sequence[Answer]:
        """Answers to images uint8 (N, H, W, C).

        Raises:
            RuntimeError: the network failed; only the text is kept, because a traceback would refer to the network.
        """
        reply: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._questions.put((images, reply))
        answers = reply.get()
        if isinstance(answers, str):
            raise RuntimeError(f"the teacher's network failed: {answers}")
        return answers


def _end(questions: queue.SimpleQueue[Any], thread: threading.Thread) -> None:
    """End the thread and wait for it: one that holds tensors at the interpreter's shutdown aborts the process."""
    questions.put(None)
    if thread is not threading.current_thread():
        thread.join()


@torch.no_grad()
def _answer(
    net: nn.Module, described: Described, abstain_below: float | None, device: str, questions: queue.SimpleQueue[Any]
) -> None:
    how: dict[str, Any] = {
        "decimals": described.decimals,
        "k": described.k,
        "abstain_below": abstain_below,
        "several": described.several,
    }
    while (question := questions.get()) is not None:
        images, reply = question
        try:
            net.to(device)
            shape = images.transpose(0, 3, 1, 2).shape
            # flat in between: a single channel's strides look like channels last, for which torch computes other digits
            x = torch.from_numpy(images.transpose(0, 3, 1, 2).reshape(-1)).view(shape)
            logits = torch.cat([net(chunk.to(device).float() / 255).float().cpu() for chunk in x.split(at_once(x))])
            reply.put(told(logits, described.access, **how))
        except Exception as error:
            reply.put(f"{type(error).__name__}: {error}")
        del question, images, reply
