"""Exact match and F1, on cases worked out by hand."""

import pytest

from mem1_trl import Mem1Protocol
from mem1_trl.rewards import (
    contains_answer,
    exact_match,
    exact_match_reward,
    f1,
    f1_reward,
    invalid_action_penalty,
    normalize_answer,
    score_answer,
    split_answers,
)
from mem1_trl.trajectory import StopReason, Trajectory, Turn


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Isle of\tMan!", "isle of man"),
        ("St. George's", "st georges"),
        ("an A-team", "ateam"),
        ("Theresa Anders", "theresa anders"),
        ("  A ", ""),
        ("Cafe\u0301", "caf\u00e9"),
    ],
)
def test_normalize_answer(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("text", "n", "parts"),
    [
        ("Paris; 26", 2, ["Paris", "26"]),
        ("Paris;;26", 3, ["Paris", "", "26"]),
        ("Paris; 26", 1, None),
        ("Paris; 26;", 2, None),
        ("Paris", 1, ["Paris"]),
    ],
)
def test_split_answers(text, n, parts):
    assert split_answers(text, n) == parts


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        ("Paris; 26", [["Paris"], ["26"]], 2.0),
        ("the paris. ;26", [["Paris"], ["26"]], 2.0),
        ("26; Paris", [["Paris"], ["26"]], 0.0),  # position counts
        ("Paris; 27", [["Paris"], ["26"]], 1.0),
        ("Paris", [["Paris"], ["26"]], 0.0),  # one answer too few
        ("Paris; 26; Rome", [["Paris"], ["26"]], 0.0),  # one too many
        ("USA; 26", [["United States", "USA"], ["26", "twenty-six"]], 2.0),  # aliases
        ("Paris; 26", ["Paris", "26"], 2.0),  # a plain string is its only alias
        ("Paris, France", [["Paris"]], 0.0),
        (None, [["Paris"]], 0.0),
        ("", [["Paris"]], 0.0),
        ("; 26", [["A"], ["26"]], 1.0),  # an empty answer is none, though "A" normalises to nothing
        ("the", [["A"]], 0.0),
        ("; 26", [[""], ["26"]], 1.0),
        ("a", [["A"]], 1.0),
        (
            "Co\u0302te d'Ivoire; 서울",
            [["C\u00f4te d'Ivoire"], ["\u1109\u1165\u110b\u116e\u11af"]],
            2.0,
        ),  # NFC and NFD
        ("x\u00b2", [["x2"]], 0.0),  # but no letter is taken for another
        ("Paris; 26;", [["Paris"], ["26"]], 0.0),  # a semicolon too many is an answer too many
    ],
)
def test_exact_match(text, answers, score):
    assert exact_match(text, answers) == score


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        ("Port Louis", [["Port of Spain"]], 2 / 5),  # {port, louis} and {port, of, spain}: 2 * 1 / (2 + 3)
        ("Paris Paris Paris", [["Paris"]], 1.0),  # sets, not bags
        ("the city of Paris; 26", [["Paris"], ["26"]], 2 / 4 + 1),  # {city, of, paris}: 2 * 1 / (3 + 1)
        ("Paris", [["Rome", "Paris France"]], 2 / 3),  # the best alias
        ("Paris; 26", [["Paris"]], 0.0),  # wrong count
        ("; 26", [["Paris"], ["26"]], 1.0),
        (None, [["Paris"]], 0.0),
    ],
)
def test_f1(text, answers, score):
    assert f1(text, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("Paris; 27 km", (1.0, 0.5, 1 + 2 / 3, (1 + 2 / 3) / 2, 0.0)),  # {27, km} and {27}: 2 * 1 / (2 + 1)
        ("Paris; 27", (2.0, 1.0, 2.0, 1.0, 1.0)),
        ("Rome; 26", (0.0, 0.0, 0.0, 0.0, 0.0)),
        (None, (0.0, 0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_all_scores_of_an_answer(text, scores):
    names = ("exact_match", "exact_match_per_objective", "f1", "f1_per_objective", "success")
    assert score_answer(text, [["Paris"], ["27"]]) == pytest.approx(dict(zip(names, scores, strict=True)))


@pytest.mark.parametrize("score", [exact_match, f1])
@pytest.mark.parametrize("answers", [[], [["Paris"], []], "Paris", None])
def test_missing_references_are_refused(score, answers):
    with pytest.raises(ValueError, match="at least one reference for every objective"):
        score("Paris", answers)


@pytest.mark.parametrize("score", [exact_match, f1])
def test_references_that_are_not_texts_are_refused(score):
    with pytest.raises(ValueError, match=r"`answers` must hold texts, got \[\[26\]\]: write a number as '26'"):
        score("26", [[26]])
    with pytest.raises(ValueError, match=r"`answers` must hold texts, got \[26\]: write a number as '26'"):
        score("26", [26])


@pytest.mark.parametrize("reward", [exact_match_reward, f1_reward])
def test_a_row_without_answers_has_no_reward(reward):
    """As in a data set of which only a part is questions."""
    completions = ["<answer>Paris</answer>"] * 2
    assert reward(completions, answers=[["Paris"], None]) == [1.0, None]


def make_trajectory(answer):
    return Trajectory(turns=[Turn(prompt_ids=(1,), completion_ids=(2,))], answer=answer)


def test_reward_of_text_reads_the_last_answer_tag():
    completions = ["<answer>Rome</answer> no, <answer>\nParis\n</answer> done", "Paris", "<answer>Paris"]
    assert exact_match_reward(completions=completions, answers=[[["Paris"]]] * 3) == [1.0, 0.0, 0.0]


def test_reward_of_messages_ignores_what_the_environment_wrote():
    completions = [
        [
            {"role": "assistant", "content": "<answer>Paris France</answer>"},
            {"role": "tool", "content": "<answer>Paris</answer>"},
        ],
        [{"role": "assistant", "content": None}, {"role": "tool", "content": "<answer>Paris</answer>"}],
        [
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "<answer>Pa"}, {"type": "text", "text": "ris</answer>"}],
            }
        ],
    ]
    assert exact_match_reward(completions=completions, answers=[[["Paris"]]] * 3) == [0.0, 0.0, 1.0]
    assert f1_reward(completions=completions, answers=[[["Paris"]]] * 3) == pytest.approx([2 / 3, 0.0, 1.0])


