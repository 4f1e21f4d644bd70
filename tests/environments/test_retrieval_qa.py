"""The BM25 index and the question-answering environment, the latter inside TRL's own trainer too."""

import inspect
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from support.scripted_agent import scripted
from support.tool_helpers import call, said, template_tokenizer, tool_policy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer

from mem1_trl import Mem1Agent, Mem1Protocol
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.facts import load_facts
from mem1_trl.retrieval import Bm25Index
from mem1_trl.rewards import exact_match_reward
from mem1_trl.tasks import compose_objectives

CORPUS = [
    ("Iron", "Iron has the symbol Fe."),
    ("Gold", "Gold has the symbol Au."),
    ("Carbon", "Carbon has the symbol C."),
]


def titles(passages):
    return [passage.title for passage in passages]


# --- Bm25Index -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4)])
def test_scores_are_those_of_bm25(k1, b):
    corpus = [("x", "red fox"), ("y", "red red dog runs"), ("z", "blue cat")]
    index = Bm25Index(corpus, k1=k1, b=b)
    lengths = {"x": 3, "y": 5, "z": 3}  # words of title and text
    mean = 11 / 3
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # "red" stands in two of three passages
    expected = {
        title: idf * count / (count + k1 * (1 - b + b * lengths[title] / mean))
        for title, count in {"x": 1, "y": 2}.items()
    }
    [passages] = index.search(["Red?"], top_k=3)
    assert {p.title: p.score for p in passages} == pytest.approx(expected, rel=1e-5)
    assert titles(passages) == sorted(expected, key=expected.get, reverse=True)


def test_search_is_batched_and_best_first():
    first, second = Bm25Index(CORPUS).search(["symbol of gold", "iron"], top_k=2)
    assert titles(first) == ["Gold", "Iron"]  # Iron and Carbon share "symbol" equally: the earlier one wins
    assert first[0].score > first[1].score > 0
    assert titles(second) == ["Iron"]  # passages that share no word are left out
    assert second[0].text == "Iron has the symbol Fe."


@pytest.mark.parametrize("query", ["", "   ", "?!", "zebra"])
def test_a_query_without_known_words_finds_nothing(query):
    assert Bm25Index(CORPUS).search([query, "iron"], top_k=1)[0] == []


def test_single_characters_are_words():
    assert titles(Bm25Index(CORPUS).search(["C"], top_k=1)[0]) == ["Carbon"]


def test_top_k_beyond_the_corpus():
    [passages] = Bm25Index(CORPUS).search(["symbol"], top_k=10)
    assert titles(passages) == ["Iron", "Gold", "Carbon"]


def test_equal_passages_come_in_the_order_of_the_corpus():
    index = Bm25Index([(f"t{i}", "same words") if i % 3 else (f"t{i}", "words words") for i in range(100)])
    expected = [f"t{i}" for i in range(0, 100, 3)] + [f"t{i}" for i in range(100) if i % 3]
    for top_k in (1, 40, 100):
        assert titles(index.search(["words"], top_k=top_k)[0]) == expected[:top_k]


def test_stopwords():
    assert len(Bm25Index(CORPUS).search(["the"], top_k=3)[0]) == 3
    assert Bm25Index(CORPUS, stopwords="en").search(["the"], top_k=3) == [[]]
    assert Bm25Index(CORPUS, stopwords=["IRON"]).search(["Iron"], top_k=3) == [[]]
    with pytest.raises(ValueError, match="Unknown `stopwords` 'klingon'"):
        Bm25Index(CORPUS, stopwords="klingon")


