"""The turns of episodes: contexts, completions, actions, observations; and the loop in which all episodes take each turn together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from ..context_rules.rule import SUMMARY_REPLY
from ..environment_runtime.actions import ActionResult
from ..environment_runtime.calls import EnvironmentCaller
from ..environment_runtime.pool import own_loop
from ..protocol.edited_state import edited_ids
from ..protocol.encoding import decode, encode_text, tokens_of_span
from ..protocol.parsed_turn import ActionRequest, ParsedTurn
from ..protocol.protocol import CALLS_LEFT_OUT
from ..trajectory import SUMMARY, UNFINISHED_SUMMARY, StopReason, Trajectory, Turn
from .acting import Acting, run_actions
from .as_ready import play_asynchronously
from .contexts import ContextBuilder
from .draws import uniform_draws
from .episode import Episode
from .observations import ObservationEncoder, ObservationIds
from .stopping import StopStrings
from .turn_request import TurnRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from ..protocol.protocol import Mem1Protocol
    from ..protocol.syntax import ActionSyntax
    from .generation import TurnGenerator
    from .server_rollout import OpenTurns
    from .settings import AgentSettings
    from .stopping import Completion


class Rollout:
    """
    Plays episodes to their end.

    In lockstep each turn generates for all episodes that still run, calls all their actions simultaneously and waits for the slowest.
    Otherwise each episode goes on as soon as its own actions have returned, see [`~mem1_trl.rollout.as_ready`].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Encodes observations, decodes completions.
        protocol ([`Mem1Protocol`]):
            Tags, hints, templates.
        settings ([`AgentSettings`]):
            Budgets and rules.
        generate ([`TurnGenerator`]):
            The backend.
        running_anywhere (`Callable[[bool], bool]`, *optional*):
            Returns whether any process still plays, given whether this one does. For backends in which one call generates
            for all processes: a process whose episodes have ended still takes part, with no contexts of its own.
        on_turn (`Callable[[int, list[Episode]], None]`, *optional*):
            Called after every turn (`"async"`: of every episode) with its number and the episodes that still run.
        syntax ([`~mem1_trl.protocol.syntax.ActionSyntax`], *optional*):
            How actions are written and read. `None` makes the one of `protocol` for `tokenizer`.
        caller ([`EnvironmentCaller`], *optional*):
            Calls the environments, with its time limit and retries. `None` makes one with the default settings.
        mode (`str`, *optional*, defaults to `"lockstep"`):
            One of [`~mem1_trl.rollout.settings.ROLLOUT_MODES`]. A backend in which processes take part together needs `"lockstep"`.
        batch_wait (`float`, *optional*, defaults to `0.0`):
            With `"async"`, seconds for which a context that is ready waits for others, if generation comes in batches.
        at_once (`int`, *optional*):
            With `"async"`, maximum number of episodes that are played at the same time; the next one begins when one has ended. `None`
            plays all.
        seeds (`Callable[[int], list[int] | None]`, *optional*):
            Returns a seed for each of so many episodes, whose turns `generate` samples by the numbers in `draws`, see
            [`uniform_draws`]; `None` to let the backend draw.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        protocol: Mem1Protocol,
        settings: AgentSettings,
        generate: TurnGenerator,
        running_anywhere: Callable[[bool], bool] = bool,
        on_turn: Callable[[int, list[Episode]], None] | None = None,
        syntax: ActionSyntax | None = None,
        caller: EnvironmentCaller | None = None,
        mode: str = "lockstep",
        batch_wait: float = 0.0,
        at_once: int | None = None,
        seeds: Callable[[int], list[int] | None] | None = None,
    ):
        self.syntax = syntax or protocol.syntax(tokenizer)
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.settings = settings
        self.generate = generate
        self.running_anywhere = running_anywhere
        self.on_turn = on_turn
        self.caller = caller or EnvironmentCaller()
        self.mode = mode
        self.batch_wait = batch_wait
        self.at_once = at_once
        self.seeds = seeds
        self.observations = ObservationEncoder(self.syntax, settings)
        self.contexts = ContextBuilder(self.syntax, settings)

    def run(self, episodes: Sequence[Episode]) -> list[Trajectory]:
        """
        Play all episodes to their end.

        Args:
            episodes (`Sequence[Episode]`):
                Fresh episodes, their environments reset.

        Returns:
            `list[Trajectory]`: In the order of `episodes`, not yet rewarded.
        """
        self.begin(episodes)
        # One that could not be started has no environment
        plays = [own_loop(one.environment) for one in episodes if one.environment is not None]
        play = plays[0] if plays else None
        if play is not None:  # the environment owns the loop, see mem1_trl.gateway
            play(self, episodes)
        elif self.mode == "async":
            play_asynchronously(self, episodes)
        else:
            self._play_in_lockstep(episodes)
        for episode in episodes:
            episode.stop_reason = episode.stop_reason or StopReason.MAX_TURNS
        return [trajectory_of(episode) for episode in episodes]

    def begin(self, episodes: Sequence[Episode]) -> None:
        """Prepare fresh episodes for their first turn."""
        for episode in episodes:
            episode.record = self.syntax.new_record()
            if episode.stop_reason is None:
                self.settings.check_prompt(episode.prompt_ids)
        seeds = None if self.seeds is None else self.seeds(len(episodes))
        for episode, seed in zip(episodes, seeds or ()):
            episode.seed = seed

    def _play_in_lockstep(self, episodes: Sequence[Episode]) -> None:
        # Each action may be preceded by a summary, which is not counted
        for turn in range(1, self.settings.max_turns * (1 + self.contexts.rule.asks) + 1):
            running = [episode for episode in episodes if episode.stop_reason is None]
            if not self.running_anywhere(bool(running)):
                break
            self.play_turn(running)
            if self.on_turn is not None:
                self.on_turn(turn, [episode for episode in running if episode.stop_reason is None])

    def play_turn(self, running: Sequence[Episode]) -> None:
        """Play one turn of episodes that still run, together; of none at all where only other processes still play."""
        requests = [self.next_request(episode) for episode in running]
        completions = self.generate_turns(requests)
        acting = [action for one in zip(requests, completions, strict=True) if (action := self.read(*one))]
        run_actions(acting, self.caller)
        for action in acting:
            self.observe(action)

    def play_turn_outside(self, episode: Episode) -> Acting | None:
        """
        Play one turn of an episode whose actions are called elsewhere.

        Returns:
            [`Acting`] or `None`: The calls whose results are to be given to [`~Rollout.observe`]; `None` if there are none to wait for.
        """
        request = self.next_request(episode)
        (completion,) = self.generate_turns([request])
        acting = self.read(request, completion)
        if acting is None or episode.stop_reason is not None:
            return None
        if acting.turns_left == 0:  # nothing would be done with the results
            episode.stop_reason = StopReason.MAX_TURNS
            return None
        if not all(isinstance(call, ActionResult) for call in acting.calls):
            return acting
        acting.results = list(acting.calls)
        self.observe(acting)
        return None

    def waiting_actions(
        self,
        episode: Episode,
        requests: list[ActionRequest],
        turns_left: int,
        results: Sequence[ActionResult | None] = (),
    ) -> Acting:
        """The actions of the last turn of an episode again, which were written down by their requests, with the results that some had."""
        return Acting(episode, requests, self._calls(episode, requests, results), turns_left)

    # One turn of one episode, in this order

    def next_request(self, episode: Episode) -> TurnRequest:
        """What is to be generated next."""
        step = self.contexts.next(episode)
        context = self.contexts.context(episode, step)
        turns_left = episode.turns_left(self.settings.max_turns) - (not step.summary)
        draws = None
        if episode.seed is not None:
            draws = uniform_draws(episode.seed, len(episode.turns), self.settings.max_completion_length)
        stops = self._stops(episode, context, turns_left == 0, step.summary)
        return TurnRequest(episode, context, stops, turns_left, step, draws)

    @property
    def returns_early(self) -> bool:
        """Whether the backend may return when some turns have ended, and go on with the others later."""
        return getattr(getattr(self.generate, "func", self.generate), "returns_early", False)

    def generate_turns(
        self,
        requests: Sequence[TurnRequest],
        begun: Sequence[Completion | None] | None = None,
        leave: int | None = None,
    ) -> list[Completion]:
        """
        One completion for each request, in one call of the backend.

        One that [`~Rollout.returns_early`] may return as soon as `leave` of them have ended, the others `unfinished`, and is then asked again with
        these as `begun`.
        """
        prompts, stops = [one.context for one in requests], [one.stops for one in requests]
        more: dict[str, Any] = {}
        if requests and requests[0].draws is not None:
            more["draws"] = [one.draws for one in requests]
        if any(one.episode.listener is not None for one in requests):
            more["listeners"] = [one.episode.listener for one in requests]
        if leave is not None:
            more |= {"begun": list(begun or [None] * len(requests)), "leave": leave}
        return self.generate(prompts, stops, **more)

    def open_turns(
        self,
        answered: Callable[[TurnRequest, Callable[[], Completion]], None],
        failed: Callable[[BaseException], None],
    ) -> OpenTurns | None:
        """Where each turn is asked for on its own, as of a server, the turns that are on their way, see [`OpenTurns`]."""
        return None

    def read(self, request: TurnRequest, completion: Completion) -> Acting | None:
        """Record a completion; returns what its episode does now, or `None` if that is nothing."""
        episode = request.episode
        if completion.error is not None:
            episode.error, episode.stop_reason = completion.error, StopReason.ERROR
            return None
        parsed = self._read(request, completion)
        if request.next.summary:
            self._go_on_from_summary(episode, request.turns_left)
            return None
        asked = self._act(episode, parsed, completion)
        if not asked:
            return None
        return Acting(episode, asked, self._calls(episode, asked), request.turns_left)

    def observe(self, action: Acting) -> None:
        """Let an episode read the results of its actions, which decides whether it goes on."""
        self._observe(action.episode, action.requests, action.results, action.turns_left)

    def _stops(self, episode: Episode, context: list[int], last_turn: bool, summary: bool) -> list[str]:
        if episode.actions is None:
            return []
        opened = self.syntax.opened(context)
        if summary:
            stops = self.syntax.summary_stops()
            opened = None if f"</{opened}>" in stops else opened
        else:
            stops = self.syntax.stop_strings(list(episode.actions.tags), last_turn)
        return StopStrings(stops, f"</{opened}>") if stops and opened else stops

    def _read(self, request: TurnRequest, completion: Completion) -> ParsedTurn | None:
        """Record the turn and return it parsed (`None` without an environment)."""
        episode, context = request.episode, request.context
        text = decode(self.tokenizer, completion.ids)
        if episode.listener is not None:
            episode.listener.extend_to(text)
        parsed = did = None
        if episode.actions is not None:
            opened = self.syntax.opened(context)
            if request.next.summary:
                parsed = self.syntax.parse_summary(completion.ids, text, completion.ended, opened)
                did = UNFINISHED_SUMMARY if parsed.truncated else SUMMARY
            else:
                parsed = self.syntax.parse(
                    completion.ids,
                    text,
                    episode.actions,
                    last_turn=request.turns_left == 0,
                    ended=completion.ended,
                    opened=opened,
                )
            episode.record.add_turn(parsed)
        begin = end = 0
        if parsed is not None and parsed.state_span is not None:
            begin, end = tokens_of_span(self.tokenizer, completion.ids, parsed.state_span)
        episode.turns.append(
            Turn(
                prompt_ids=tuple(context) if completion.prompt_ids is None else completion.prompt_ids,
                completion_ids=completion.ids,
                logprobs=completion.logprobs,
                text=text,
                action=parsed.action if parsed else None,
                action_input=parsed.action_input if parsed else None,
                state=parsed.state if parsed else None,
                state_tokens=end - begin,
                state_begin=begin,
                truncated_sampling=completion.truncated_sampling,
                messages=completion.messages,
                context_action=did,
            )
        )
        return parsed

    def _go_on_from_summary(self, episode: Episode, turns_left: int) -> None:
        """Let an episode go on after a summary, unless that was cut, which ends it as it does any turn."""
        if episode.turns[-1].context_action == UNFINISHED_SUMMARY:
            episode.stop_reason = StopReason.TRUNCATED
            return
        assert episode.actions is not None
        observation = self.observations.encode_message(SUMMARY_REPLY, turns_left, list(episode.actions.tags))
        episode.record.add_message(SUMMARY_REPLY, observation.results[0], turns_left)
        self.show(episode, observation)

    def _act(self, episode: Episode, parsed: ParsedTurn | None, completion: Completion) -> list[ActionRequest]:
        """End the episode if its turn does so, and return the requests of the turn, those that cannot be run included."""
        if parsed is None or episode.actions is None:  # no environment: the text is the answer
            episode.answer = decode(self.tokenizer, completion.ids, skip_special_tokens=True)
            episode.stop_reason = StopReason.ANSWER if completion.ended else StopReason.TRUNCATED
            return []
        if parsed.truncated:
            episode.stop_reason = StopReason.TRUNCATED
            return []
        if parsed.action is None:
            if self.protocol.on_invalid_action == "end":
                episode.stop_reason = StopReason.INVALID_ACTION
                return []
            # The result of a turn without a call needs the name of some action, too
            return [ActionRequest(_some_action(episode.actions.tags), problem=parsed.problem)]
        if parsed.answer is not None:
            episode.answer = parsed.answer
            episode.stop_reason = StopReason.ANSWER
        return self.syntax.requests(parsed, episode.actions)

    def _calls(
        self, episode: Episode, requests: Sequence[ActionRequest], results: Sequence[ActionResult | None] = ()
    ) -> list[Any]:
        """
        The calls of as many requests as their results fit into an observation, or a result where nothing can be called, or where
        `results` has one already: an action of the rule is not taken twice.
        """
        calls: list[Any] = []
        most = self.observations.most_results(self._names(episode, requests))
        for request, result in zip_longest(requests[:most], results[:most]):
            if result is not None:
                calls.append(result)
            elif request.method is None:
                calls.append(ActionResult(f"Error: {request.problem}", failed=True))
            elif request.method in self.contexts.rule.actions:
                calls.append(self.contexts.act(episode, request))
            else:
                calls.append((getattr(episode.environment, request.method), request.arguments))
        return calls

    def _observe(
        self, episode: Episode, requests: Sequence[ActionRequest], results: list[ActionResult], turns_left: int
    ) -> None:
        """Append the observation and decide whether the episode goes on."""
        texts = [result.text for result in results]
        names = [request.name for request in requests[: len(results)]]
        episode.failed_actions += sum(result.failed for result in results)
        if episode.stop_reason is not StopReason.ANSWER:  # after an answer no turn reads them
            episode.record.add_results(names, texts)
        if episode.stop_reason is StopReason.DONE:
            episode.answer = self._answer_given(episode, requests[: len(results)])
        if episode.stop_reason is None and turns_left == 0:
            episode.stop_reason = StopReason.MAX_TURNS
        if episode.stop_reason is not None:
            return
        if len(results) < len(requests):
            texts[-1] = f"{CALLS_LEFT_OUT.format(run=len(results), all=len(requests))}\n{texts[-1]}"
        assert episode.actions is not None
        shown = self._names(episode, requests[: len(results)])
        observation = self.observations.encode_results(texts, shown, turns_left, list(episode.actions.tags))
        episode.record.add_observation(names, observation.results, turns_left)
        self.show(episode, observation, [result.failed for result in results])

    def _names(self, episode: Episode, requests: Sequence[ActionRequest]) -> list[str]:
        """Names of actions as the template may write them: one that the model has made up may be of any length, and hold markers."""
        known = {} if episode.actions is None else episode.actions.tags
        return [one.name if one.method is not None or one.name in known else _some_action(known) for one in requests]

    def _answer_given(self, episode: Episode, requests: Sequence[ActionRequest]) -> str | None:
        """The answer of an episode that ended by an action which takes it, where that is an action like any other."""
        if episode.actions is None or not episode.actions.takes_answer:
            return None
        called = [one for one in requests if one.method == self.protocol.answer_tag and one.arguments]
        return str(next(iter(called[-1].arguments.values()))) if called else None

    def show(self, episode: Episode, observation: ObservationIds, failed: Sequence[bool] = ()) -> None:
        """
        Let an observation follow the last turn, and end the episode if the next context would be too long.

        Args:
            episode ([`Episode`]):
                The episode; its record knows the observation already.
            observation ([`ObservationIds`]):
                What the agent reads next.
            failed (`Sequence[bool]`, *optional*):
                Which of its results are errors, which an external memory does not keep. Empty if none is.
        """
        turn = episode.turns[-1]
        carried = self.carried(turn)
        observation = self.observations.after(carried, observation)
        observation_ids = [*observation.before, *observation.body, *observation.after]
        episode.turns[-1] = dataclasses.replace(
            turn,
            observation=self.observations.text(observation),
            observation_tokens=len(observation_ids),
        )
        episode.history.append([*carried, *observation_ids])
        episode.tails.append(len(observation.after))
        if self.contexts.rule.recalls:
            episode.recalled = self.contexts.recall(episode, turn.action_input or "", observation.results, failed)
        self.contexts.measure(episode)
        if self.contexts.overflows(episode):
            episode.stop_reason = StopReason.CONTEXT_OVERFLOW

    def carried(self, turn: Turn) -> Sequence[int]:
        """Token ids of a turn in the next context: those that were sampled, unless scratch is dropped or its state was edited."""
        if turn.edited_state is not None:
            return edited_ids(self.syntax, turn)
        text = self.syntax.drop_scratch(turn.text, self.syntax.opened(turn.prompt_ids))
        return turn.completion_ids if text == turn.text else encode_text(self.tokenizer, text)


def _some_action(tags: Mapping[str, str]) -> str:
    """The name of some action, for a result that is of none."""
    return next(iter(tags), "tool")


def trajectory_of(episode: Episode) -> Trajectory:
    """The trajectory of an episode as far as it was played, with its turns so far; not yet rewarded."""
    return Trajectory(
        turns=list(episode.turns),
        stop_reason=episode.stop_reason,
        answer=episode.answer,
        metrics={"failed_actions": float(episode.failed_actions)},
        error=episode.error,
    )
