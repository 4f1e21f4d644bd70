"""
Errors of each layout in log-probs and gradients, against scoring every turn on its own in plain transformers.

    python scripts/measure_exactness.py            # prints the table of docs/gradient.md

Random weights in float32, random trajectories of six turns (prompt 40, state and action 20 to 40, observation 30 to 60
tokens). How large the error of `paper` is depends on the weights. That the other two differ only by rounding does not.
"""

import random

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mem1_trl import StopReason, Trajectory, Turn, score_trajectories

VOCABULARY = 512
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=4096,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=1,
)
MODELS = {
    "Llama": dict(model_type="llama", **SIZES),
    "Qwen2": dict(model_type="qwen2", **SIZES),
    "Qwen3": dict(model_type="qwen3", **SIZES),
    "Gemma": dict(model_type="gemma", **SIZES),
    "GPT-2": dict(
        model_type="gpt2",
        vocab_size=VOCABULARY,
        n_embd=128,
        n_layer=6,
        n_head=4,
        n_positions=4096,
        bos_token_id=1,
        eos_token_id=1,
    ),
}


def random_trajectory(generator: random.Random) -> Trajectory:
    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(generator.randrange(2, VOCABULARY) for _ in range(generator.randint(low, high)))

    prompt, past, turns = ids(40, 40), (), []
    for _ in range(6):
        completion = ids(20, 40)
        turns.append(Turn(prompt_ids=prompt + past, completion_ids=completion))
        past = completion + ids(30, 60)
    return Trajectory(turns=turns, stop_reason=StopReason.ANSWER)


def truth(model, trajectories) -> list[torch.Tensor]:
    scores = []
    for trajectory in trajectories:
        for turn in trajectory.turns:
            ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]])
            logits = model(input_ids=ids).logits[0, len(turn.prompt_ids) - 1 : -1]
            targets = ids[0, len(turn.prompt_ids) :, None]
            scores.append(torch.log_softmax(logits, -1).gather(1, targets).squeeze(1))
    return scores


def gradient(model, scores) -> torch.Tensor:
    model.zero_grad()
    torch.cat(scores).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main() -> None:
    generator = random.Random(0)
    trajectories = [random_trajectory(generator) for _ in range(3)]
    print("| model | layout | log-prob, mean abs. difference | largest | gradient, relative error |")
    print("|---|---|---|---|---|")
    for name, spec in MODELS.items():
        spec = dict(spec)
        torch.manual_seed(0)
        config = AutoConfig.for_model(spec.pop("model_type"), **spec)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
        with torch.no_grad():  # default weights are so small that context hardly matters
            for key, parameter in model.named_parameters():
                if parameter.ndim >= 2 and not any(part in key for part in ("embed", "wte", "wpe", "lm_head")):
                    parameter.mul_(3.0)
        expected = truth(model, trajectories)
        expected_gradient = gradient(model, expected)
        for layout in ("packed", "per_turn", "paper"):
            scores = [s for row in score_trajectories(model, trajectories, layout=layout) for s in row]
            gap = (torch.cat(scores) - torch.cat(expected)).abs().detach()
            error = (gradient(model, scores) - expected_gradient).norm() / expected_gradient.norm()
            print(f"| {name} | `{layout}` | {gap.mean():.1e} | {gap.max():.1e} | {error:.1e} |")


if __name__ == "__main__":
    main()
