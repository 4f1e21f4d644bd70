"""The value of the state in which an episode was cut, in the credit of PPO."""

from __future__ import annotations

import copy

import pytest
import torch
from support.helpers import tiny_model
from support.ppo_helpers import make, wake, watch_credit
from support.trainer_helpers import ScriptedGenerator

from mem1_trl import StopReason, Turn
from mem1_trl.update.critic.bootstrap import values_after


def script(call: int, index: int, prompt: str) -> str:
    """Four episodes: one answers, one is cut in its second turn, one in its first, and one uses up its turns."""
    if index == 2 and call == 0:
        return "<think>this is never closed"
    if call == 1 and "ba" in prompt:
        return "<think>nor is this one"
    if "q0?" in prompt:
        return "<think>k</think><answer>0</answer>"
    return "<think>ba</think><search>x</search>" if "q1?" in prompt else "<think>k</think><search>y</search>"


def plain_gae(rewards, values, gamma, lam, final):
    """The double sum of arXiv 1506.02438, equation 16, with a value after the last token."""
    following = [*values[1:], final]
    deltas = [r + gamma * f - v for r, f, v in zip(rewards, following, values)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, len(deltas))) for t in range(len(deltas))]


@pytest.mark.parametrize("layout", ["packed", "per_turn"])
@pytest.mark.parametrize("bootstrap", [True, False])
def test_a_cut_episode_goes_on_with_the_value_of_its_state(bootstrap, layout, tmp_path, tokenizer, actor_path):
    gamma, lam = 0.97, 0.9
    trainer = make(
        tmp_path, actor_path, tokenizer, layout, gamma=gamma, lam=lam, beta=0.0, whiten_advantages=False, max_steps=1,
        max_turns=2, shuffle_dataset=False, bootstrap_truncated=bootstrap, per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.rollout.generate = ScriptedGenerator(tokenizer, script, max_length=12)
    wake(trainer)
    seen = watch_credit(trainer)
    critic = copy.deepcopy(trainer.value_model)  # as it is before the step
    trainer.train()
    (credit,) = seen
    stops = [trajectory.stop_reason for trajectory in credit["trajectories"]]
    assert stops == [StopReason.ANSWER, StopReason.TRUNCATED, StopReason.TRUNCATED, StopReason.MAX_TURNS]
    assert [len(trajectory.turns) for trajectory in credit["trajectories"]] == [1, 2, 1, 2]
    finals = []
    for row, trajectory in enumerate(credit["trajectories"]):
        mask, values = credit["mask"][row], credit["values"][row]
        final = 0.0
        if bootstrap and stops[row] == StopReason.TRUNCATED:
            turn = trajectory.turns[-1]
            ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]])
            with torch.no_grad():
                final = float(critic(input_ids=ids)[0, -1])
            finals.append(abs(final))
        rewards = [0.0] * (len(values) - 1) + [float(credit["rewards"][row])]
        expected = torch.tensor(plain_gae(rewards, values.tolist(), gamma, lam, final))
        torch.testing.assert_close(credit["batch"]["advantages"][row][mask], expected, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(credit["batch"]["returns"][row][mask], expected + values, atol=2e-4, rtol=1e-3)
    if bootstrap:
        assert min(finals) > 0.05


def test_the_token_after_a_cut_turn_has_a_position_too(tmp_path, tokenizer, actor_path):
    """A value is that before a token, so one more is read than was sampled: a model with learned positions has no embedding beyond its last."""
    model = tiny_model("gpt2")
    room = model.config.n_positions - 8
    plain, more = (
        make(
            tmp_path, copy.deepcopy(model), tokenizer, bootstrap_truncated=bootstrap, max_completion_length=8, beta=0.0
        )
        for bootstrap in (False, True)
    )
    assert (plain.settings.max_context_length, more.settings.max_context_length) == (room, room - 1)
    turn = Turn((5,) * (room - 1), (7,) * 8)
    assert values_after([turn], more.value_model, 1, 1).shape == (1,)
    with pytest.raises(ValueError, match="with 1 more that is read after a completion"):
        make(
            tmp_path,
            model,
            tokenizer,
            bootstrap_truncated=True,
            max_completion_length=8,
            max_context_length=room,
            beta=0.0,
        )
