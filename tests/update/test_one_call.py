"""When turns are forwarded in one call, though calls of like length would be cheaper: a loss of the whole batch, and several processes."""

from __future__ import annotations

import pytest
import torch
from support.helpers import tiny_model
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl.trainer.utils import add_fused_lm_head

from mem1_trl import Trajectory, Turn
from mem1_trl.update.layout_model import LayoutModel
from mem1_trl.update.row_batch import RowBatch
from mem1_trl.update.rows import build_row
from mem1_trl.update.unfolding import unfold_turns

EPISODES = [
    Trajectory(turns=[Turn((3, 4, 5), (6, 7)), Turn((3, 4, 5, 8, *range(10, 40)), (9, 6, 5))]),
    Trajectory(turns=[Turn((3, 4), (7,)), Turn((3, 4, 9), (5, 8))]),
]


def rows_of(episodes: list[Trajectory]) -> RowBatch:
    return RowBatch.from_rows([build_row(episode, "per_turn") for episode in episodes])


@pytest.mark.parametrize("asked", [True, False])
def test_the_load_balancing_loss_is_that_of_all_turns(asked):
    """As the plain model computes it of all turns side by side; and log-probs are the same without it, in several calls."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = tiny_model("qwen3", model_type="qwen3_moe", **experts).eval()
    calls = []

    add_fused_lm_head(model)

    def policy(input_ids, **options):
        calls.append(len(input_ids))
        return model(input_ids=input_ids, fused_lm_head=True, **options)

    rows = rows_of(EPISODES)
    options = {"output_router_logits": True} if asked else {}
    with torch.no_grad():
        outputs = LayoutModel(policy, model, rows, "per_turn")(rows.input_ids, rows.attention_mask, **options)
    turns = [turn for episode in EPISODES for turn in episode.turns]
    sequences = [torch.tensor([*turn.prompt_ids, *turn.completion_ids]) for turn in turns]
    expected = []
    for sequence, turn in zip(sequences, turns):
        with torch.no_grad():
            logps = model(sequence[None]).logits[0, :-1].log_softmax(-1)
        expected.append(logps.gather(1, sequence[1:, None])[len(turn.prompt_ids) - 1 :, 0])
    torch.testing.assert_close(outputs.log_probs[rows.tool_mask[:, 1:]], torch.cat(expected), atol=1e-5, rtol=0)
    if not asked:
        assert len(calls) > 1 and outputs.aux_loss is None
        return
    assert calls == [len(turns)]
    pad = torch.nn.utils.rnn.pad_sequence
    ids, mask = pad(sequences, batch_first=True), pad([torch.ones_like(s) for s in sequences], batch_first=True)
    with torch.no_grad():
        routed = model.model(input_ids=ids, attention_mask=mask, output_router_logits=True).router_logits
    loss = float(load_balancing_loss_func(routed, 4, 2, mask))
    assert float(outputs.aux_loss) == pytest.approx(loss, rel=1e-5)
    # And not that of the longest or of the shortest turns alone
    with torch.no_grad():
        part = model.model(input_ids=ids[1:2], attention_mask=mask[1:2], output_router_logits=True).router_logits
    assert abs(float(load_balancing_loss_func(part, 4, 2, mask[1:2])) - loss) > 1e-3 * loss


@pytest.mark.parametrize("processes", [1, 2])
def test_several_processes_forward_all_turns_in_one_call(processes):
    """They have turns of different lengths, and must call a model in shards equally often."""
    turns = unfold_turns(rows_of(EPISODES))
    torch.distributed.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        calls = turns.calls()
    finally:
        torch.distributed.destroy_process_group()
    widths = [tuple(call.input_ids.shape) for call in calls]
    assert widths == ([(4, 37)] if processes == 2 else [(1, 37), (3, 5)])
