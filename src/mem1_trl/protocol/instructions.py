"""Templates of the task prompt, one for each preset of the protocol."""

from __future__ import annotations

DEFAULT_INSTRUCTIONS = """\
{prompt}

Work in turns. Your memory between turns is what you write between <{state}> and </{state}>, and nothing else: at the \
start of every turn rewrite it as one short summary of all that you have found out so far and what is left to do. Then \
act, with exactly one of:
{actions}
The result appears between <{observation}> and </{observation}>. When you are done, write \
<{answer}>your answer</{answer}> instead; to several questions, give the answers in order, separated by semicolons."""

TOOL_CALL_INSTRUCTIONS = """\
{prompt}

Work in turns and call the tools you need. Between turns you keep what you write between <{state}> and </{state}>, your \
last call and its result; everything older is gone. So begin every turn with one short summary between these tags: all that \
you have found out so far, and what is left to do. When you are done, write your answer instead of calling a tool; to \
several questions, give the answers in order, separated by semicolons."""

WEBSHOP_INSTRUCTIONS = """\
You shop in a web shop, page by page, until you have bought what the task asks for.

{prompt}

At every step the page stands between <{observation}> and </{observation}>. Think aloud between <think> and </think>; that \
is not kept. Then write between <{state}> and </{state}> one short summary of all that matters so far: what is wanted, what \
you have seen, what you have chosen. It is the only memory you keep. Then act, with exactly one of these between \
<{answer}> and </{answer}>:
{actions}"""

PAPER_INSTRUCTIONS = """\
You will answer several questions by searching, one step at a time. At each step first rewrite a concise summary of all \
essential information found so far, and of what is still open, between <{state}> and </{state}>: this summary is the \
only memory you keep. Then either act, with exactly one keyword query about one of the questions:
{actions}
and read what it finds between <{observation}> and </{observation}>; or, once every question is settled, write the final \
answers between <{answer}> and </{answer}>, in the order of the questions and separated by semicolons.

Questions: {prompt}"""
