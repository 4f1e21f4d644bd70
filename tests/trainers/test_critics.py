"""Tests of the critics of PPO: a second adapter, a head on the policy, warm-up."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from support.helpers import tiny_model
from support.ppo_helpers import LORA, Gradients, four_plans, make, oracle_values, stir, wake, watch_credit
from support.trainer_helpers import assert_same_tensors, copy_parameters, lookup_dataset, record, trained_model
from transformers import AutoModel, AutoModelForCausalLM, TrainerCallback

from mem1_trl.update.critic.critic import SharedValueHead, ValueModel

# A second adapter


def test_the_critic_shares_every_frozen_weight_with_the_policy(tmp_path, tokenizer, actor_path):
    trainer = make(tmp_path, actor_path, tokenizer, peft_config=LORA)
    policy = {id(p): name for name, p in trainer.model.named_parameters()}
    for name, parameter in trainer.value_model.named_parameters():
        assert (id(parameter) in policy) == (not parameter.requires_grad), name
    trainable = [p for p in trainer.value_model.parameters() if p.requires_grad]
    frozen = [p for p in trainer.model.parameters() if not p.requires_grad]
    assert sum(p.numel() for p in trainable) < 0.05 * sum(p.numel() for p in frozen)


def test_what_a_critic_costs_is_counted_and_printed(tmp_path, tokenizer, actor_path, capsys):
    """A second adapter and a head cost a few per cent of the policy's weights, a copy of the backbone nearly all of them."""
    printed, shares = {}, {}
    for kind, arguments in (("copy", {}), ("adapter", {"peft_config": LORA}), ("shared", {"value_model": "shared"})):
        trainer = make(tmp_path, actor_path, tokenizer, **arguments)
        policy = {id(p) for p in trainer.model.parameters()}
        own = [p for p in trainer.value_model.parameters() if id(p) not in policy]
        assert trainer.critic_bytes() == sum(4 * p.numel() for p in own)
        shares[kind] = trainer.critic_bytes() / sum(4 * p.numel() for p in trainer.model.parameters())
        count, trained = sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)
        printed[kind] = capsys.readouterr().out
        assert f"The critic has {count:,} parameters of its own ({trained:,} trained), which take " in printed[kind]
        assert f"{shares[kind]:.2%} of the policy's weights" in printed[kind]
    assert shares["shared"] < 0.01 < shares["adapter"] < 0.05 < 0.5 < shares["copy"] < 1.0


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_second_adapter_leaves_the_policy_as_it_is(tmp_path, tokenizer, actor_path, start):
    """These initializations take a part of the frozen weights into the adapter, which the critic's would do once more."""
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=start
    )  # fmt: skip
    trainer = make(tmp_path, actor_path, tokenizer, peft_config=config, beta=0.0)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(actor_path).eval()(ids).logits
        torch.testing.assert_close(trainer.model.eval()(ids).logits, plain, rtol=1e-3, atol=1e-3)
    with pytest.raises(
        ValueError, match=rf"beta=0.001 takes the policy without its adapter .*init_lora_weights='{start}'"
    ):
        make(tmp_path, actor_path, tokenizer, peft_config=config, beta=0.001)


def test_the_revision_of_the_policy_is_not_asked_for_in_the_repository_of_the_critic(
    tmp_path, tokenizer, actor_path, monkeypatch
):
    asked = []
    plain = AutoModel.from_pretrained

    def load(path, **kwargs):
        asked.append((str(path), kwargs.get("revision")))
        return plain(path, **kwargs)

    monkeypatch.setattr(AutoModel, "from_pretrained", load)
    copied = shutil.copytree(actor_path, tmp_path / "critic")
    for source in (actor_path, copied):
        make(tmp_path, actor_path, tokenizer, value_model=str(source), model_init_kwargs={"revision": "v1"})
    assert asked == [(str(actor_path), "v1"), (str(copied), None)]


