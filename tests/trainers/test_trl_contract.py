"""Tests of what is relied on in TRL: that it is there, and that its absence is noticed."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
import types

import pytest
import torch
import trl
from support.helpers import tiny_model
from support.trainer_helpers import lookup_dataset, trainer_arguments, trl_arguments
from trl import GRPOConfig, GRPOTrainer

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig
from mem1_trl.trainers.trl_seam.batch import TrajectoryTrainer
from mem1_trl.trainers.trl_seam.batch_rows import BATCH_KEYS, ROW_KEYS, join_rows, row_chunks, take_rows
from mem1_trl.trainers.trl_seam.contract import (
    FIXED_METHODS,
    IMAGE_KEYS,
    RELIED_ATTRIBUTES,
    RELIED_BATCH_KEYS,
    RELIED_METHODS,
    RELIED_NAMES,
    RETURNED_VALUES,
    check_trl,
    check_values,
)
from mem1_trl.trainers.trl_seam.source import returned_keys
from mem1_trl.update.row_batch import RowBatch, tree_context_mask, tree_positions
from mem1_trl.update.rows import build_row


def test_the_installed_trl_fits():
    check_trl()


SEAM = TrajectoryTrainer.__mro__[: TrajectoryTrainer.__mro__.index(GRPOTrainer)]


def test_everything_that_is_wrapped_is_checked():
    """A private method of TRL that the seam overrides or calls through `super()` has its parameters pinned."""
    assert [part.__name__ for part in SEAM] == [
        "TrajectoryTrainer",
        "ExactResume",
        "OrderedEvaluations",
        "BalancedMicroBatches",
        "FiniteSteps",
        "TreeLoss",
        "TurnGeneration",
        "Hooks",
    ]
    called, overridden = set(), set()
    for part in SEAM:
        called |= set(re.findall(r"super\(\)\.(_\w+)\(", inspect.getsource(part))) - {"__init__"}
        overridden |= {
            name
            for name, value in vars(part).items()
            if isinstance(value, types.FunctionType)
            and name[0] == "_"
            and name[1] != "_"
            and hasattr(GRPOTrainer, name)
        }
    assert called | overridden <= set(RELIED_METHODS)
    assert set(RELIED_METHODS) == set(RETURNED_VALUES)


def test_every_attribute_that_is_set_on_the_trainer_is_checked():
    """What the seam assigns or sets for a while, and a base class knows, is in the list."""
    known = {
        name
        for base in GRPOTrainer.__mro__
        for value in vars(base).values()
        if isinstance(function := inspect.unwrap(value), types.FunctionType)
        for name in function.__code__.co_names
    }
    assigned = set()
    for part in SEAM:
        source = inspect.getsource(part)
        assigned |= set(re.findall(r"instance_attribute\(self, \"(\w+)\"", source))
        assigned |= set(re.findall(r"self\.(\w+)\[\"train\"\]\.update", source))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
                target = node.value if isinstance(node, ast.Subscript) else node
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                    assigned |= {target.attr} if target.value.id == "self" else set()
    assert {"_tr_loss", "_metrics", "_buffered_inputs", "_last_world_entropy", "beta", "entropy_coef"} <= assigned
    assert (assigned & known) <= set(RELIED_ATTRIBUTES)


def assert_one_sentence(message: str, method: str):
    assert f"trl {trl.__version__}" in message and method in message
    assert "\n" not in message and message.endswith(("mem1-trl.",))


@pytest.mark.parametrize("method", RELIED_METHODS)
def test_a_method_that_is_gone_is_noticed(method):
    changed = type("Changed", (GRPOTrainer,), {method: None})
    with pytest.raises(ImportError) as error:
        check_trl(changed)
    assert_one_sentence(str(error.value), method)


def with_parameters(method: str, parameters: list[inspect.Parameter]):
    """A copy of TRL's method with another signature and the same code."""
    original = inspect.unwrap(getattr(GRPOTrainer, method))
    copy = types.FunctionType(
        original.__code__, original.__globals__, method, original.__defaults__, original.__closure__
    )
    copy.__kwdefaults__ = original.__kwdefaults__
    copy.__signature__ = inspect.Signature(parameters)
    return copy


