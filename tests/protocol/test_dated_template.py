"""Chat templates that write the date."""

from __future__ import annotations

from datetime import datetime

import pytest
from support.tool_helpers import template_tokenizer
from support.trainer_helpers import chat_tokenizer

from mem1_trl import Mem1Protocol
from mem1_trl.protocol.dated_template import dated_template

MOON = datetime(1969, 7, 20, 20, 17).timestamp()
TASK = [{"role": "user", "content": "Who?"}]


@pytest.mark.parametrize("start", ["", "\n", "\n  {% set x = 1 %}\n"])
def test_a_template_writes_the_date_of_another_time_and_nothing_else_changes(start):
    tokenizer = chat_tokenizer()
    written = (
        "{% macro day() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}Today: {{ day() }} {{ strftime_now(\"%B\") }}\n"
    )
    tokenizer.chat_template = f"{start}{written}{tokenizer.chat_template}"
    now = tokenizer.apply_chat_template(TASK, tokenize=False)
    then = tokenizer.apply_chat_template(
        TASK, tokenize=False, chat_template=dated_template(tokenizer.chat_template, MOON)
    )
    today = datetime.now()
    assert then == now.replace(f"{today:%Y-%m-%d} {today:%B}", "1969-07-20 July") and "1969" in then


@pytest.mark.parametrize(
    "template", [None, {"default": "{{ strftime_now('%Y') }}"}, "{{ 1 }}", "{{ strftime_now(x) }}"]
)
def test_other_templates_stay_as_they_are(template):
    assert dated_template(template, MOON) is template
    assert dated_template("{{ strftime_now('%Y') }}", None) == "{{ strftime_now('%Y') }}"


def test_tasks_of_gpt_oss_are_of_the_day_on_which_they_were_given():
    tokenizer = template_tokenizer("gptoss")
    syntax = Mem1Protocol.tool_calls().syntax(tokenizer)
    assert "Current date: 1969-07-20" in tokenizer.decode(syntax.encode_task(TASK, at=MOON))
    assert syntax.encode_task(TASK, at=datetime.now().timestamp()) == syntax.encode_task(TASK)
