"""Chat requests answered by an agent."""

from __future__ import annotations

import contextlib
import secrets
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ..agent.episode_file import OtherAgentError
from ..agent.outside_tools import environment_of_schemas
from ..environment_runtime.actions import ActionSet
from ..json_text import write_json
from ..metrics import peak_tokens
from ..protocol.untrusted import sanitize_prompt
from ..rollout.observations import ObservationEncoder
from ..rollout.server_errors import TurnStopped
from ..trajectory import StopReason, Trajectory
from ..wire.answering import ClientLeft
from ..wire.answers import ChatAnswer
from ..wire.app import ChatApp, WireLimits
from ..wire.errors import WireError, unknown_model
from ..wire.requests import ChatRequest
from ..wire.server import WireServer
from ..wire.stop_texts import UntilStop
from .conversations import Conversations, Found, cannot_begin_anew
from .playing import play_to_answer, play_to_call
from .states import StateStore

if TYPE_CHECKING:
    from ..agent import Mem1Agent
    from ..agent.episode import AgentEpisode


_CUT = (StopReason.MAX_TURNS, StopReason.TRUNCATED, StopReason.CONTEXT_OVERFLOW)
"""Reasons for which an answer ended before its agent had finished it."""


class AgentBackend:
    """
    Answers chat requests by an agent's conversations, whose contexts stay flat however long the chat becomes.

    Args:
        agent ([`Mem1Agent`]):
            Answers.
        name (`str`, *optional*, defaults to `"mem1"`):
            Name of the model for clients.
        environment_factory (`Callable`, *optional*):
            Makes what the agent may use here where a request brings no tools: an environment that keeps nothing between actions, or
            has `mem1_state`. Each answer has one of its own, which is reset before it and closed after it.
        store ([`StateStore`], *optional*):
            Keeps the states of conversations. `None` makes one in memory.
    """

    def __init__(
        self,
        agent: Mem1Agent,
        name: str = "mem1",
        environment_factory: Callable[[], Any] | None = None,
        store: StateStore | None = None,
    ):
        self.agent = agent
        self.name = name
        self.environment_factory = environment_factory
        self.store = StateStore() if store is None else store
        self.conversations = Conversations(self.store)
        self._lock = threading.Lock()
        self._counts = {"mem1_conversations_begun": 0.0, "mem1_conversations_continued": 0.0, "mem1_peak_tokens": 0.0}

    def answer(
        self, request: ChatRequest, owner: str, session: str | None, tell: Callable[[str], object]
    ) -> ChatAnswer:
        """
        Answer a request, as [`ChatBackend`] says.

        Raises:
            [`WireError`]: If it cannot be answered.
            [`ClientLeft`]: If it need not be answered any more.
        """
        self._refuse(request)
        found = self.conversations.find(request, owner, session)
        try:
            with contextlib.closing(self._episode(request, found)) as episode:
                episode.scored = False
                before = len(episode.trajectory.turns)
                text = UntilStop(tell, request.stop)
                if request.must_call:
                    play_to_call(episode, request, self.agent.settings.max_turns, tell)
                else:
                    play_to_answer(episode, request, self.agent.protocol, tell, text)
                turns = episode.trajectory.turns[before:]
                calls = _calls(episode)
                state = episode.to_dict(past=False)
                state["call_ids"] = [call["id"] for call in calls]
                answer = self._as_answer(episode, text, calls, turns)
                self.conversations.keep(request, owner, session, found, answer.message, state)
                return answer
        except TurnStopped as stopped:
            raise ClientLeft(str(stopped)) from stopped
        except (ConnectionError, RuntimeError) as error:
            raise WireError(502, f"The agent could not answer: {error}") from error

    def gauges(self) -> dict[str, float]:
        """Numbers for `/metrics`."""
        with self._lock:
            counted = dict(self._counts)
        states = {"mem1_states": float(len(self.store)), "mem1_state_bytes": float(self.store.bytes)}
        return {**counted, **states, **_process_gauges()}

    # Parts

    def _refuse(self, request: ChatRequest) -> None:
        """Refuse what is not here, and what an agent cannot do."""
        if request.model not in (None, self.name):
            raise unknown_model(request.model, self.name)
        if "seed" in request.options and self.agent.endpoint is not None:
            raise WireError(
                400,
                "'seed' is not supported: the model runs on another server, which draws by itself.",
                "unsupported_parameter",
                "seed",
            )
        if request.usable_tools and not request.parallel_calls and self.agent.protocol.action_syntax == "tool_calls":
            raise WireError(
                400,
                "'parallel_tool_calls' must be true: this agent may write several calls in a turn.",
                "unsupported_parameter",
                "parallel_tool_calls",
            )

    def _episode(self, request: ChatRequest, found: Found) -> AgentEpisode:
        """The episode of a request, ready for its next turn."""
        try:
            going_on = None if found.state is None else self._going_on(request, found)
            self._count("mem1_conversations_begun" if going_on is None else "mem1_conversations_continued")
            return going_on or self._beginning(request)
        except (ValueError, TypeError, TemplateError) as error:
            of_length = "max_context_length" in str(error)
            about = ("context_length_exceeded", request.messages_name) if of_length else ()
            raise WireError(400, str(error), *about) from None

    def _beginning(self, request: ChatRequest) -> AgentEpisode:
        """The episode of a conversation that begins."""
        self._check_tools(request)
        task = self._task(request)
        tools = list(request.tools) or None
        factory = self.environment_factory if tools is None else None
        episode = self.agent.start(task, schemas=tools, options=self._options(request), environment_factory=factory)
        if "seed" in request.options:
            episode.draw_from(request.options["seed"])
        return episode

    def _check_tools(self, request: ChatRequest) -> None:
        """Refuse tools that the agent cannot be offered, in words of the client, who chose neither the agent nor its protocol."""
        protocol, offered = self.agent.protocol, [tool["function"]["name"] for tool in request.tools]
        if not offered and self.environment_factory is not None:
            return
        needed = {*(protocol.action_tags or {}).values()}
        if not needed <= {*offered}:
            names = ", ".join(sorted(needed))
            sentence = f"'tools' must have {names}, since this agent was trained with the tools {names} only, got {', '.join(offered) or 'none'}."
            raise WireError(400, sentence, param="tools")
        if protocol.action_syntax == "tags" and protocol.action_tags is None:
            for name in {protocol.state_tag, protocol.observation_tag, *protocol.scratch_tags} & {*offered}:
                sentence = f"The tool {name!r} cannot be offered to this agent, for which that word is a tag: give the tool another name."
                raise WireError(400, sentence, param="tools")
        try:
            ActionSet(environment_of_schemas(request.tools), protocol, needs_reset=False)
        except ValueError as error:
            raise WireError(400, str(error), param="tools") from None

    def _going_on(self, request: ChatRequest, found: Found) -> AgentEpisode | None:
        """
        The episode of a state with the new messages. `None` if it cannot go on (its context is full, or the agent has other settings now)
        and the request holds the whole chat, so that another episode can start from it.
        """
        state = found.state
        assert state is not None
        factory = None if "schemas" in state else self.environment_factory
        options = self._options(request)
        try:
            episode = self.agent.resume(state, repeat=False, options=options, environment_factory=factory)
        except OtherAgentError:  # the server was started again with other settings
            if found.whole:
                return None
            raise cannot_begin_anew(
                request, "The conversation was held with another agent than the one that is served now"
            ) from None
        try:
            episode.draw_from(request.options.get("seed", secrets.randbits(62)))
            results = {one["tool_call_id"]: one["content"] for one in found.new if one["role"] == "tool"}
            said = "\n\n".join(one["content"] for one in found.new if one["role"] != "tool")
            asked = state["call_ids"]
            missing = [call for call in asked if call not in results]
            if missing or set(results) - set(asked):
                wrong = (missing or sorted(set(results) - set(asked)))[0]
                raise WireError(
                    400,
                    f"There must be one message of a tool for each call of the last answer and no other, got {wrong!r:.60}.",
                    param=request.messages_name,
                )
            if asked:
                texts = [results[call] for call in asked]
                texts[-1] += f"\n\n{said}" if said else ""
                episode.give(texts)
            else:
                episode.add_message(said)
            return episode
        except RuntimeError:  # it ended in a way after which nothing can be said
            episode.close()
            if found.whole:
                return None
            reason = episode.trajectory.stop_reason
            why = f"The conversation ended with the last answer{'' if reason is None else f' ({reason.value})'}"
            overflow = reason is StopReason.CONTEXT_OVERFLOW
            raise cannot_begin_anew(request, why, "context_length_exceeded" if overflow else None) from None
        except BaseException:
            episode.close()
            raise

    def _task(self, request: ChatRequest) -> Any:
        """
        The task of a conversation that begins: the first message, and the instructions of the system. A chat whose state is not known is
        told in it.
        """
        systems = [
            one["content"] for one in request.messages if one["role"] in ("system", "developer") and one["content"]
        ]
        said = [one for one in request.messages if one["role"] not in ("system", "developer")]
        if not said:
            raise WireError(400, "There must be a message of the user.", param=request.messages_name)
        text = said[-1]["content"]
        if len(said) > 1:
            tags = [tool["function"]["name"] for tool in request.tools]
            text = "\n".join(f"{one['role']}: {self._told(one, tags)}" for one in said)
        if not systems:
            return text
        if self._has_system_role:
            return [{"role": "system", "content": "\n\n".join(systems)}, {"role": "user", "content": text}]
        return "\n\n".join([*systems, text])

    @cached_property
    def _has_system_role(self) -> bool:
        """Whether messages of the system can be written: some chat templates raise an error for them."""
        if not self.agent.settings.conversational:
            return False
        try:
            self.agent.syntax.encode_task([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
        except TemplateError:
            return False
        return True

    def _told(self, message: Mapping[str, Any], tags: Sequence[str]) -> str:
        """What a message of an earlier answer says, escaped as where its conversation is known; a result of a tool is cut as there, too."""
        agent = self.agent
        if message["role"] == "tool":
            return ObservationEncoder(agent.syntax, agent.settings).quote(message["content"], tags)
        calls = [
            f"{one['function']['name']}({one['function']['arguments']})" for one in message.get("tool_calls") or ()
        ]
        text = " ".join(filter(None, [message["content"], *calls]))
        return agent.syntax.escape_tags(sanitize_prompt(agent.tokenizer, text), tags)

    def _options(self, request: ChatRequest) -> dict[str, Any]:
        """Settings that a request has of its own."""
        options = {name: float(request.options[name]) for name in ("temperature", "top_p") if name in request.options}
        most = self.agent.settings.max_completion_length
        if "max_tokens" in request.options:
            return {**options, "max_completion_length": min(most, request.options["max_tokens"])}
        return options

    def _as_answer(
        self, episode: AgentEpisode, text: UntilStop, calls: list[dict[str, Any]], turns: Sequence[Any]
    ) -> ChatAnswer:
        reason = episode.trajectory.stop_reason
        cut = reason in _CUT and not text.stopped
        ended = "tool_calls" if calls else "length" if cut else "stop"
        peak = peak_tokens(Trajectory(list(turns))) if turns else 0
        with self._lock:
            self._counts["mem1_peak_tokens"] = max(self._counts["mem1_peak_tokens"], float(peak))
        about = {"turns": len(turns), "peak_tokens": peak, "stop_reason": None if reason is None else reason.value}
        return ChatAnswer(
            text.told,
            tuple(calls),
            ended,
            sum(len(turn.prompt_ids) for turn in turns),
            sum(len(turn.completion_ids) for turn in turns),
            {"mem1": about},
        )

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def _process_gauges() -> dict[str, float]:
    """Memory of this process, where the system tells."""
    try:
        import resource
    except ImportError:
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"mem1_process_peak_bytes": float(peak)}


def _calls(episode: AgentEpisode) -> list[dict[str, Any]]:
    """The calls that wait for the client, as OpenAI's API writes them."""
    return [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call.method, "arguments": write_json(dict(call.arguments))},
        }
        for call in episode.calls
    ]


@contextlib.contextmanager
def serve_agent(
    agent: Mem1Agent,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: WireLimits | None = None,
    **backend: Any,
) -> Any:
    """
    Serve an agent in a thread.

    Example:

    ```python
    with serve_agent(agent) as url:
        client = openai.OpenAI(base_url=url, api_key="none")
    ```

    Args:
        agent ([`Mem1Agent`]):
            Answers.
        host, port (*optional*):
            Where to listen; port 0 takes a free one.
        limits ([`WireLimits`], *optional*):
            Keys, and what is taken.
        backend (*optional*):
            Arguments of [`AgentBackend`].

    Yields:
        `str`: The address for clients, which ends in `/v1`.
    """
    with WireServer(ChatApp(AgentBackend(agent, **backend), limits), host, port) as server:
        yield f"{server.url}/v1"