def parameters_of(method: str) -> list[inspect.Parameter]:
    return list(inspect.signature(inspect.unwrap(getattr(GRPOTrainer, method))).parameters.values())


@pytest.mark.parametrize("method", [name for name, parameters in RELIED_METHODS.items() if len(parameters) > 1])
def test_another_order_or_name_of_parameters_is_noticed(method):
    parameters = parameters_of(method)
    renamed = [*parameters[:1], parameters[1].replace(name="something_else"), *parameters[2:]]
    with pytest.raises(ImportError) as error:
        check_trl(type("Changed", (GRPOTrainer,), {method: with_parameters(method, renamed)}))
    assert_one_sentence(str(error.value), method)
    assert "something_else" in str(error.value)


@pytest.mark.parametrize("method", RELIED_METHODS)
def test_a_new_parameter_with_a_default_is_fine(method):
    new = inspect.Parameter("brand_new", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = parameters_of(method)
    if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        parameters.insert(-1, new)
    else:
        parameters.append(new)
    check_trl(type("Changed", (GRPOTrainer,), {method: with_parameters(method, parameters)}))


@pytest.mark.parametrize("method", ["_generate", "_calculate_rewards", "_compute_loss"])
def test_a_new_parameter_without_a_default_is_noticed(method):
    new = inspect.Parameter("brand_new", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    with pytest.raises(ImportError):
        check_trl(type("Changed", (GRPOTrainer,), {method: with_parameters(method, [*parameters_of(method), new])}))


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method, names in RELIED_NAMES.items() for name in names]
)
def test_a_name_that_is_no_longer_used_is_noticed(method, name):
    """The method of TRL with one name replaced, everywhere it occurs in its code."""

    def rename(code: types.CodeType) -> types.CodeType:
        def other(constant):
            if isinstance(constant, types.CodeType):
                return rename(constant)
            if isinstance(constant, tuple):
                return tuple(other(item) for item in constant)
            if isinstance(constant, frozenset):  # a literal set that is only read
                return frozenset(other(item) for item in constant)
            return "replaced" if constant == name else constant

        def names(values):
            return tuple("replaced" if value == name else value for value in values)

        return code.replace(
            co_names=names(code.co_names),
            co_varnames=names(code.co_varnames),
            co_cellvars=names(code.co_cellvars),
            co_consts=other(code.co_consts),
        )

    original = inspect.unwrap(getattr(GRPOTrainer, method))
    code = rename(original.__code__)
    changed = types.FunctionType(code, original.__globals__, method, original.__defaults__, original.__closure__)
    changed.__signature__ = inspect.signature(original)
    with pytest.raises(ImportError) as error:
        check_trl(type("Changed", (GRPOTrainer,), {method: changed}))
    assert_one_sentence(str(error.value), method)
    assert name in str(error.value)


def with_code(function, change):
    """A copy of a function of TRL whose code, and that of the functions in it, is changed."""

    def changed(code: types.CodeType) -> types.CodeType:
        constants = tuple(changed(c) if isinstance(c, types.CodeType) else c for c in code.co_consts)
        return change(code.replace(co_consts=constants))

    code = changed(function.__code__)
    copy = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@pytest.mark.parametrize("attribute", RELIED_ATTRIBUTES)
