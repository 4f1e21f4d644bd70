"""A copy over the storage of its original, which is split over processes without ever being whole itself."""

from __future__ import annotations

import torch
from support.helpers import tiny_model

from mem1_trl.update.critic.critic import build_value_model
from mem1_trl.update.critic.second_adapter import over_the_same_storage


def test_a_copy_has_modules_of_its_own_and_no_storage():
    model = tiny_model("llama")
    model.lm_head.requires_grad_(False)
    copied = over_the_same_storage(model)
    assert not {id(module) for module in model.modules()} & {id(module) for module in copied.modules()}
    theirs = dict(copied.named_parameters())
    for name, parameter in model.named_parameters():
        assert theirs[name] is not parameter and theirs[name].data_ptr() == parameter.data_ptr(), name
        assert theirs[name].requires_grad == parameter.requires_grad, name
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(copied(ids).logits, model(ids).logits)
    # What replaces the parameters of the copy, as splitting it does, leaves the original as it is
    before = {name: p.clone() for name, p in model.named_parameters()}
    copied.to("meta")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_critic_that_is_about_to_be_split_has_the_numbers_of_the_policy():
    policy = tiny_model("llama")
    own = {p.data_ptr() for p in policy.parameters()}
    split = build_value_model(None, policy, in_shards=True)
    assert {p.data_ptr() for p in split.backbone.parameters()} <= own
    assert not {p.data_ptr() for p in build_value_model(None, policy).backbone.parameters()} & own
