"""Classifiers of timm train, freeze and go on from a checkpoint's state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ichfast.loading.batch import Batch
from ichfast.models.build import body_and_head, build_model
from ichfast.training.config import Phase, TrainConfig
from ichfast.training.step import Stepper
from tests.models.test_timm import NAMES, SIZE
from tests.training.tiny_trainer import CPU

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread_and_seed")]

FROZEN = Phase(epochs=1, lr=1e-2, optimizer="adam", freeze_body=True)
CONFIG = TrainConfig(phases=(FROZEN,))


def make_stepper(name: str, in_chans: int, *, seed: int) -> Stepper:
    torch.manual_seed(seed)
    model = build_model(f"timm:{name}", in_chans=in_chans, size=SIZE)
    return Stepper(model, CONFIG, amp=CPU)


def take_step(stepper: Stepper, in_chans: int, step: int) -> None:
    torch.manual_seed(step)
    images = torch.randn(2, in_chans, SIZE, SIZE)
    targets = torch.randint(2, (2, 6)).float()
    stepper.add(Batch(images, targets, torch.arange(2)), epoch=0, iteration=step)
    stepper.update(step)


def copies(tensors: list[Any]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("in_chans", [1, 3, 9])
@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_of_timm_trains_freezes_and_resumes_to_the_bit(
    name: str, in_chans: int
) -> None:
    stepper = make_stepper(name, in_chans, seed=0)
    model: Any = stepper.model
    body, _ = body_and_head(model)
    last_layer = [*model.get_classifier().parameters()]
    first_body, first_last_layer = copies(body), copies(last_layer)
    stepper.start_phase(FROZEN, num_steps=2)
    take_step(stepper, in_chans, 0)
    assert all(map(torch.equal, body, first_body))
    assert not any(map(torch.equal, last_layer, first_last_layer))

    state = copy.deepcopy(stepper.state())
    resumed = make_stepper(name, in_chans, seed=1)
    resumed.restore(state)
    resumed.start_phase(FROZEN, num_steps=2, optimizer=state["optimizer"])
    for each in (stepper, resumed):
        take_step(each, in_chans, 1)
    weights = model.state_dict()
    for name_, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, weights[name_]), name_

    stepper.start_phase(Phase(epochs=1, lr=1e-3), num_steps=1)
    take_step(stepper, in_chans, 0)
    # Branches that some start at 0 give others no gradient in the first steps.
    assert not all(map(torch.equal, body, first_body))