def test_an_attribute_that_no_method_reads_is_noticed(attribute):
    """A class with all methods of TRL and transformers, in each of which the attribute has another name."""

    def rename(code: types.CodeType) -> types.CodeType:
        return code.replace(co_names=tuple("_renamed" if name == attribute else name for name in code.co_names))

    methods = {}
    for base in reversed(GRPOTrainer.__mro__[:-1]):
        for name, value in vars(base).items():
            function = inspect.unwrap(getattr(value, "__func__", value))
            if isinstance(function, types.FunctionType):
                methods[name] = with_code(function, rename) if attribute in names_of(function.__code__) else function
    check_trl(type("Same", (), {name: inspect.unwrap(getattr(GRPOTrainer, name)) for name in methods}))
    with pytest.raises(ImportError) as error:
        check_trl(type("Changed", (), methods))
    assert_one_sentence(str(error.value), attribute)


def names_of(code: types.CodeType) -> set[str]:
    return set(code.co_names).union(*(names_of(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def test_an_attribute_that_is_only_set_is_noticed():
    class Sets:
        def __init__(self):
            self._tr_loss = 0.0

    def reads_nothing(self):
        return None

    methods = {name: value for name in RELIED_METHODS if (value := inspect.unwrap(getattr(GRPOTrainer, name)))}
    reads_nothing.__signature__ = inspect.signature(methods["_run_epoch"])
    methods["_run_epoch"] = reads_nothing
    with pytest.raises(ImportError, match=r"no method reads .*_tr_loss"):
        check_trl(type("Changed", (Sets,), methods))


def trl_with(tmp_path, method: str, *replaced: tuple[str, str]) -> type:
    """A subclass of TRL's trainer whose `method` is TRL's own source with some of its text replaced."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(GRPOTrainer, method))))
    for old, new in replaced:
        assert old in source
        source = new.join(source.rsplit(old, 1))
    path = tmp_path / "changed.py"
    path.write_text(source)
    namespace = dict(inspect.unwrap(getattr(GRPOTrainer, method)).__globals__)
    exec(compile(source, str(path), "exec"), namespace)  # from a file, where its source is found
    return type("Changed", (GRPOTrainer,), {method: inspect.unwrap(namespace[method])})


def sentence_about(changed: type, method: str) -> str:
    with pytest.raises(ImportError) as error:
        check_trl(changed)
    assert_one_sentence(str(error.value), method)
    return str(error.value)


@pytest.mark.parametrize(
    "form", ["return None, {0}", "found = (None, {0})\n    return found", "return (None, {0}) if x else x"]
)
@pytest.mark.parametrize("method", [name for name, count in RETURNED_VALUES.items() if count > 1])
def test_another_number_of_values_is_noticed_where_they_are_written_out(tmp_path, method, form):
    """TRL's own source of the method, with one value more in its last `return`."""
    source = inspect.getsource(inspect.unwrap(getattr(GRPOTrainer, method)))
    values = source.rsplit("return ", 1)[1].strip()
    changed = trl_with(tmp_path, method, (f"return {values}", form.format(values)))
    found = sentence_about(changed, method)
    assert f"returns {RETURNED_VALUES[method] + 1} values instead of {RETURNED_VALUES[method]}" in found


@pytest.mark.parametrize(
    "line",
    [
        'output["sampling_mask"] = tool_mask',
        'output |= {"sampling_mask": tool_mask}',
        "output.update(sampling_mask=tool_mask)",
        'output.update({"sampling_mask": tool_mask})',
        'output.setdefault("sampling_mask", tool_mask)',
        'output = {**output, "sampling_mask": tool_mask}',
        "output = output | dict(sampling_mask=tool_mask)",
    ],
)
def test_a_key_of_the_batch_that_is_not_known_is_noticed_before_there_is_a_batch(tmp_path, line):
    changed = trl_with(tmp_path, "_generate_and_score_completions", ("return output", f"{line}\n    return output"))
    found = sentence_about(changed, "_generate_and_score_completions")
    assert "makes a batch with the key 'sampling_mask', of which" in found


@pytest.mark.parametrize(
    ("caller", "call", "changed_call", "problem"),
    [
        (
            "_generate_and_score_completions",
            "self._generate(prompts)",
            "self._generate(prompts, images=images)",
            "`_generate_and_score_completions` calls `_generate` with images as well",
        ),
        (
            "_generate_and_score_completions",
            "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
            "self._calculate_rewards(inputs, prompts, completions, completion_ids_list, images)",
            "calls `_calculate_rewards` with 5 arguments instead of 4",
        ),
        (
            "compute_loss",
            "self._compute_loss(model, inputs)",
            "self._compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)",
            "`compute_loss` calls `_compute_loss` with num_items_in_batch as well",
        ),
    ],
)
def test_an_argument_that_a_replaced_method_does_not_take_is_noticed(tmp_path, caller, call, changed_call, problem):
    """Though the method itself takes it, and with a default."""
    found = sentence_about(trl_with(tmp_path, caller, (call, changed_call)), caller)
    assert problem in found


def test_every_replaced_method_takes_what_is_said_of_it():
    """The others hand on whatever they are called with."""
    replaced = {name for part in SEAM for name in RELIED_METHODS if name in vars(part)}
    assert replaced >= set(FIXED_METHODS)
    for name in replaced:
        parameters = inspect.signature(getattr(TrajectoryTrainer, name)).parameters
        if name in FIXED_METHODS:
            assert tuple(parameters) == RELIED_METHODS[name]
        else:
            kinds = {parameter.kind for parameter in parameters.values()}
            assert {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds


@pytest.mark.parametrize(
    ("method", "values", "count"),
    [
        ("_generate", (1,) * 9, "9 values instead of 8"),
        ("_generate", [1] * 8, "1 value instead of 8"),
        ("_generate_single_turn", (1, 2, 3), "3 values instead of 2"),
        ("_get_per_token_logps_and_entropies", (1, 2), "2 values instead of 3"),
        ("_compute_loss", (1, 2), "2 values instead of 1"),
    ],
)
def test_another_number_of_values_is_noticed_where_they_are_returned(method, values, count):
    with pytest.raises(ImportError) as error:
        check_values(method, values)
    assert_one_sentence(str(error.value), f"`{method}` returns {count}")


def test_the_values_that_are_relied_on_are_handed_on():
    assert check_values("_generate", tuple(range(8))) == tuple(range(8))
    assert check_values("_compute_loss", "loss") == "loss"


def trainer_of_one_step(tmp_path, tokenizer):
    return Mem1GRPOTrainer(
        model=tiny_model("llama"),
        reward_funcs=lambda completions, **kwargs: [float(index) for index in range(len(completions))],
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2, max_completion_length=6, max_steps=1)),
        train_dataset=lookup_dataset().remove_columns("secret"),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("_generate", lambda outputs: (*outputs, None)),
        ("_generate_single_turn", lambda outputs: (*outputs, None)),
        ("_get_per_token_logps_and_entropies", lambda outputs: outputs[:2]),
        ("_calculate_rewards", lambda outputs: (outputs, None)),
        ("_compute_loss", lambda outputs: (outputs, None)),
    ],
)
def test_a_step_of_training_says_which_method_returns_another_number_of_values(
    tmp_path, tokenizer, monkeypatch, method, more
):
    """Each is checked where it is called, before its values go anywhere."""
    trainer = trainer_of_one_step(tmp_path, tokenizer)
    original = getattr(GRPOTrainer, method)
    monkeypatch.setattr(GRPOTrainer, method, lambda self, *args, **kwargs: more(original(self, *args, **kwargs)))
    with pytest.raises(ImportError) as error:
        trainer.train()
    assert_one_sentence(str(error.value), f"`{method}` returns")


def test_a_step_of_training_refuses_a_key_that_trl_has_added(tmp_path, tokenizer, monkeypatch):
    """As its source does not show it: before the batch is cut, joined or trained on."""
    trainer = trainer_of_one_step(tmp_path, tokenizer)
    original = GRPOTrainer._generate_and_score_completions

    def more(self, inputs):
        batch = original(self, inputs)
        return {**batch, "sampling_mask": torch.ones_like(batch["completion_ids"])}

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", more)
    with pytest.raises(ImportError) as error:
        trainer.train()
    assert_one_sentence(str(error.value), "makes a batch with the key 'sampling_mask'")


# The keys of a batch


def small_batch() -> dict:
    return {
        "prompt_ids": torch.arange(8).view(4, 2),
        "completion_ids": torch.arange(12).view(4, 3),
        "advantages": torch.arange(4.0),
        "num_items_in_batch": torch.tensor(12),
    }


def test_a_batch_is_cut_by_its_rows():
    first, second = row_chunks(small_batch(), 3)
    assert first["advantages"].tolist() == [0.0, 1.0, 2.0] and second["advantages"].tolist() == [3.0]
    assert second["prompt_ids"].tolist() == [[6, 7]]
    assert int(first["num_items_in_batch"]) == int(second["num_items_in_batch"]) == 12
    joined = join_rows([first, second])
    assert set(joined) == set(small_batch())
    assert all(torch.equal(joined[key], value) for key, value in small_batch().items())
    taken = take_rows(small_batch(), torch.tensor([2, 0]))
    assert taken["completion_ids"].tolist() == [[6, 7, 8], [0, 1, 2]] and int(taken["num_items_in_batch"]) == 12


@pytest.mark.parametrize("value", [["a", "b", "c", "d"], torch.arange(4), torch.tensor(1), None])
@pytest.mark.parametrize(
    "cut",
    [lambda b: row_chunks(b, 2), lambda b: take_rows(b, torch.tensor([0])), lambda b: join_rows([b, b])],
    ids=["row_chunks", "take_rows", "join_rows"],
)
def test_a_key_of_a_batch_that_is_unknown_is_refused_by_name(cut, value):
    with pytest.raises(ValueError, match=r"The batch has the key 'surprise'.*ROW_KEYS or BATCH_KEYS"):
        cut({**small_batch(), "surprise": value})


@pytest.mark.parametrize(
    ("value", "given"),
    [([0.0] * 4, "type list"), (torch.tensor(1.0), r"shape \(\)"), (torch.zeros(3), r"shape \(3,\)")],
)
def test_a_value_that_has_no_entry_for_each_row_is_refused(value, given):
    with pytest.raises(ValueError, match=f"key 'advantages' of the batch .* each of the 4 rows, got {given}"):
        row_chunks({**small_batch(), "advantages": value}, 2)


def test_the_keys_that_trl_makes_are_known_except_those_of_images():
    """Read off TRL's code, so that a new key is noticed here."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    output = source[source.index("output = {") :]
    made = set(re.findall(r'"(\w+)": \w+', output)) | set(re.findall(r'output\["(\w+)"\] =', output))
    assert returned_keys(GRPOTrainer._generate_and_score_completions) == made
    assert set(RELIED_BATCH_KEYS) <= made
    assert made - IMAGE_KEYS <= ROW_KEYS | BATCH_KEYS
    assert not IMAGE_KEYS & (ROW_KEYS | BATCH_KEYS) and not ROW_KEYS & BATCH_KEYS


def test_a_list_with_one_entry_for_each_row_is_not_handed_to_every_micro_batch(tmp_path, tokenizer):
    """A key that `extend_batch` adds: TRL cuts the list by rows, and the seam would not know that it is one."""
    trainer = trainer_of_one_step(tmp_path, tokenizer)
    trainer.extend_batch = lambda batch, trajectories, rewards: batch.update(names=list("abcdefgh")[: len(rewards)])
    with pytest.raises(ValueError, match="The batch has the key 'names'"):
        trainer.train()


# What TRL's code does with what it is given


@pytest.fixture(scope="module")
def batch_and_trainer(tmp_path_factory, tokenizer):
    """A trainer of TRL's own and a batch that it made."""
    arguments = trl_arguments(tmp_path_factory.mktemp("out"), num_generations=2, max_completion_length=6)
    trainer = GRPOTrainer(
        model=tiny_model("llama"),
        reward_funcs=lambda completion_ids, **kwargs: [float(len(ids) + sum(ids) % 7) for ids in completion_ids],
        args=GRPOConfig(**arguments),
        train_dataset=lookup_dataset().remove_columns("secret"),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    torch.manual_seed(0)
    rows = [{"prompt": "a?"}, {"prompt": "a?"}, {"prompt": "bbb?"}, {"prompt": "bbb?"}]
    return trainer._generate_and_score_completions(rows), trainer


def test_the_batch_has_the_keys_that_are_used(batch_and_trainer):
    batch, _ = batch_and_trainer
    optional = {"old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps", "tool_mask"}
    assert set(RELIED_BATCH_KEYS) - optional <= set(batch)


def test_the_loss_takes_advantages_per_token(batch_and_trainer):
    batch, trainer = batch_and_trainer
    shape = batch["completion_ids"].shape
    per_row = trainer._compute_loss(trainer.model, batch)
    spread = {**batch, "advantages": batch["advantages"][:, None].expand(shape)}
    torch.testing.assert_close(trainer._compute_loss(trainer.model, spread), per_row)
    # Each token has its own: the policy loss is minus their mean while the ratio is 1
    torch.manual_seed(1)
    advantages = torch.randn(shape)
    mask = batch["completion_mask"]
    loss = trainer._compute_loss(trainer.model, {**batch, "advantages": advantages})
    expected = -(advantages * mask).sum() / mask.sum()
    torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=1e-5)


def test_the_loss_leaves_tokens_out_where_the_tool_mask_is_zero(batch_and_trainer):
    batch, trainer = batch_and_trainer
    shape = batch["completion_ids"].shape
    torch.manual_seed(2)
    advantages = torch.randn(shape)
    tool_mask = (torch.rand(shape) > 0.4).long()
    mask = batch["completion_mask"] * tool_mask
    changed = {**batch, "advantages": advantages, "tool_mask": tool_mask, "num_items_in_batch": mask.sum()}
    loss = trainer._compute_loss(trainer.model, changed)
    torch.testing.assert_close(loss.detach(), -(advantages * mask).sum() / mask.sum(), atol=1e-5, rtol=1e-5)
    noise = torch.where(mask.bool(), advantages, torch.full_like(advantages, 1e3))
    torch.testing.assert_close(trainer._compute_loss(trainer.model, {**changed, "advantages": noise}), loss)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_fused_head_takes_a_4d_mask_and_positions(tmp_path, tokenizer, attention):
    """TRL's patched forward, given a tree, gives the log-probs of the plain forward, temperature included."""
    import random

    from support.helpers import oracle_logprobs, random_trajectory

    from mem1_trl.update.attention.masks import model_mask

    trajectory = random_trajectory(random.Random(0), num_turns=3)
    model = tiny_model("llama", attention)
    expected = torch.cat(oracle_logprobs(model, trajectory, temperature=0.7))
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=GRPOConfig(**trl_arguments(tmp_path, num_generations=2, temperature=0.7)),
        train_dataset=lookup_dataset(),
        processing_class=tokenizer,
    )
    rows = RowBatch.from_rows([build_row(trajectory, "packed")])
    labels = rows.input_ids.masked_fill(~rows.tool_mask, -100)
    with torch.no_grad():
        output = trainer.model(
            input_ids=rows.input_ids,
            attention_mask=model_mask(tree_context_mask(rows), attention, torch.float32),
            position_ids=tree_positions(rows),
            labels=labels,
            fused_lm_head=True,
            temperature=0.7,
        )
    torch.testing.assert_close(output.log_probs[rows.tool_mask[:, 1:]], expected, atol=1e-4, rtol=0)