@pytest.mark.parametrize("config", [
    LORA,
    LoraConfig(r=4, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"),
    LoraConfig(r=4, target_modules=r"model\.layers\.\d\.mlp\.(up|down)_proj", bias="lora_only", task_type="CAUSAL_LM"),
    LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1], modules_to_save=["norm", "lm_head"], task_type="CAUSAL_LM"),
], ids=["lora", "dora", "pattern", "saved_module"])  # fmt: skip
def test_any_adapter_inside_the_layers_can_be_doubled(tmp_path, tokenizer, actor_path, config):
    """What trains in the critic is what trains in the policy, under the same names, and none of it is the policy's."""
    trainer = make(tmp_path, actor_path, tokenizer, peft_config=config, plan=four_plans, value_learning_rate=1e-2)
    stir(trainer.value_model, 3)
    wake(trainer)
    of_policy = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    of_critic = {name: p for name, p in trainer.value_model.adapters.named_parameters() if p.requires_grad}
    assert {name for name in of_policy if "lm_head" not in name} == of_critic.keys()
    assert not {id(p) for p in of_policy.values()} & {id(p) for p in of_critic.values()}
    frozen = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    before = {name: p.clone() for name, p in of_critic.items()}
    trainer.train()
    assert all(torch.equal(p, frozen[name]) for name, p in trainer.model.named_parameters() if name in frozen)
    moved = {name for name, p in of_critic.items() if not torch.equal(p, before[name])}
    assert moved == of_critic.keys()


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("layout", ["packed", "per_turn"])
def test_gradients_are_those_of_a_critic_on_its_own_copy(tmp_path, tokenizer, actor_path, checkpointing, layout):
    """With checkpointing a backward pass runs the forward again: it must run through the critic's adapter, not the policy's."""
    runs = []
    for critic in (None, actor_path):
        trainer = make(
            tmp_path / str(critic is None), actor_path, tokenizer, layout, peft_config=copy.deepcopy(LORA),
            value_model=critic, plan=four_plans, max_steps=1, max_grad_norm=0.0, beta=0.1,
            gradient_checkpointing=checkpointing is not None, gradient_checkpointing_kwargs=checkpointing,
        )  # fmt: skip
        stir(trainer.model, 1)
        stir(trainer.value_model.adapters, 2)
        wake(trainer)
        gradients = Gradients(trainer.value_model)
        trainer.add_callback(gradients)
        recorder = record(trainer)
        trainer.train()
        of_critic = {
            name.removeprefix("backbone.").removeprefix("adapters.").replace("base_model.model.", "").replace("model.", ""): grad
            for name, grad in gradients.steps[0].items()
        }  # fmt: skip
        runs.append((recorder, of_critic))
    (shared, of_shared), (separate, of_separate) = runs
    torch.testing.assert_close(shared.losses, separate.losses, rtol=1e-6, atol=1e-6)
    assert len(of_shared) == 10  # two matrices of two projections in two layers, and the head
    assert max(float(grad.abs().max()) for name, grad in of_shared.items() if "lora_A" in name) > 1e-4
    assert_same_tensors(of_shared, of_separate, 1e-5)
    assert_same_tensors(shared.gradients[0], separate.gradients[0], 1e-5)


def test_values_and_credit_are_those_of_the_adapter_while_the_reference_is_the_base(tmp_path, tokenizer, actor_path):
    trainer = make(tmp_path, actor_path, tokenizer, peft_config=LORA, plan=four_plans, beta=0.5, max_steps=1)
    stir(trainer.model, 1)
    stir(trainer.value_model, 2)
    wake(trainer)
    seen = watch_credit(trainer)
    trainer.train()
    batch, mask = seen[0]["batch"], seen[0]["mask"]
    from support.helpers import oracle_logprobs

    base = AutoModelForCausalLM.from_pretrained(actor_path)
    with torch.no_grad():
        for row, trajectory in enumerate(seen[0]["trajectories"]):
            wanted = torch.cat(oracle_logprobs(base, trajectory))
            torch.testing.assert_close(batch["ref_per_token_logps"][row][mask[row]], wanted, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(
                batch["old_values"][row][mask[row]], seen[0]["values"][row], atol=1e-4, rtol=1e-4
            )
            assert (seen[0]["logps"][row] - wanted).abs().max() > 0.05


def test_saving_gives_a_policy_that_never_heard_of_a_critic(tmp_path, tokenizer, actor_path):
    trainer = make(tmp_path / "run", actor_path, tokenizer, peft_config=LORA, plan=four_plans, max_steps=1)
    stir(trainer.value_model, 2)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    saved = {path.name for path in (tmp_path / "saved").rglob("*")}
    assert {"adapter_config.json", "adapter_model.safetensors", "mem1_protocol.json"} <= saved
    assert not [name for name in saved if "critic" in name or "value" in name or name == "backbone"]
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_same_tensors(copy_parameters(trainer.model), copy_parameters(loaded), 0.0)
    ids = torch.tensor([tokenizer("q1?")["input_ids"]])
    trainer.model.eval()
    with torch.no_grad():
        before = trainer.model(input_ids=ids).logits
        assert not torch.allclose(before, AutoModelForCausalLM.from_pretrained(actor_path)(input_ids=ids).logits)
        merged = trainer.model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]