def test_every_form_of_corpus_gives_the_same_index():
    mappings = [{"title": title, "text": text} for title, text in CORPUS]
    named = [{"name": title, "contents": text} for title, text in CORPUS]
    indices = [Bm25Index(CORPUS), Bm25Index(iter(mappings)), Bm25Index(named, title="name", text="contents")]
    results = [index.search(["symbol of gold"]) for index in indices]
    assert results[0] == results[1] == results[2]
    assert len(Bm25Index(load_facts().corpus)) == len(load_facts().corpus)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ([], "corpus is empty"),
        ([("", "?!")], "holds no word"),
        ([{"title": "x", "body": "y"}], "Passage 0 has no 'text' .it has 'title', 'body'."),
        (["just text"], "neither a mapping nor a pair"),
    ],
)
def test_bad_corpora_are_refused(corpus, message):
    with pytest.raises(ValueError, match=message):
        Bm25Index(corpus)


def test_bad_searches_are_refused():
    index = Bm25Index(CORPUS)
    with pytest.raises(TypeError, match="list of strings"):
        index.search("iron")
    with pytest.raises(TypeError, match="not 26"):
        index.search([26])
    with pytest.raises(ValueError, match="at least one passage"):
        index.search(["iron"], top_k=0)


def test_a_passage_without_words_does_no_harm():
    assert titles(Bm25Index([*CORPUS, ("", "")]).search(["gold"])[0]) == ["Gold"]


def test_indexing_and_searching_are_silent(capfd):
    Bm25Index(CORPUS).search(["iron", "gold"])
    assert capfd.readouterr() == ("", "")


def test_threads_get_what_one_thread_gets():
    facts = load_facts()
    index = Bm25Index(facts.corpus)
    queries = list(facts.questions("test")["question"])
    expected = [index.search([query])[0] for query in queries]
    assert index.search(queries) == expected
    with ThreadPoolExecutor(max_workers=8) as pool:
        assert list(pool.map(lambda query: index.search([query])[0], queries)) == expected


# --- RetrievalQAEnvironment ------------------------------------------------------------------------------------------


@pytest.fixture
def row():
    questions = [
        {"question": "What is the symbol of gold?", "answer": "Au"},
        {"question": "What is the symbol of iron?", "answer": "Fe"},
    ]
    return compose_objectives(Dataset.from_list(questions), n=2)[0]


def actions(environment):
    """TRL's rule for what an action is."""
    members = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    names = [name for name, _ in members if not name.startswith("_") and name not in ("reset", "get_reward")]
    return [getattr(environment, name) for name in names]


def test_an_episode(row):
    environment = RetrievalQAEnvironment.factory(CORPUS, top_k=2)()
    assert environment.reset(**row, environment="qa") is None
    assert not environment.done
    assert environment.search("symbol gold") == (
        "Doc 1(Title: Gold) Gold has the symbol Au.\nDoc 2(Title: Iron) Iron has the symbol Fe.\n"
    )
    assert environment.search("") == "No passage matches this query.\n"
    assert environment.get_reward() == 0.0
    environment.answer("au; Cu")
    assert environment.done and environment.final_answer == "au; Cu"
    assert environment.get_reward() == 1.0
    assert environment.reset(**row) is None
    assert not environment.done and environment.get_reward() == 0.0


def test_reset_gives_the_task_to_rows_without_a_prompt(row):
    environment = RetrievalQAEnvironment.factory(CORPUS)()
    del row["prompt"]
    assert environment.reset(**row) == "What is the symbol of gold?; What is the symbol of iron?"


def test_rows_that_cannot_be_scored(row):
    environment = RetrievalQAEnvironment.factory(CORPUS)()
    with pytest.raises(ValueError, match="got 2 questions and 1 answers"):
        environment.reset(**{**row, "answers": [["Au"]]})
    environment.reset(prompt=row["prompt"])
    environment.answer("Au; Fe")
    assert environment.get_reward() is None


def test_the_factory_indexes_once_and_episodes_are_separate(row, monkeypatch):
    make_env = RetrievalQAEnvironment.factory(CORPUS)
    monkeypatch.setattr(Bm25Index, "__init__", lambda *args: pytest.fail("the corpus was indexed again"))
    first, second = make_env(), make_env()
    first.reset(**row)
    second.reset(**row)
    first.answer("Au; Fe")
    assert (first.get_reward(), second.get_reward()) == (2.0, 0.0)
    assert not second.done