def test_generate_gives_eight_values(batch_and_trainer):
    _, trainer = batch_and_trainer
    outputs = trainer._generate(["a?", "b?"])
    assert len(outputs) == 8
    prompt_ids, completion_ids, tool_mask, completions, *_ = outputs
    assert len(prompt_ids) == len(completion_ids) == len(completions) == 2
    assert tool_mask is None and all(isinstance(text, str) for text in completions)


def test_a_row_of_the_data_set_is_the_same_entry_of_the_record_and_the_batch(tmp_path, tokenizer):
    """From the data set to the loss: row, trajectory, row of tokens, reward, row of TRL's batch."""
    trainer = Mem1GRPOTrainer(
        model=tiny_model("llama"),
        reward_funcs=lambda prompts, **kwargs: [float(len(text)) for text in prompts],
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2, max_completion_length=6, max_steps=1)),
        train_dataset=lookup_dataset(),
        processing_class=tokenizer,
    )
    records, batches = [], []
    score, extend = trainer._calculate_rewards, trainer.extend_batch

    def look(*args):
        per_function = score(*args)
        records.append(trainer.current_batch)
        return per_function

    trainer._calculate_rewards = look
    trainer.extend_batch = lambda batch, *args: (batches.append({**batch}), extend(batch, *args))
    trainer.train()
    assert trainer.current_batch is None
    (record,), (batch,) = records, batches
    assert len(record.rows) == len(record.trajectories) == len(record.tree_rows) == len(batch["completion_ids"]) == 4
    for index, (row, trajectory, tree) in enumerate(zip(record.rows, record.trajectories, record.tree_rows)):
        assert trajectory.prompt_ids == tuple(tree.prompt_ids) and tree == build_row(trajectory, "packed")
        assert tokenizer.decode(tree.prompt_ids) == row["prompt"]
        assert float(record.rewards[index]) == trajectory.reward == len(row["prompt"])
        kept = batch["completion_mask"][index].bool()
        assert batch["completion_ids"][index][kept].tolist() == tree.completion_ids
        assert batch["turn_ids"][index][kept].tolist() == tree.turn_ids
    assert record.left_out == [False] * 4