def test_training_continues_from_an_adapter(tmp_path, tokenizer, actor_path):
    """The critic starts as the policy does, the reference is the adapter as it came, and neither is saved with the policy."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), LORA)
    stir(model, 4)
    start = copy.deepcopy(model)
    trainer = make(
        tmp_path / "run", model, tokenizer, plan=four_plans, beta=0.5, value_learning_rate=1e-2, max_steps=2
    )
    wake(trainer)
    theirs = dict(trainer.model.named_parameters())
    for name, parameter in trainer.value_model.adapters.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
        assert (parameter is theirs[name]) == (not parameter.requires_grad), name
    seen = watch_credit(trainer)
    trainer.train()
    from support.helpers import oracle_logprobs

    for credit in seen:  # at the second step the policy has moved
        with torch.no_grad():
            wanted = torch.cat(oracle_logprobs(start, credit["trajectories"][0]))
        torch.testing.assert_close(
            credit["batch"]["ref_per_token_logps"][0][credit["mask"][0]], wanted, atol=1e-4, rtol=1e-4
        )
    trainer.save_model(tmp_path / "saved")
    assert not [path for path in (tmp_path / "saved").iterdir() if path.is_dir()]
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(actor_path), tmp_path / "saved")
    trained = {name: p for name, p in trainer.model.named_parameters() if ".ref." not in name}
    assert_same_tensors(copy_parameters(again), trained, 0.0)


def test_a_saved_critic_adapter_can_be_passed_back(tmp_path, tokenizer, actor_path):
    first = make(tmp_path, actor_path, tokenizer, peft_config=LORA)
    stir(first.value_model, 5)
    wake(first)
    first.value_model.save(tmp_path / "critic")
    second = make(tmp_path, actor_path, tokenizer, peft_config=LORA, value_model=str(tmp_path / "critic"))
    assert_same_tensors(copy_parameters(first.value_model), copy_parameters(second.value_model), 0.0)
    frozen = {id(p) for p in second.model.parameters()}
    assert all(id(p) in frozen for p in second.value_model.parameters() if not p.requires_grad)


def test_a_prompt_is_no_adapter_for_a_critic(tmp_path, tokenizer, actor_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="PROMPT_TUNING, which puts learned tokens in front of the context"):
        make(tmp_path, actor_path, tokenizer, peft_config=config)


def test_a_policy_with_an_adapter_may_have_a_critic_of_its_own(tmp_path, tokenizer, actor_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), LORA)
    trainer = make(tmp_path, model, tokenizer, value_model=actor_path, plan=four_plans, max_steps=1)
    assert all(p.requires_grad for p in trainer.value_model.parameters())
    assert not {id(p) for p in trainer.model.parameters()} & {id(p) for p in trainer.value_model.parameters()}
    assert trainer.critic_bytes() == sum(p.nbytes for p in trainer.value_model.parameters())
    trainer.train()


# A critic that comes frozen


def changed(trainer) -> set[str]:
    """Names of the critic's weights that training has changed."""
    before = copy_parameters(trainer.value_model)
    trainer.train()
    return {name for name, p in trainer.value_model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("finished", [False, True])
def test_a_frozen_critic_is_trained(tmp_path, tokenizer, actor_path, finished):
    """A reward model that was frozen to score with, for one."""
    model = AutoModelForCausalLM.from_pretrained(actor_path).requires_grad_(False)
    critic = ValueModel(model.model).requires_grad_(False) if finished else model
    trainer = make(
        tmp_path, actor_path, tokenizer, value_model=critic, plan=four_plans, max_steps=1, value_learning_rate=1e-2
    )
    wake(trainer)
    assert changed(trainer) == {name for name, _ in trainer.value_model.named_parameters()}


@pytest.mark.parametrize("of_policy", [False, True])
def test_what_is_frozen_in_part_stays_so(tmp_path, tokenizer, actor_path, of_policy):
    """Layers that a user has frozen are not trained, nor are their copies in a critic that starts from the policy."""
    model = AutoModelForCausalLM.from_pretrained(actor_path)
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].requires_grad_(False)
    trainer = make(
        tmp_path, model if of_policy else actor_path, tokenizer, value_model=None if of_policy else model, plan=four_plans,
        beta=0.0, max_steps=1, value_learning_rate=1e-2,
    )  # fmt: skip
    wake(trainer)
    kept = ("backbone.embed_tokens.", "backbone.layers.0.")
    names = {name for name, _ in trainer.value_model.named_parameters()}
    assert changed(trainer) == {name for name in names if not name.startswith(kept)}


