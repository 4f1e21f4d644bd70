"""Rules by name: parameters, import paths, and what a file may not do."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import pytest

from mem1_trl import AgentSettings, ContextRule, Mem1Agent, Mem1GRPOConfig
from mem1_trl.context_rules import RULES, Compact, Fold, NextTurn, Past, Truncate
from mem1_trl.context_rules.named import describe_rule, import_rule, make_rule

LIMIT = 100


class OwnRule(ContextRule):
    def next(self, past):
        return NextTurn(range(len(past)))


class Kept(OwnRule):
    """Does not say what its parameter is."""

    def __init__(self, keep: int = 2):
        self.keep = keep


@dataclasses.dataclass(frozen=True)
class Places(OwnRule):
    places: Any = (0,)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_made_again_from_what_is_saved(name):
    settings = AgentSettings(context=RULES[name](), max_context_length=LIMIT)
    assert settings.context == name
    again = AgentSettings.from_dict(settings.to_dict())
    assert again == settings and type(again.rule) is RULES[name] and describe_rule(again.rule)[0] == name


def test_parameters_are_kept_and_checked():
    settings = AgentSettings(context=Compact(budget=70, every=3))
    assert settings.context_kwargs == {"budget": 70, "every": 3}
    assert AgentSettings.from_dict(settings.to_dict()).rule == Compact(budget=70, every=3)
    assert AgentSettings(context="compact", context_kwargs={"every": 3, "budget": None}).context_kwargs == {"every": 3}
    with pytest.raises(ValueError, match=r"context_kwargs must be parameters of context='full', got \{'every': 3\}"):
        AgentSettings(context="full", context_kwargs={"every": 3})
    for wrong, words in (
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"every": True}, "every must be a whole number of at least 1, got True"),
        ({"fraction": 1.5}, "fraction must be a number above 0 and at most 1, got 1.5"),
        ({"fraction": True}, "fraction must be a number above 0 and at most 1, got True"),
        ({"fraction": "0.5"}, "fraction must be a number above 0 and at most 1, got '0.5'"),
        ({"fraction": 0.5, "budget": 9}, "leave one of them out"),
        ({}, "context='compact' fills a fraction of `max_context_length`, which is None"),
    ):
        with pytest.raises(ValueError, match=words):
            AgentSettings(context="compact", context_kwargs=wrong)
    with pytest.raises(
        ValueError, match=r"context must be one of 'mem1', 'full', .*'fold', or the import path of a rule"
    ):
        AgentSettings(context="window")


def test_a_configuration_takes_names_paths_and_objects(tmp_path, monkeypatch):
    base = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "num_generations": 2, "report_to": "none"}
    base["per_device_train_batch_size"] = 2
    config = Mem1GRPOConfig(**base, context="compact", context_kwargs='{"every": 3}')  # as on a command line
    assert config.agent_settings().rule == Compact(every=3)
    assert Mem1GRPOConfig(**base, context=OwnRule()).context == f"{__name__}:OwnRule"
    (tmp_path / "my_own_rules.py").write_text(
        "from mem1_trl.context_rules import Fold\n\nclass Mine(Fold):\n    pass\n\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    # What comes from a file is not imported
    saved = AgentSettings.from_dict({**AgentSettings().to_dict(), "context": "my_own_rules:Mine"})
    with pytest.raises(ValueError, match="'my_own_rules:Mine' must have been imported, since nothing is imported"):
        _ = saved.rule
    assert "my_own_rules" not in sys.modules
    config = Mem1GRPOConfig(**base, context="my_own_rules:Mine")  # what a user writes is
    assert isinstance(config.agent_settings().rule, Fold) and isinstance(saved.rule, Fold)
    with pytest.raises(ValueError, match="must name a class of my_own_rules that is a ContextRule"):
        import_rule("my_own_rules:number")
    with pytest.raises(ValueError, match="must name a module that can be imported: No module named 'nowhere_at_all'"):
        import_rule("nowhere_at_all:Rule")


def test_a_class_inside_a_function_cannot_be_saved():
    class Inner(ContextRule):
        def next(self, past):
            return NextTurn([])

    with pytest.raises(ValueError, match="define the class at the top level of a module"):
        describe_rule(Inner())


def test_a_rule_is_run_as_it_will_be_loaded():
    """What a file cannot hold as it is would make another rule of a saved model."""
    assert AgentSettings(context=Kept()).context == f"{__name__}:Kept"
    with pytest.raises(
        ValueError, match=r"parameters of the context rule Kept must be known, .* make it a frozen dataclass"
    ):
        AgentSettings(context=Kept(5))
    settings = AgentSettings(context=Places((0, 1)))
    assert settings.rule.places == [0, 1]
    assert AgentSettings.from_dict(json.loads(json.dumps(settings.to_dict()))).rule == settings.rule
    for wrong in (frozenset({1}), {1: 0.5}, float("inf"), print):
        with pytest.raises(ValueError, match="'places' of the context rule Places must be made of JSON values"):
            AgentSettings(context=Places(wrong))


def test_what_is_no_rule_and_parameters_given_twice_are_refused(actor, tokenizer):
    config = {"output_dir": "out", "bf16": False, "use_cpu": True}
    for make in (AgentSettings, lambda **given: Mem1GRPOConfig(**config, **given)):
        with pytest.raises(
            TypeError, match=r"must be the name of a rule, or a rule, got <class .*Fold'>: make one, Fold\(\)"
        ):
            make(context=Fold)
        with pytest.raises(TypeError, match="must be the name of a rule, or a rule, got None"):
            make(context=None)
    twice = {"context": Compact(every=2), "context_kwargs": {"every": 3}}
    for make in (
        lambda **given: Mem1GRPOConfig(**config, **given),
        lambda **given: Mem1Agent(actor, tokenizer, **given),
    ):
        with pytest.raises(
            ValueError, match=r"Compact\(...\) has its parameters already, got context_kwargs=\{'every': 3\}"
        ):
            make(**twice)
    with pytest.raises(ValueError, match="context_kwargs must be a mapping of names to values, got '"):
        AgentSettings(context="compact", context_kwargs='{"every": 3}')


def test_truncate_needs_a_length():
    with pytest.raises(ValueError, match="set `max_context_length`"):
        Truncate().next(Past([1], [3, 4]))
    assert list(make_rule("truncate").next(Past([1], [3, 4, 2], max_length=7)).kept) == [1, 2]