# Configurations


def test_ppo_allows_one_generation_and_grpo_does_not(tmp_path):
    with pytest.raises(
        ValueError, match=r"^num_generations must be at least 2, since episodes of a task are compared, got 1\.$"
    ):
        Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=1))
    config = Mem1PPOConfig(**trainer_arguments(tmp_path))
    assert config.num_generations == 1 and type(config.num_generations) is int
    assert config.to_dict()["num_generations"] == 1


@pytest.mark.parametrize("eval_strategy", ["no", "steps"])
@pytest.mark.parametrize("given", ["nothing", "steps", "batch", "both"])
def test_one_generation_derives_what_trl_derives_for_groups(tmp_path, given, eval_strategy):
    """Over a grid of sizes: the generation batch is the steps times the rows of a step, whatever its size."""
    cases = 0
    for size, accumulation, number, evaluated in itertools.product(
        (1, 2, 3, 4), (1, 2, 3), (1, 2, 3, 6), (None, 1, 2)
    ):
        chosen = {"steps": {"steps_per_generation": number}, "batch": {"generation_batch_size": number}}
        chosen["both"] = {**chosen["steps"], **chosen["batch"]}
        kwargs = trainer_arguments(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, eval_steps=1,
            eval_strategy=eval_strategy, per_device_eval_batch_size=3, num_generations_eval=evaluated,
            **chosen.get(given, {}),
        )  # fmt: skip
        sentence = None
        if given == "both":
            sentence = "can not be both configured"
        elif eval_strategy == "steps" and evaluated == 2:
            sentence = "The global eval batch size (3 * 1) must be divisible by the number of generations"
        elif given == "batch" and number % size:
            sentence = f"generation_batch_size ({number}) must be divisible by the global batch size ({size})"
        if sentence is not None:
            with pytest.raises(ValueError, match=re.escape(sentence)):
                Mem1PPOConfig(**kwargs)
            continue
        config = Mem1PPOConfig(**kwargs)
        steps = {"nothing": accumulation, "steps": number, "batch": number // size}[given]
        assert (config.steps_per_generation, config.generation_batch_size) == (steps, steps * size)
        assert (config.num_generations, config.num_generations_eval) == (1, evaluated)
        assert config.per_device_train_batch_size == size and config.gradient_accumulation_steps == accumulation
        cases += 1
    assert cases or given == "both"


def test_trl_is_shown_an_ordinary_number_of_generations(tmp_path, monkeypatch):
    seen = []
    check = GRPOConfig.__post_init__

    def look(self):
        seen.append((type(self.num_generations), self.num_generations))
        check(self)

    monkeypatch.setattr(GRPOConfig, "__post_init__", look)
    Mem1PPOConfig(**trainer_arguments(tmp_path))
    Mem1PPOConfig(**trainer_arguments(tmp_path, num_generations=4))
    assert seen == [(int, 2), (int, 4)]


@pytest.mark.parametrize("number", [0, -1, None])
def test_ppo_refuses_less_than_one_generation(tmp_path, number):
    with pytest.raises(ValueError, match=f"num_generations must be at least 1, got {number}"):
        Mem1PPOConfig(**trainer_arguments(tmp_path, num_generations=number))


@pytest.mark.parametrize("num_generations", [3, 8])
@pytest.mark.parametrize("config", [Mem1GRPOConfig, Mem1PPOConfig])
def test_a_group_that_does_not_divide_the_batch_is_refused(tmp_path, config, num_generations):
    with pytest.raises(ValueError, match="divisible by num_generations"):
        config(**trainer_arguments(tmp_path, num_generations=num_generations))


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        (
            {"context": "sliding"},
            "context must be one of 'mem1', 'full', 'truncate', 'external', 'compact', 'on_demand', 'fold', or the import path",
        ),
        ({"layout": "stacked"}, "layout must be one of 'packed', 'per_turn', 'paper', got 'stacked'"),
        ({"max_turns": 0}, "max_turns must be at least 1, got 0"),
        ({"max_observation_length": 0}, "max_observation_length must be at least 1, got 0"),
        ({"max_completion_length": 0}, "max_completion_length"),
        ({"context": "truncate"}, "set `max_context_length`"),
        ({"layout": "paper", "context": "full"}, "layout='paper' is the mask of MEM1's own context"),
        ({"eval_temperature": -1.0}, "eval_temperature must be at least 0 (greedy decoding) or None, got -1.0"),
        ({"max_tool_calling_iterations": 3}, "set `max_turns` instead"),
    ],
)
def test_bad_settings_are_refused(tmp_path, kwargs, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2, **{"max_completion_length": 12, **kwargs}))


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"gamma": 1.1}, "gamma=1.1 must lie between 0 and 1"),
        ({"lam": -0.1}, "lam=-0.1 must lie between 0 and 1"),
        ({"vf_coef": -1.0}, "vf_coef=-1.0"),
        ({"value_learning_rate": 0.0}, "value_learning_rate=0.0 must be positive"),
        ({"cliprange_value": 0.0}, "cliprange_value=0.0 must be positive"),
        ({"scale_rewards": "group"}, "scale_rewards='group'"),
        ({"scale_rewards": "batch"}, "scale_rewards='batch'"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level='sequence'"),
        ({"loss_type": "luspo"}, "loss_type='luspo'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation='normalize_then_sum'"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold=0.5"),
    ],
)
def test_bad_settings_of_ppo_are_refused(tmp_path, kwargs, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Mem1PPOConfig(**trainer_arguments(tmp_path, **kwargs))