@pytest.mark.parametrize("policy_has_one", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_model_with_an_adapter_is_a_critic_with_that_adapter(
    tmp_path, tokenizer, actor_path, policy_has_one, trainable
):
    """Its base stays as it is; a second adapter is not put on top of it."""
    fresh = get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), copy.deepcopy(LORA))
    stir(fresh, 6)
    fresh.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(actor_path)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=trainable)
    trainer = make(
        tmp_path / "run", actor_path, tokenizer, value_model=model, plan=four_plans, max_steps=1, beta=0.0,
        value_learning_rate=1e-2, **({"peft_config": copy.deepcopy(LORA)} if policy_has_one else {}),
    )  # fmt: skip
    wake(trainer)
    before = dict(fresh.named_parameters())
    for name, parameter in trainer.value_model.adapters.named_parameters():
        assert torch.equal(parameter, before[name]), name
    moved = changed(trainer)
    adapter = {name for name, _ in trainer.value_model.named_parameters() if "lora_" in name}
    assert len(adapter) == 8 and moved == adapter | {"head.weight", "head.bias"}
    trained = copy_parameters(trainer.value_model)
    trainer.value_model.save(tmp_path / "critic")
    with torch.no_grad():
        for name, parameter in trainer.value_model.named_parameters():
            if name in moved:
                parameter.zero_()
    trainer.value_model.load(tmp_path / "critic")
    assert_same_tensors(trained, copy_parameters(trainer.value_model), 0.0)


@pytest.mark.parametrize("disabled", [False, True])
def test_dropout_of_a_critic_is_off_in_evaluation_and_where_it_is_disabled(tmp_path, tokenizer, actor_path, disabled):
    trainer = make(
        tmp_path, actor_path, tokenizer, value_model=tiny_model("gpt2", resid_pdrop=0.3, embd_pdrop=0.3), beta=0.0,
        disable_dropout=disabled, eval_dataset=lookup_dataset(), per_device_eval_batch_size=4, max_steps=1,
    )  # fmt: skip
    wake(trainer)
    plain = copy.deepcopy(trainer.value_model).eval()
    seen = watch_credit(trainer)
    trainer.evaluate()
    trainer.train()
    for credit, off in zip(seen, (True, disabled), strict=True):
        with torch.no_grad():
            exact = torch.cat([oracle_values(plain, trajectory) for trajectory in credit["trajectories"]])
        difference = (credit["batch"]["old_values"][credit["mask"]] - exact).abs().max()
        assert difference < 1e-4 if off else difference > 0.01


# A head on the policy


