"""Contrastive representation distillation, with a memory of all images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.losses.features import Features, full_precision, vectors


class ContrastiveMemory(nn.Module):
    """Tell a student's and a teacher's embedding of one image from those of images of other classes: CRD
    (Tian et al., ICLR 2020, Eq. 18), with their memories and noise-contrastive estimate.

    Each network's embeddings of all images are kept, N unit vectors. A sample is scored exp(u.m / tau) / Z against the
    other network's memory of itself and of K images of other classes; Z is N times the mean score of the first batch.
    The loss is -log P / (P + K/N) of itself and the sum of -log (K/N) / (P + K/N) of the others, averaged over samples;
    it is added for both directions. Then the rows of the batch move by ``momentum``.

    Deviations from the authors' code:
        * Scores to the whole memory are one matrix product, of which the wanted are picked: the same numbers.
        * An image's class is known once it was seen, so negatives of the first epoch may be of the same class.

    Args:
        num_images: N, the images of the source.
        width: values of an embedding, as the adapter makes them.
        negatives: K.
        temperature: tau.
        momentum: share of the old row.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    classes: Tensor
    normalisers: Tensor

    def __init__(
        self,
        *,
        num_images: int,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        bound = (3 / width) ** 0.5
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(num_images, width).uniform_(-bound, bound))
        self.register_buffer("classes", torch.full((num_images,), -1))  # -1: not seen yet
        self.register_buffer("normalisers", torch.zeros(2))  # Z of both directions; 0: not set yet

    def forward(self, student: Features, teacher: Features, *, index: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; changes the memory.

        Args:
            student: embeddings (N, width), of any length.
            teacher: embeddings (N, width).
            index: which image of the source each is.
            labels: their classes; None: every other image is a negative.

        Raises:
            ValueError: an image whose number is too large, or had another class before.
        """
        return self._loss(F.normalize(vectors(student)), F.normalize(vectors(teacher)), index, labels)

    @full_precision
    def _loss(self, student: Tensor, teacher: Tensor, index: Tensor, labels: Tensor | None) -> Tensor:
        self.remember_classes(index, labels)
        picked = torch.cat([index[:, None], self.draw(index)], 1)
        loss = self.estimate(student, self.teacher_memory, picked, 0)
        loss = loss + self.estimate(teacher, self.student_memory, picked, 1)
        with torch.no_grad():
            for memory, rows in ((self.student_memory, student), (self.teacher_memory, teacher)):
                memory[index] = F.normalize(self.momentum * memory[index] + (1 - self.momentum) * rows)
        return loss

    def estimate(self, rows: Tensor, memory: Tensor, picked: Tensor, direction: int) -> Tensor:
        """The noise-contrastive estimate of rows (N, width), whose first pick is their own image."""
        scores = (rows @ memory.clone().T / self.temperature).gather(1, picked).exp()
        if not self.normalisers[direction]:
            self.normalisers[direction] = scores.detach().mean() * len(memory)
        scores = scores / self.normalisers[direction].clone()
        noise = self.negatives / len(memory)
        own, others = scores[:, 0], scores[:, 1:]
        found = (own / (own + noise + 1e-7)).log() + (noise / (others + noise + 1e-7)).log().sum(1)
        return -found.mean()

    @torch.no_grad()
    def remember_classes(self, index: Tensor, labels: Tensor | None) -> None:
        """Note the classes of a batch."""
        if int(index.max()) >= len(self.classes):
            raise ValueError(
                f"image {int(index.max())} of a source with {len(self.classes)}: its images have to keep their numbers"
            )
        if labels is None:
            return
        known = self.classes[index]
        if bool((changed := (known >= 0) & (known != labels)).any()):
            raise ValueError(
                f"image {int(index[changed][0])} had another label before: images have to keep their numbers while "
                "a memory of them is kept"
            )
        self.classes[index] = labels

    @torch.no_grad()
    def draw(self, index: Tensor) -> Tensor:
        """Negatives (N, K) for each image: images of other classes, or where its class is unknown any others."""
        own = self.classes[index]
        apart = torch.where(own >= 0, own, -2 - index)  # an unknown class has one image
        groups = self.classes.clone()
        groups[index] = apart
        ordered, order = groups.sort()
        first, past = torch.searchsorted(ordered, apart), torch.searchsorted(ordered, apart, right=True)
        size, room = (past - first)[:, None], (len(groups) - (past - first))[:, None]
        if int(room.min()) == 0:
            raise ValueError("all images are of one class: there is nothing to contrast them with")
        chance = torch.rand(len(index), self.negatives, device=index.device)
        place = (chance * room).long().clamp(max=room - 1)
        return order[torch.where(place < first[:, None], place, place + size)]
