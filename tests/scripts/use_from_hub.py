"""Load an agent by id from the Hub that HF_ENDPOINT names and play a task: `use_from_hub.py REPOSITORY CONVERSATIONAL`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.trainer_helpers import LookupEnvironment

from mem1_trl import Mem1Agent


def main() -> None:
    agent = Mem1Agent.from_pretrained(sys.argv[1])
    task = [{"role": "user", "content": "q1?"}] if sys.argv[2] == "conversational" else "q1?"
    trajectory = agent.run(task, LookupEnvironment(), secret="2")
    print(json.dumps({
        "prompt": agent.tokenizer.decode(trajectory.prompt_ids), "turns": len(trajectory.turns),
        "tokens": [turn.completion_ids for turn in trajectory.turns], "reward": trajectory.reward,
        "max_turns": agent.settings.max_turns, "max_observation_length": agent.settings.max_observation_length,
        "max_completion_length": agent.settings.max_completion_length, "protocol": agent.protocol.to_dict(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
