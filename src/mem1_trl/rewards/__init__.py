"""Ready reward functions: for answers, and for states."""

from .answers import ANSWER_SEPARATOR as ANSWER_SEPARATOR
from .answers import Answers as Answers
from .answers import are_answers as are_answers
from .answers import exact_match as exact_match
from .answers import exact_match_reward as exact_match_reward
from .answers import f1 as f1
from .answers import f1_reward as f1_reward
from .answers import form_of_answers as form_of_answers
from .answers import invalid_action_penalty as invalid_action_penalty
from .answers import normalize_answer as normalize_answer
from .answers import score_answer as score_answer
from .answers import split_answers as split_answers
from .answers import to_nfc as to_nfc
from .containing import contains_answer as contains_answer
from .states import retained_reward as retained_reward
from .states import state_budget_penalty as state_budget_penalty