def test_top_k_is_checked_before_anything_runs():
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        RetrievalQAEnvironment.factory(CORPUS, top_k=0)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        RetrievalQAEnvironment(Bm25Index(CORPUS), top_k=0)


def test_without_arguments_it_searches_the_bundled_facts():
    first, second = RetrievalQAEnvironment(), RetrievalQAEnvironment()
    assert first.search("chemical symbol iron").startswith("Doc 1(Title: Iron) ")
    assert first._index is second._index


def test_actions_have_tool_schemas():
    schemas = {tool.__name__: get_json_schema(tool)["function"] for tool in actions(RetrievalQAEnvironment())}
    assert set(schemas) == {"search", "answer"}
    for name, parameter in (("search", "query"), ("answer", "answer")):
        parameters = schemas[name]["parameters"]
        assert list(parameters["properties"]) == parameters["required"] == [parameter]
        assert parameters["properties"][parameter]["type"] == "string"
        assert parameters["properties"][parameter]["description"]


def make_tokenizer():
    """A byte-level tokenizer with the Qwen3 chat template that TRL ships, so that tool calls can be rendered."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )


@pytest.mark.filterwarnings("ignore")
def test_trl_trains_in_it(tmp_path, row):
    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    messages = [{"role": "user", "content": row["prompt"]}]
    dataset = Dataset.from_list([{**row, "prompt": messages}] * 2)
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        max_steps=1,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
    )
    trainer = GRPOTrainer(
        model=Qwen2ForCausalLM(config),
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        environment_factory=RetrievalQAEnvironment.factory(CORPUS),
    )
    assert [tool.__name__ for tool in trainer.tools] == ["answer", "search"]
    assert trainer.reward_func_names == ["RetrievalQAEnvironment"]
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/RetrievalQAEnvironment/mean" in entry]
    assert logged[0]["rewards/RetrievalQAEnvironment/mean"] == 0.0  # a random model calls no action
    # The instances TRL drew were reset on the rows of the dataset, through the columns of `compose_objectives`.
    environment = trainer.environments[0]
    environment.answer("Au; Fe")
    assert environment.get_reward() == 2.0


@pytest.mark.parametrize("last", ["Paris", call("answer", '{"answer": "Paris"}')])
def test_an_answer_by_tool_calls_is_scored_and_known_however_it_is_given(last):
    """The instructions ask for an answer instead of a call; the environment has an action that takes one, too."""
    tokenizer = template_tokenizer("qwen3")
    agent = Mem1Agent(
        tool_policy(tokenizer), tokenizer, Mem1Protocol.tool_calls(), max_turns=4, max_observation_length=400
    )
    scripted(agent, tokenizer, [said("s", call("search", '{"query": "France"}')), said("found", last)])
    row = {"prompt": "capital of France?", "questions": ["c?"], "answers": [["Paris"]]}
    (trajectory,) = agent.run_batch([row], [RetrievalQAEnvironment(top_k=1)])
    assert (trajectory.reward, trajectory.answer) == (1.0, "Paris")
    assert exact_match_reward([""], answers=[row["answers"]], trajectories=[trajectory]) == [1.0]


def test_a_conversation_searches_after_its_first_answer():
    """The environment is done with its task then; a further message is another one."""
    tokenizer = template_tokenizer("qwen3")
    settings = {"max_turns": 4, "max_observation_length": 400, "conversational": True}
    agent = Mem1Agent(tool_policy(tokenizer), tokenizer, Mem1Protocol(), **settings)
    turns = ["<search>France</search>", "<answer>Paris</answer>", "<search>Italy</search>", "<answer>Rome</answer>"]
    scripted(agent, tokenizer, [f"<think>s</think>{turn}" for turn in turns])
    episode = agent.start("capital of France?", RetrievalQAEnvironment(top_k=1))
    assert episode.run().answer == "Paris"
    episode.add_message("And of Italy?")
    assert episode.run().answer == "Rome" and len(episode.trajectory.turns) == 4
