"""`benchmarks/trainers/nnUNetTrainerCrossPseudo.py`: each of its networks is taught by the labels and by the other."""

import copy
from pathlib import Path

import pytest
import torch
from test_train_step import toy  # noqa: F401 (a fixture)
from toy_trainer import build, short, weights

from nnunet_semisam.ops.outputs import full_resolution


@pytest.fixture
def trainer(toy, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks" / "trainers"))
    from nnUNetTrainerCrossPseudo import nnUNetTrainerCrossPseudo

    built = build(nnUNetTrainerCrossPseudo, short(sam=None))
    built.on_train_start()
    built.on_train_epoch_start()
    return built


def flat(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_each_network_is_asked_to_say_what_the_other_said_before_the_step(trainer, monkeypatch):
    student, twin = copy.deepcopy(trainer.network), copy.deepcopy(trainer.teacher.network)
    assert not torch.equal(flat(student), flat(twin))
    asked, terms = [], trainer.method.terms

    def spied(network, unlabeled, pseudo, labeled):
        asked.append((network, unlabeled.image, pseudo["consistency"].prob))
        return terms(network, unlabeled, pseudo, labeled)

    monkeypatch.setattr(trainer.method, "terms", spied)
    trainer.train_step(next(trainer.dataloader_train))
    assert [network for network, *_ in asked] == [trainer.network, trainer.teacher.network]
    for (_, image, said), other in zip(asked, (twin, student), strict=True):
        with torch.no_grad():
            assert torch.equal(said, full_resolution(other(image)).softmax(1))


@pytest.mark.parametrize("left", ["labels", "each other"])
def test_both_parts_move_both_networks(trainer, monkeypatch, left):
    if left == "labels":
        terms = trainer.method.terms
        none = lambda *args: {name: 0 * term for name, term in terms(*args).items()}  # noqa: E731
        monkeypatch.setattr(trainer.method, "terms", none)
    else:
        trainer.loss = lambda output, _: 0 * full_resolution(output).sum()
    trainer.optimizer.param_groups[0]["weight_decay"] = trainer._twin_optimizer.param_groups[0]["weight_decay"] = 0.0
    student, twin = weights(trainer), flat(trainer.teacher.network)
    trainer.train_step(next(trainer.dataloader_train))
    assert not torch.equal(student, weights(trainer))
    assert not torch.equal(twin, flat(trainer.teacher.network))
