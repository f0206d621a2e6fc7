"""A network of ours as a teacher that only answers: it lives in a thread, and nothing leads to it."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kd_lightning.teachers.access import told
from kd_lightning.teachers.answer_types import Answer, Described

CHUNK = 500
"""Images of one forward pass."""


class LocalAsker:
    """Asks a network over a queue: arrays go in, answers come out.

    The thread alone holds the network; it ends when the asker is gone. It is a convenience in one process: who
    wants to be sure puts the teacher into another one.

    Args:
        net: images (N, C, H, W) in [0, 1] to logits (N, K).
        described: what it says of itself.
        abstain_below: it abstains where its largest probability is smaller.
        device: where it answers.
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
        """As it was made."""
        return self._described

    def ask(self, images: np.ndarray) -> Sequence[Answer]:
        """Answers to uint8 (N, H, W, C).

        Raises:
            RuntimeError: what the network raised, in words: its traceback would lead to it.
        """
        reply: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._questions.put((images, reply))
        answers = reply.get()
        if isinstance(answers, str):
            raise RuntimeError(f"the teacher's network failed: {answers}")
        return answers


def _end(questions: queue.SimpleQueue[Any], thread: threading.Thread) -> None:
    """Wait for it: a thread that still holds tensors while the interpreter shuts down aborts the process."""
    questions.put(None)
    if thread is not threading.current_thread():
        thread.join()


@torch.no_grad()
def _answer(
    net: nn.Module, described: Described, abstain_below: float | None, device: str, questions: queue.SimpleQueue[Any]
) -> None:
    how: dict[str, Any] = {"decimals": described.decimals, "k": described.k, "abstain_below": abstain_below}
    while (question := questions.get()) is not None:
        images, reply = question
        try:
            net.to(device)
            shape = images.transpose(0, 3, 1, 2).shape
            # flat in between: a single channel's strides look like channels last, which torch computes otherwise
            x = torch.from_numpy(images.transpose(0, 3, 1, 2).reshape(-1)).view(shape)
            logits = torch.cat([net(chunk.to(device).float() / 255).float().cpu() for chunk in x.split(CHUNK)])
            reply.put(told(logits, described.access, **how))
        except Exception as error:
            reply.put(f"{type(error).__name__}: {error}")
        del question, images, reply