def test_a_shared_critic_gives_one_gradient_for_both_losses(tmp_path, tokenizer, actor_path):
    """Policy and head against plain forwards of each turn: the clipped objective at ratio 1, plus `vf_coef` times the value loss."""
    gradients = {}
    for vf_coef in (0.1, 0.7):
        trainer = make(
            tmp_path, actor_path, tokenizer, value_model="shared", plan=four_plans, beta=0.0, vf_coef=vf_coef, max_steps=1,
            max_grad_norm=0.0, whiten_advantages=False,
        )  # fmt: skip
        wake(trainer)
        assert isinstance(trainer.value_model, SharedValueHead)
        assert [p.shape for p in trainer.value_model.parameters()] == [(1, 48), (1,)]
        oracle = AutoModelForCausalLM.from_pretrained(actor_path)
        head = copy.deepcopy(trainer.value_model.head)
        seen, of_head = watch_credit(trainer), Gradients(trainer.value_model)
        trainer.add_callback(of_head)
        recorder = record(trainer)
        passes = []
        trainer.model.model.register_forward_hook(lambda *args, p=passes: p.append(torch.is_grad_enabled()))
        trainer.train()
        assert passes.count(True) == 1  # the policy's loss and the critic's are one forward
        credit, objective, value_loss = seen[0], [], []
        for row, trajectory in enumerate(credit["trajectories"]):
            of_row = credit["batch"]["advantages"][row][credit["mask"][row]]
            returns = credit["batch"]["returns"][row][credit["mask"][row]]
            logps, values = [], []
            for turn in trajectory.turns:
                ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]])
                start = len(turn.prompt_ids) - 1
                hidden = oracle.model(input_ids=ids).last_hidden_state[0, start:-1]
                scores = torch.log_softmax(oracle.lm_head(hidden), dim=-1)
                logps.append(scores.gather(1, torch.tensor(turn.completion_ids)[:, None])[:, 0])
                values.append(head(hidden)[:, 0])
            logps, values = torch.cat(logps), torch.cat(values)
            torch.testing.assert_close(
                credit["batch"]["old_values"][row][credit["mask"][row]], values.detach(), atol=1e-4, rtol=1e-4
            )
            objective.append(of_row * torch.exp(logps - logps.detach()))
            value_loss.append(0.5 * (values - returns) ** 2)
        loss = -torch.cat(objective).mean() + vf_coef * torch.cat(value_loss).mean()
        loss.backward()
        torch.testing.assert_close(recorder.losses[0], loss.detach(), rtol=1e-3, atol=1e-4)
        assert_same_tensors(recorder.gradients[0], {n: p.grad for n, p in oracle.named_parameters()}, 1e-3)
        assert_same_tensors(of_head.steps[0], {"head.weight": head.weight.grad, "head.bias": head.bias.grad}, 1e-3)
        gradients[vf_coef] = recorder.gradients[0]
    key = "model.layers.0.mlp.up_proj.weight"
    assert (gradients[0.7][key] - gradients[0.1][key]).norm() > 0.1 * gradients[0.1][key].norm()


@pytest.mark.parametrize("setting", [{"num_iterations": 2}, {"kl_in_reward": True}], ids=lambda one: next(iter(one)))
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["whole", "adapter"])
def test_a_shared_critic_is_read_in_the_passes_of_old_logprobs(tmp_path, tokenizer, actor_path, setting, peft_config):
    """The values are the policy's, not those of the reference that is the policy without its adapter."""
    trainer = make(
        tmp_path, actor_path, tokenizer, value_model="shared", plan=four_plans, beta=0.3, max_steps=1,
        peft_config=peft_config, **setting,
    )  # fmt: skip
    stir(trainer.model, 1)
    wake(trainer)
    backbone_calls = []
    trainer.values = lambda batch: backbone_calls.append(batch)  # a pass of its own
    seen = watch_credit(trainer)
    trainer.train()
    assert backbone_calls == [] and len(seen) == 1 and trainer._readouts is None
    for row, values in enumerate(seen[0]["values"]):
        of_row = seen[0]["batch"]["old_values"][row][seen[0]["mask"][row]]
        torch.testing.assert_close(of_row, values, atol=1e-4, rtol=1e-4)
        if peft_config is not None:
            with trainer.model.disable_adapter(), torch.no_grad():
                of_reference = oracle_values(trainer.value_model, seen[0]["trajectories"][row])
            assert (of_row - of_reference).abs().max() > 1e-2


