"""`disable_dropout` makes a model compute in training what it computes in evaluation, in whatever form its dropout is."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.helpers import oracle_logprobs, tiny_model
from support.ppo_helpers import four_plans, make, oracle_values

from mem1_trl.trainers.dropout import silence_dropout

FORMS = {
    "a module": ("gpt2", {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}),
    "a number of attention": ("llama", {"attention_dropout": 0.3}),
    "numbers of StarCoder2": ("qwen2", {"model_type": "starcoder2", "residual_dropout": 0.3, "embedding_dropout": 0.3}),
    "numbers of Seed-OSS": ("llama", {"model_type": "seed_oss", "residual_dropout": 0.3, "attention_dropout": 0.3}),
    "a number of the configuration": ("llama", {"model_type": "persimmon", "attention_dropout": 0.5, "hidden_dropout": 0.3}),
    "skipped layers": ("gpt2", {"model_type": "opt", "layerdrop": 0.5, "dropout": 0.2, "ffn_dim": 48, "hidden_size": 32,
                                "num_attention_heads": 4, "num_hidden_layers": 3, "word_embed_proj_dim": 32}),
    "noise of a router": (
        "qwen3",
        {"model_type": "mixtral", "router_jitter_noise": 0.4, "num_local_experts": 4, "sliding_window": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("form", FORMS)
def test_a_silenced_model_trains_as_it_evaluates(form, implementation):
    architecture, settings = FORMS[form]
    model = tiny_model(architecture, implementation, **settings)
    ids = torch.arange(2, 42).view(2, 20)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.train()
        torch.manual_seed(0)
        assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-3), "there is something to silence"
        silence_dropout(model)
        torch.manual_seed(0)
        torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_number_of_the_configuration_is_named(caplog):
    model = tiny_model("llama", model_type="persimmon", attention_dropout=0.5, hidden_dropout=0.0)
    silence_dropout(model)
    assert "reads attention_dropout=0.5 from its configuration when it is called" in caplog.text
    assert model.config.attention_dropout == 0.0
    caplog.clear()
    silence_dropout(tiny_model("llama", attention_dropout=0.5))
    assert caplog.text == ""


def test_what_is_no_probability_stays():
    """A threshold of PhiMoE has the name of a noise, and the other names hold what they held."""
    model = tiny_model(
        "qwen3", model_type="phimoe", router_jitter_noise=0.02, input_jitter_noise=0.3, num_local_experts=4
    )
    before = {n: v for n, v in vars(model.model.layers[0].mlp.router).items() if not n.startswith("_")}
    silence_dropout(model)
    after = vars(model.model.layers[0].mlp.router)
    assert {name for name, value in before.items() if after[name] != value} == {"input_jitter_noise"}
    assert before["router_jitter_noise"] == 0.02


def test_dropout_of_adapters_is_silenced_too():
    model = get_peft_model(
        tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
    )
    ids = torch.arange(2, 42).view(2, 20)
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        silence_dropout(model.train())
        torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value_model", [None, "path"])
@pytest.mark.parametrize("disable", [True, False])
def test_policy_reference_and_critic_are_silent(value_model, disable, tmp_path, tokenizer):
    """Log-probs and values of a trainer that trains, held against plain forwards in evaluation mode."""
    path = str(tmp_path / "model")
    tiny_model("llama", attention_dropout=0.4).save_pretrained(path)
    trainer = make(
        tmp_path, path, tokenizer, plan=four_plans, max_steps=1, disable_dropout=disable, beta=0.1,
        whiten_advantages=False, value_model=path if value_model else None,
    )  # fmt: skip
    torch.nn.init.normal_(trainer.value_model.head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    oracles, trained = {}, {}
    extend, extra = trainer.extend_batch, trainer.extra_loss

    def extend_batch(batch, trajectories, rewards):
        extend(batch, trajectories, rewards)
        modules = (trainer.model, trainer.ref_model, trainer.value_model)
        modes = [module.training for module in modules]
        with torch.no_grad():
            for name, module in zip(("policy", "reference", "critic"), modules):
                module.eval()
                score = oracle_values if name == "critic" else lambda model, t: torch.cat(oracle_logprobs(model, t))
                oracles[name] = torch.cat([score(module, trajectory) for trajectory in trajectories])
        for module, mode in zip(modules, modes):
            module.train(mode)

    def extra_loss(batch):
        loss = extra(batch)
        order = batch["episode_ids"].argsort()
        mask = (batch["completion_mask"] * batch["tool_mask"]).bool()[order]
        found = {
            "policy": trainer._last_logps,
            "reference": batch["ref_per_token_logps"],
            "critic": trainer.last_values,
        }
        trained.update({name: tensor[order][mask] for name, tensor in found.items()})
        return loss

    trainer.extend_batch, trainer.extra_loss = extend_batch, extra_loss
    trainer.train()
    close = {name: torch.allclose(trained[name], oracles[name], atol=1e-4) for name in oracles}
    assert close == {"policy": disable, "reference": True, "critic": disable}
