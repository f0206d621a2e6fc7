import torch
from torch import nn

from kd_lightning.losses.dense import adaptation, affinity, paraphrase
from kd_lightning.networks.segmenters.knowledge_adaptation import LogitAdapter, LogitParaphraser

SHAPES = {"student_shapes": [(21, 6, 9)], "teacher_shapes": [(21, 6, 9)]}


def test_a_paraphraser_learns_to_give_the_map_again_from_half_its_channels() -> None:
    torch.manual_seed(0)
    net = LogitParaphraser(teacher_shapes=[(4, 6, 9)])
    teacher = torch.rand(8, 2, 6, 9).repeat_interleave(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        student, same = net(None, teacher)
        assert same is teacher
        loss = paraphrase(student, same)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    code = LogitParaphraser(teacher_shapes=[(21, 6, 9)])(None, torch.rand(2, 21, 6, 9))[0][1]
    assert code.shape == (2, 10, 6, 9)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [(4, 4), (4, 2), (2, 2), (2, 2), (2, 4), (4, 4)]


def test_adapters_train_the_students_side_and_leave_the_paraphraser_as_it_is() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 21, 6, 9, requires_grad=True), torch.randn(3, 21, 6, 9)
    for loss, active in ((adaptation, True), (affinity, False)):
        net = LogitAdapter(**SHAPES, active=active)
        before = {k: v.clone() for k, v in net.paraphraser.state_dict().items()}
        ours, code = net(student, teacher)
        assert ours.shape == code.shape == (3, 10, 6, 9)
        assert (ours.min() >= 0) == active
        loss(ours, code).backward()
        assert all(p.grad is not None for p in net.student.parameters())
        assert all(p.grad is None for p in net.paraphraser.parameters())
        assert all(torch.equal(v, before[k]) for k, v in net.paraphraser.state_dict().items())
    assert student.grad is not None
    assert student.grad.any()