@pytest.mark.parametrize("layout", ["packed", "per_turn"])
def test_a_shared_critic_on_an_adapter(tmp_path, tokenizer, actor_path, layout):
    trainer = make(
        tmp_path, actor_path, tokenizer, layout, peft_config=LORA, value_model="shared", plan=four_plans, beta=0.3,
        max_steps=1, gradient_checkpointing=True, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    stir(trainer.model, 1)
    wake(trainer)
    before = copy_parameters(trainer.model)
    seen = watch_credit(trainer)
    of_head = Gradients(trainer.value_model)
    trainer.add_callback(of_head)
    trainer.train()
    for row, values in enumerate(seen[0]["values"]):
        torch.testing.assert_close(
            seen[0]["batch"]["old_values"][row][seen[0]["mask"][row]], values, atol=1e-4, rtol=1e-4
        )
    assert of_head.steps[0]["head.weight"].abs().max() > 1e-4
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
    trainer.value_model.save(tmp_path / "critic")
    assert [path.name for path in (tmp_path / "critic").iterdir()] == ["value_head.safetensors"]


# Warm-up


@pytest.mark.parametrize("critic", [None, "adapter", "shared"])
def test_the_policy_rests_while_the_critic_warms_up(tmp_path, tokenizer, actor_path, critic):
    """Bit for bit, whatever weight decay and momentum would do; then Adam takes its first step, whose size is the rate."""
    trainer = make(
        tmp_path, actor_path, tokenizer, peft_config=LORA if critic == "adapter" else None,
        value_model="shared" if critic == "shared" else None, plan=four_plans, beta=0.0, max_steps=4, critic_warmup_steps=2,
        weight_decay=0.5, value_learning_rate=1e-2, lr_scheduler_type="constant",
    )  # fmt: skip
    policies, critics = [copy_parameters(trainer.model)], [copy_parameters(trainer.value_model)]

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            policies.append(copy_parameters(trainer.model))
            critics.append(copy_parameters(trainer.value_model))

    trainer.add_callback(Watch())
    recorder = record(trainer)
    trainer.train()
    for step in (1, 2):
        assert_same_tensors(policies[0], policies[step], 0.0)
        assert not torch.equal(critics[step]["head.weight"], critics[step - 1]["head.weight"])
    first = {name: policies[3][name] - policies[2][name] for name in policies[0]}
    moved = [name for name, change in first.items() if change.any()]
    assert moved if critic != "adapter" else moved == [name for name in moved if "lora_" in name]
    learning_rate = trainer.args.learning_rate
    for name in moved:
        decay = learning_rate * 0.5 * float(policies[2][name].abs().max())
        assert float(first[name].abs().max()) <= learning_rate * 1.01 + decay, name
    assert max(float(first[name].abs().max()) for name in moved) > 0.9 * learning_rate
    logs = [logs for logs in recorder.logs if "loss" in logs]
    assert [entry["grad_norm"] == 0.0 for entry in logs] == [True, True, False, False]
    assert all("entropy" in entry and entry["value/grad_norm"] > 0 for entry in logs)


def test_warm_up_that_cannot_work_is_refused(tmp_path, tokenizer, actor_path):
    for settings, words in (
        ({"critic_warmup_steps": -1}, "critic_warmup_steps=-1 is negative"),
        ({"critic_warmup_steps": 2, "max_steps": 2}, "leaves nothing of the 2 steps of the run .*: lower it"),
        ({"critic_warmup_steps": 2, "vf_coef": 0.0, "max_steps": 5}, "without a value loss would train nothing"),
    ):
        with pytest.raises(ValueError, match=words):
            make(tmp_path, actor_path, tokenizer, **settings)


@pytest.fixture(scope="module")
def by_critic(tmp_path_factory, tokenizer, actor_path):
    """Checkpoints of runs with each kind of critic."""
    place = tmp_path_factory.mktemp("critics")
    kinds = {"own": None, "shared": "shared", "larger": trained_model(tokenizer, steps=1, hidden_size=64)}
    for name, critic in kinds.items():
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "value_model": copy.deepcopy(critic)}
        make(place / name, actor_path, tokenizer, **settings).train()
    return place, kinds


@pytest.mark.parametrize(
    ("saved", "resumed", "words"),
    [
        ("own", "shared", "is of a run with a critic of its own, got the critic value_model='shared'"),
        ("shared", "own", "is of a run with the critic value_model='shared', got a critic of its own"),
        ("own", "larger", "is of a run with another critic .*hidden_size=48 there, 64 here"),
    ],
)
def test_a_checkpoint_of_another_critic_is_refused(by_critic, tokenizer, actor_path, saved, resumed, words):
    place, kinds = by_critic
    again = make(place / saved, actor_path, tokenizer, max_steps=2, value_model=copy.deepcopy(kinds[resumed]))
    with pytest.raises(ValueError, match=words):
        again.train(resume_from_checkpoint=str(place / saved / "checkpoint-1"))


def test_a_checkpoint_without_what_is_resumed_is_refused(by_critic, tokenizer, actor_path):
    place, _ = by_critic
    checkpoint = str(place / "own" / "checkpoint-1")
    model = AutoModelForCausalLM.from_pretrained(actor_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    given = make(place / "own", model, tokenizer, max_steps=2, optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="is of a run with no `optimizers`, got optimizers="):
        given.train(resume_from_checkpoint=checkpoint)
    moving = make(
        place / "own", actor_path, tokenizer, max_steps=2, beta=0.1, sync_ref_model=True, ref_model_sync_steps=1
    )
    with pytest.raises(ValueError, match=r"has no mem1_reference.pt, .* resume with sync_ref_model=False"):
        moving.train(resume_from_checkpoint=checkpoint)