def test_reward_prefers_the_answer_of_the_trajectory():
    rewards = exact_match_reward(
        prompts=["x", "x"],
        completions=["<answer>Rome</answer>", "<answer>Paris</answer>"],
        answers=[[["Paris"]], [["Paris"]]],
        trajectories=[make_trajectory("Paris"), make_trajectory(None)],
        trainer_state=None,
    )
    assert rewards == [1.0, 0.0]


def test_reward_refuses_a_dataset_without_answers_and_unequal_lengths():
    with pytest.raises(ValueError, match="no column 'answers'"):
        exact_match_reward(completions=["x"])
    with pytest.raises(ValueError, match="1 completions, 1 rows of answers and 2 episodes"):
        f1_reward(completions=["x"], answers=[[["Paris"]]], trajectories=[make_trajectory("Paris")] * 2)


def test_only_an_unreadable_action_is_penalised():
    trajectories = [make_trajectory(None) for _ in StopReason]
    for trajectory, reason in zip(trajectories, StopReason):
        trajectory.stop_reason = reason
    rewards = invalid_action_penalty(completions=["x"] * len(trajectories), trajectories=trajectories, prompts=[])
    assert rewards == [-1.0 if reason == "invalid_action" else 0.0 for reason in StopReason]


@pytest.mark.parametrize(("text", "answer"), [("राम", "रीम"), ("कि", "की"), ("பா", "பி")])
def test_a_vowel_sign_makes_another_word(text, answer):
    assert not contains_answer(text, [answer]) and contains_answer(f"{text} है", [text])


def test_an_answer_that_is_begun_twice_is_what_the_agent_is_said_to_answer():
    text = "<think>x</think><answer>a<answer>Paris</answer>"
    assert Mem1Protocol().syntax(None).parse([], text, type("None_", (), {"tags": {}})).answer == "Paris"
    assert exact_match_reward([text], answers=[["Paris"]]) == [1.0]


def test_numbers_are_not_split_where_words_have_no_spaces():
    held = [
        ("11月", "1月"),
        ("在位15年", "5年"),
        ("1月", "1月"),
        ("在位15年", "15年"),
        ("第3", "第3"),
        ("第31", "第3"),
        ("北京市", "北京"),
    ]
    assert [contains_answer(text, [answer]) for text, answer in held] == [False, False, True, True, True, False, True]
    assert not contains_answer("anything at all", ["the"]) and not contains_answer("11 moons", ["1 moons"])
