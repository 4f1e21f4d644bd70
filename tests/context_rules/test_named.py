"""Rules by name: parameters, import paths, and what a file may not do."""

from __future__ import annotations

import sys

import pytest

from mem1_trl import AgentSettings, ContextRule, Mem1GRPOConfig
from mem1_trl.context_rules import RULES, Compact, Fold, NextTurn, Past, Truncate
from mem1_trl.context_rules.named import describe_rule, import_rule, make_rule

LIMIT = 100


class OwnRule(ContextRule):
    def next(self, past):
        return NextTurn(range(len(past)))


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
        ({"fraction": 1.5}, "fraction must be above 0 and at most 1, got 1.5"),
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


def test_truncate_needs_a_length():
    with pytest.raises(ValueError, match="set `max_context_length`"):
        Truncate().next(Past([1], [3, 4]))
    assert list(make_rule("truncate").next(Past([1], [3, 4, 2], max_length=7)).kept) == [1, 2]
