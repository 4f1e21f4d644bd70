"""Context rules played by an agent, against contexts written out by hand: compaction, rewriting on demand, folding, rules of one's own."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from support.library import ANSWER, FACTS, TASK, Library, ShortRequest, seen, turn
from support.scripted_agent import scripted
from support.tool_helpers import template_tokenizer
from support.trainer_helpers import SHORT

from mem1_trl import ContextRule, Mem1Agent, Mem1Protocol, StopReason, Trajectory
from mem1_trl.context_rules import Fold, NextTurn, OnDemand
from mem1_trl.context_rules.rule import SUMMARY_REPLY
from mem1_trl.evaluation import evaluate_agent


class FirstAndLast(ContextRule):
    def next(self, past):
        return NextTurn(sorted({0, len(past) - 1}) if len(past) else [])


class AlwaysAsks(ContextRule):
    asks = True

    def next(self, past):
        return NextTurn(range(len(past)), summary=len(past) > 0)


ASKED = "Sum up in <think>.\n\n"


def play(actor, tokenizer, texts, protocol=SHORT, **settings):
    settings = {"max_turns": 6, "max_observation_length": 200, "conversational": False, **settings}
    agent = scripted(Mem1Agent(actor, tokenizer, protocol, **settings), tokenizer, texts)
    trajectory = agent.run(TASK, Library())
    prompt = tokenizer.decode(trajectory.prompt_ids)
    return trajectory, [tokenizer.decode(t.prompt_ids).removeprefix(prompt) for t in trajectory.turns], agent


def test_compact_asks_for_a_summary_that_takes_the_place_of_the_past(actor, tokenizer):
    texts = [turn("alps"), turn("loch"), "<think>high, deep</think>", turn("snow"), ANSWER]
    trajectory, read, _ = play(actor, tokenizer, texts, context=ShortRequest(every=2))
    past = turn("alps") + seen("alps", "5;") + turn("loch") + seen("loch", "4;")
    summary = "<think>high, deep</think>" + seen(SUMMARY_REPLY, "4;")
    assert read == [
        "",
        turn("alps") + seen("alps", "5;"),
        past + ASKED,
        summary,  # the request is gone, and no turn was used up
        summary + turn("snow") + seen("snow", "3;"),
    ]
    one = trajectory.turns[2]
    assert (one.context_action, one.replaced_turns, one.action, one.state) == ("summary", (0, 1), None, "high, deep")
    assert one.saved_tokens == len(tokenizer(past)["input_ids"]) - len(tokenizer(summary)["input_ids"])
    assert (one.state_begin, one.state_tokens) == (0, len(one.completion_ids))
    assert [t.context_action for t in trajectory.turns] == [None, None, "summary", None, None]
    assert trajectory.answer == "x" and trajectory.metrics["valid_action_rate"] == 1.0
    assert trajectory.metrics["summaries"] == 1 and trajectory.metrics["summary_tokens"] == len(one.completion_ids)
    # information, alps, are, high, loch, is, deep and two numbers of hints were observed; high and deep are in the summary
    assert trajectory.metrics["summary_words_kept"] == pytest.approx(2 / 9)


def test_a_budget_counts_the_tokens_of_the_context(actor, tokenizer):
    two = len(tokenizer(TASK + turn("alps") + seen("alps", "5;") + turn("loch") + seen("loch", "4;"))["input_ids"])
    texts = [turn("alps"), turn("loch"), turn("snow"), "<think>s</think>", ANSWER]
    trajectory, _, _ = play(actor, tokenizer, texts, context=ShortRequest(budget=two))
    assert [t.context_action for t in trajectory.turns] == [None, None, None, "summary", None]
    trajectory, _, _ = play(
        actor, tokenizer, [*texts[:2], "<think>s</think>", ANSWER], context=ShortRequest(budget=two - 1)
    )
    assert [t.context_action for t in trajectory.turns] == [None, None, "summary", None]
    by_fraction = ShortRequest(fraction=0.25)
    trajectory, _, _ = play(actor, tokenizer, texts, context=by_fraction, max_context_length=4 * two)
    assert [t.context_action for t in trajectory.turns] == [None, None, None, "summary", None]


def test_every_turn_may_be_followed_by_a_summary(actor, tokenizer):
    """No summary is counted as a turn, in both modes of the rollout."""
    texts = [one for query in ("alps", "loch") for one in (turn(query), "<think>s</think>")]
    for mode in ("async", "lockstep"):
        settings = {"context": ShortRequest(every=1), "max_turns": 3, "rollout_mode": mode}
        trajectory, _, _ = play(actor, tokenizer, [*texts, ANSWER], **settings)
        assert trajectory.stop_reason is StopReason.ANSWER and len(trajectory.turns) == 5


def test_one_observation_that_exceeds_the_budget_is_summarized_at_once(actor, tokenizer):
    texts = [turn("bus"), "<think>bus</think>", ANSWER]
    trajectory, read, _ = play(actor, tokenizer, texts, context=ShortRequest(budget=60))
    assert read[2] == "<think>bus</think>" + seen(SUMMARY_REPLY, "5;")
    assert trajectory.metrics["summaries_of_one_turn"] == 1.0
    # The reply alone exceeds the budget, and the agent acts all the same
    assert trajectory.stop_reason is StopReason.ANSWER


def test_a_summary_longer_than_what_it_replaces_stands_and_is_counted(actor, tokenizer):
    texts = [turn("alps"), f"<think>{'w' * 90}</think>", ANSWER]
    trajectory, read, _ = play(actor, tokenizer, texts, context=ShortRequest(every=1))
    assert read[2].startswith(texts[1])
    assert trajectory.turns[1].saved_tokens < 0
    assert trajectory.metrics["summaries_longer"] == 1.0
    assert trajectory.metrics["summary_saved_tokens"] == trajectory.turns[1].saved_tokens


def test_a_summary_that_is_cut_ends_the_episode(actor, tokenizer):
    settings = {"context": ShortRequest(every=1), "max_completion_length": 50}
    agent = Mem1Agent(
        actor, tokenizer, SHORT, max_turns=6, max_observation_length=200, conversational=False, **settings
    )
    agent = scripted(agent, tokenizer, [turn("alps"), "<think>" + "w" * 90])
    agent._shared.generator.max_length = 50
    trajectory = agent.run(TASK, Library())
    assert trajectory.stop_reason is StopReason.TRUNCATED
    assert trajectory.turns[1].context_action == "unfinished_summary" and trajectory.turns[1].replaced_turns is None
    assert trajectory.metrics["summaries_unfinished"] == 1.0 and trajectory.metrics["summaries"] == 0.0
    assert "summary_words_kept" not in trajectory.metrics


def test_a_summary_without_its_tags_is_the_whole_text(actor, tokenizer):
    texts = [turn("alps"), "it is high<eos>", ANSWER]
    trajectory, read, _ = play(actor, tokenizer, texts, context=ShortRequest(every=1))
    assert trajectory.turns[1].state == "it is high" and trajectory.turns[1].action is None
    assert read[2] == "it is high<eos>" + seen(SUMMARY_REPLY, "5;")
    # An action in a summary is not called
    texts = [turn("alps"), "<search>loch</search><think>high</think>", ANSWER]
    trajectory, _, _ = play(actor, tokenizer, texts, context=ShortRequest(every=1))
    assert trajectory.turns[1].text == texts[1] and trajectory.turns[1].state == "high"


def test_a_summary_turn_that_does_not_fit_the_window_ends_the_episode(actor, tokenizer):
    room = len(tokenizer(TASK + turn("alps") + seen("alps", "5;"))["input_ids"])
    trajectory, _, _ = play(actor, tokenizer, [turn("alps")], context=ShortRequest(every=1), max_context_length=room)
    assert trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW


def test_on_demand_the_agent_rewrites(actor, tokenizer):
    rewrite = "<think>r</think><rewrite>high, deep</rewrite>"
    texts = [turn("alps"), turn("loch"), rewrite, turn("snow"), ANSWER]
    protocol = dataclasses.replace(SHORT, instructions="{prompt}{actions}")
    trajectory, read, _ = play(actor, tokenizer, texts, protocol, context="on_demand")
    assert "<rewrite>summary</rewrite>: Forget everything" in tokenizer.decode(trajectory.prompt_ids)
    past = turn("alps") + seen("alps", "5;") + turn("loch") + seen("loch", "4;")
    kept = rewrite + seen("Everything before this summary is forgotten.", "3;")
    assert read == [
        "",
        turn("alps") + seen("alps", "5;"),
        past,
        kept,
        kept + turn("snow") + seen("snow", "2;"),
    ]
    one = trajectory.turns[2]
    assert (one.context_action, one.replaced_turns, one.action) == ("rewrite", (0, 1), "rewrite")
    assert one.state_tokens == len(one.completion_ids), "what stays of the past is the whole turn"
    assert trajectory.metrics["summaries"] == 1.0


def test_fold_keeps_only_what_a_branch_returns(actor, tokenizer):
    opened, closed = "<branch>heights</branch>", "<close_branch>high</close_branch>"
    texts = [turn("loch"), opened, turn("alps"), opened, closed, closed, ANSWER]
    trajectory, read, _ = play(actor, tokenizer, texts, context="fold", max_turns=9)
    main = turn("loch") + seen("loch", "8;") + opened
    main += seen("The branch is open. Return from it with close_branch.", "7;")
    inside = turn("alps") + seen("alps", "6;")
    twice = opened + seen("Error: a branch is open already: close it with close_branch first.", "5;")
    returned = closed + seen("The branch is closed.", "4;")
    assert read[4] == main + inside + twice
    assert read[5] == main + returned
    assert read[6] == main + returned + closed + seen("Error: no branch is open: open one with branch first.", "3;")
    assert [t.context_action for t in trajectory.turns] == [None, "branch", None, None, "close_branch", None, None]
    assert trajectory.turns[4].replaced_turns == (2, 3)


def test_with_tool_calls_the_request_is_in_the_last_result(actor):
    tokenizer = template_tokenizer()
    call = '<think>t</think><tool_call>\n{"name": "search", "arguments": {"query": "alps"}}\n</tool_call><|im_end|>'
    texts = [call, "<think>high</think><|im_end|>", "<think>d</think>x<|im_end|>"]
    settings = {"context": ShortRequest(every=1), "conversational": None}
    documented = type("Documented", (Library,), {})
    documented.search = lambda self, query: FACTS[query]
    documented.search.__doc__ = "Look a fact up.\n\nArgs:\n    query: What to look for."
    documented.search.__annotations__ = {"query": str, "return": str}
    agent = Mem1Agent(
        actor, tokenizer, Mem1Protocol.tool_calls(), max_turns=6, max_observation_length=200, max_context_length=1500, **settings
    )  # fmt: skip
    trajectory = scripted(agent, tokenizer, texts).run(TASK, documented())
    prompt = tokenizer.decode(trajectory.prompt_ids)
    read = [tokenizer.decode(t.prompt_ids).removeprefix(prompt) for t in trajectory.turns]
    assert read[1].startswith(call) and read[1].index("alps are high") < read[1].index("Sum up in <think>.")
    # The result ends after the request, and the agent's own turn begins
    assert "</tool_response><|im_end|>\n<|im_start|>assistant\n" in read[1].split("Sum up in <think>.")[1].replace(
        "\n</tool_response>", "</tool_response>"
    )
    assert read[2].startswith("<think>high</think><|im_end|>\n<|im_start|>user\n") and SUMMARY_REPLY in read[2]
    assert trajectory.turns[1].state == "high" and trajectory.answer == "x"


def test_a_chat_endpoint_reads_the_same(tokenizer):
    """Messages hold what the contexts hold; a reply that is only a thought is what was asked for, and asked for once."""
    asked = []
    replies = [
        {"content": turn("alps")}, {"content": turn("loch")}, {"content": "", "reasoning_content": "high, deep"}, {"content": ANSWER},
    ]  # fmt: skip

    def create(**request):
        asked.append(request)
        message = SimpleNamespace(**{"tool_calls": None, "reasoning_content": None, **replies[len(asked) - 1]})
        return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")])

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    agent = Mem1Agent(
        "m", tokenizer, SHORT, client=client, context=ShortRequest(every=2), max_observation_length=200, conversational=False
    )  # fmt: skip
    trajectory = agent.run(TASK, Library())
    past = turn("alps") + seen("alps", "5;") + turn("loch") + seen("loch", "4;")
    said = [request["messages"][-1]["content"] for request in asked]
    assert said[2] == TASK + "\n\n" + past + ASKED and asked[2]["stop"] == ["</think>"]
    assert said[3] == TASK + "\n\n<think>high, deep</think>" + seen(SUMMARY_REPLY, "4;")
    assert [t.context_action for t in trajectory.turns] == [None, None, "summary", None]
    assert trajectory.turns[2].text == "<think>high, deep</think>", "no end token, as the student would have stopped"
    assert tokenizer.decode(trajectory.turns[3].prompt_ids) == TASK + said[3].removeprefix(TASK + "\n\n")


def test_an_evaluation_says_what_summaries_lost(actor, tokenizer):
    texts = [turn("alps"), turn("loch"), "<think>high</think>", turn("snow"), ANSWER]
    settings = {
        "max_turns": 6,
        "max_observation_length": 200,
        "conversational": False,
        "context": ShortRequest(every=2),
    }
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **settings), tokenizer, texts)
    rows = [{"prompt": TASK, "answers": [["high"], ["deep"], ["snow"]]}]
    evaluation = evaluate_agent(agent, rows, Library)
    # Both were read before the summary; what was seen after it was not lost by it
    assert evaluation.metrics["summary_lost_answers"] == 1.0
    assert evaluation.metrics["summaries"] == 1.0 and evaluation.settings["context_kwargs"]["every"] == 2
    assert Trajectory.from_dict(evaluation.tasks[0].trajectory.to_dict()).turns == evaluation.tasks[0].trajectory.turns


def test_an_episode_goes_on_from_a_file_in_the_middle(actor, tokenizer, tmp_path):
    texts = [turn("alps"), turn("loch"), "<think>high, deep</think>", turn("snow"), ANSWER]
    settings = {"max_turns": 6, "max_observation_length": 200, "conversational": False}
    whole, _, _ = play(actor, tokenizer, texts, context=ShortRequest(every=2))
    for cut in range(1, 5):
        first = scripted(
            Mem1Agent(actor, tokenizer, SHORT, context=ShortRequest(every=2), **settings), tokenizer, texts
        )
        episode = first.start(TASK, Library())
        for _ in range(cut):
            episode.step()
        episode.save(tmp_path / "episode.json")
        other = Mem1Agent(actor, tokenizer, SHORT, context=ShortRequest(every=2), **settings)
        loaded = scripted(other, tokenizer, texts[cut:]).load(tmp_path / "episode.json", Library())
        assert loaded.run().turns == whole.turns


def test_a_rule_of_ones_own(actor, tokenizer):
    texts = [turn("alps"), turn("loch"), turn("snow"), ANSWER]
    _, read, _ = play(actor, tokenizer, texts, context=FirstAndLast())
    assert read[3] == turn("alps") + seen("alps", "5;") + turn("snow") + seen("snow", "3;")


class LastTwo(ContextRule):
    """Keeps them by an iterator, which can be read once."""

    recalls = True

    def next(self, past):
        return NextTurn(filter(lambda index: index >= len(past) - 2, range(len(past))))


def test_a_rule_may_keep_turns_by_an_iterator(actor, tokenizer):
    texts = [turn("alps"), turn("loch"), turn("snow"), ANSWER]
    _, read, _ = play(actor, tokenizer, texts, context=LastTwo())
    assert read[2] == turn("alps") + seen("alps", "5;") + turn("loch") + seen("loch", "4;")


def test_what_is_kept_is_not_recalled_beside_it(actor, tokenizer):
    """The rule keeps two turns, and an external memory has the results of all."""
    texts = [turn("alps"), turn("alps snow"), turn("alps"), turn("loch"), ANSWER]
    _, read, _ = play(actor, tokenizer, texts, context=LastTwo(), max_observation_length=200)
    assert [text.count(FACTS["alps"]) for text in read] == [0, 1, 1, 1, 1]


class Notebook(ContextRule):
    actions = ("note",)

    def next(self, past):
        return NextTurn(range(max(len(past) - 1, 0), len(past)))

    def note(self, text: str) -> str:
        """
        Write a note.

        Args:
            text: The note.
        """
        if len(text) > 3:
            raise ValueError("a note has at most 3 characters")
        return "Noted."


def test_an_action_of_a_rule_that_raises_is_an_observation(actor, tokenizer):
    texts = ["<think>s</think><note>long</note>", "<think>s</think><note>abc</note>", ANSWER]
    trajectory, _, _ = play(actor, tokenizer, texts, context=Notebook())
    assert "Error: a note has at most 3 characters" in trajectory.turns[0].observation
    assert "Noted." in trajectory.turns[1].observation and trajectory.metrics["failed_actions"] == 1
    assert [t.context_action for t in trajectory.turns[:2]] == [None, "note"]


class Wrong(ContextRule):
    def next(self, past):
        return NextTurn([len(past)])


class WrongLater(ContextRule):
    def next(self, past):
        return NextTurn([len(past)] if len(past) else [])


class KeepsMoreThanItSays(ContextRule):
    last_turn_only = True

    def next(self, past):
        return NextTurn(range(len(past)))


class ReturnsAList(ContextRule):
    def next(self, past):
        return list(range(len(past)))


class Missing(LastTwo):
    actions = ("nope",)


class Asynchronous(LastTwo):
    actions = ("note",)

    async def note(self, text: str) -> str:
        """Note a text."""
        return text


class Silent(LastTwo):
    actions = ("note",)

    def note(self, text: str) -> None:
        """Note a text."""


def test_what_is_wrong_with_a_rule_of_ones_own_is_a_sentence(actor, tokenizer):
    with pytest.raises(TypeError, match=r"ReturnsAList.next must return a NextTurn, got a list"):
        play(actor, tokenizer, [turn("alps")], context=ReturnsAList())
    for rule, words in (
        (Missing(), "got 'nope': it has none of this name"),
        (Asynchronous(), "got 'note': it is an asynchronous one"),
    ):
        with pytest.raises(
            TypeError, match=f"actions must name methods of the rule that are called without `await`, {words}"
        ):
            play(actor, tokenizer, [turn("alps")], context=rule)


def test_an_action_of_a_rule_that_returns_nothing_shows_nothing(actor, tokenizer):
    """The agent read `None`."""
    trajectory, _, _ = play(actor, tokenizer, ["<think>s</think><note>abc</note>", ANSWER], context=Silent())
    assert "None" not in trajectory.turns[0].observation and trajectory.turns[0].context_action == "note"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Wrong(), r"Wrong.next must keep no turn before the first one, of which there is none yet, got \[0\]"),
        (WrongLater(), r"WrongLater.next must keep turns by their indices, ascending and from 0 to 0, got \[1\]"),
        (
            KeepsMoreThanItSays(),
            r"KeepsMoreThanItSays.next must keep the last turn alone, 1, since KeepsMoreThanItSays.last_turn_only is True, got \[0, 1\]",
        ),
        (AlwaysAsks(), "AlwaysAsks.next asked for a summary, which needs `asks = True`, a turn that is kept"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_an_error(actor, tokenizer, rule, words):
    with pytest.raises(ValueError, match=words):
        play(actor, tokenizer, [turn("alps"), turn("iron"), "<think>s</think>"], context=rule)


def test_an_action_of_the_rule_must_not_be_one_of_the_environment(actor, tokenizer):
    class Branching(Library):
        def branch(self, name: str) -> str:
            """Look at a branch of the library."""
            return name

    agent = Mem1Agent(actor, tokenizer, SHORT, context=Fold())
    with pytest.raises(ValueError, match="The context rule has an action 'branch', which is one of the environment"):
        agent.run(TASK, Branching())
    assert OnDemand.actions == ("rewrite",)
