"""
Support chat: one long session with a customer who has a dozen concerns, and comes back to what was said an hour ago.

    python examples/applications/support_chat.py                                   # a script plays, seconds
    python examples/applications/support_chat.py --model Qwen/Qwen2.5-7B-Instruct  # a model plays

The customer is simulated: he says the next thing when he is answered. The reward is the share of his concerns that were settled as
the shop's records say, and of his questions about earlier ones that were answered right.
"""

import random
import re

from application import run

ITEMS = [
    "kettle",
    "lamp",
    "backpack",
    "keyboard",
    "tent",
    "drill",
    "blender",
    "scarf",
    "globe",
    "scooter",
    "vase",
    "radio",
]
STREETS = ["Mill Lane", "Harbour Road", "Station Street", "Orchard Way", "Castle Hill"]
CONCERNS = {
    "refund": "The {item} of order {order} arrived broken. I want my money back.",
    "replace": "You sent the wrong {item} with order {order}. Please replace it.",
    "address": "I have moved. Please send order {order}, the {item}, to {address}.",
    "when": "When will order {order} arrive? It is the {item}.",
}


class SupportDesk:
    """A chat with one customer, and the shop's records."""

    def reset(self, prompt, events, **row) -> str:
        """`events`: what the customer says, in order, and what settles it."""
        self.events, self.now, self.settled, self.done = events, 0, [], False
        self.records = {e["order"]: dict(e, actions=[]) for e in events if e["kind"] != "recall"}
        return f"\nCustomer: Hello! {events[0]['text']}\n"

    def say(self, message: str) -> str:
        """Answer the customer; returns what he says next."""
        event = self.events[self.now]
        self.settled.append(
            event["expected"] in (message if event["told"] else self.records[event["order"]]["actions"])
        )
        self.now += 1
        if self.now == len(self.events):
            self.done = True
            return "Customer: That was all. Goodbye!"
        return f"Customer: Thanks. {self.events[self.now]['text']}"

    def look_up(self, order: str) -> str:
        """Read the record of an order."""
        record = self._record(order)
        return f"Order {order}: one {record['item']}, {record['price']} euros, arrives on {record['arrives']}."

    def refund(self, order: str) -> str:
        """Pay the price of an order back."""
        record = self._record(order)
        record["actions"].append("refund")
        return f"{record['price']} euros paid back for order {order}."

    def replace(self, order: str) -> str:
        """Send the item of an order once more."""
        self._record(order)["actions"].append("replace")
        return f"Order {order} is sent again."

    def change_address(self, order: str, address: str) -> str:
        """Send an order to another address."""
        self._record(order)["actions"].append(f"address {address}")
        return f"Order {order} goes to {address}."

    def _record(self, order: str) -> dict:
        if order not in self.records:
            raise KeyError(f"there is no order {order}")
        return self.records[order]

    def get_reward(self) -> float:
        """Share of the customer's concerns and questions that were settled."""
        return sum(self.settled) / len(self.events)


def sessions(count, seed=0):
    """A dozen concerns in random order; after every third a question about an earlier refund."""
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        items, events, refunds = rng.sample(ITEMS, len(ITEMS)), [], []
        kinds = ["refund"] * 5 + ["replace"] * 2 + ["address"] * 3 + ["when"] * 2
        for place, (item, kind) in enumerate(zip(items, rng.sample(kinds, len(kinds)))):
            event = {
                "kind": kind,
                "item": item,
                "order": str(rng.randrange(1000, 10000)),
                "price": rng.randrange(10, 100),
            }
            event |= {
                "arrives": f"May {rng.randrange(1, 31)}",
                "address": f"{rng.randrange(1, 99)} {rng.choice(STREETS)}",
            }
            event["text"] = CONCERNS[kind].format(**event)
            expected = {"when": event["arrives"], "address": f"address {event['address']}"}.get(kind, kind)
            events.append(event | {"expected": expected, "told": kind == "when"})
            refunds += [event] * (kind == "refund")
            if place % 3 == 2 and refunds:
                old = rng.choice(refunds)
                text = f"By the way, how much did you pay back for the {old['item']}?"
                events.append(
                    old | {"kind": "recall", "text": text, "expected": f"{old['price']} euros", "told": True}
                )
        yield {"prompt": "You are the support desk of a shop. Settle all the customer asks for.\n", "events": events}


def script(task, memory, action, observation):
    """Do what the customer's last words ask for, tell him, and keep the amounts that were paid back."""
    paid = memory.get("paid back", {})
    text = re.sub(r"\[HINT\].*?\[/HINT\]", "", observation) or task
    if "Customer:" in text:
        customer = text.split("Customer: ")[-1].splitlines()[0]
        order = (re.search(r"order (\d+)", customer) or [None, None])[1]
        item = re.search(rf"({'|'.join(ITEMS)})", customer)[1]
        memory = {"paid back": paid, "order": order, "item": item}
        if "how much" in customer:
            return {"paid back": paid}, "say", f"I paid back {paid.get(item, 'no')} euros for the {item}."
        if "money back" in customer:
            return memory, "refund", order
        if "replace" in customer:
            return memory, "replace", order
        if "moved" in customer:
            return memory, "change_address", {"order": order, "address": re.search(r" to (\d+ .+?)\.", customer)[1]}
        return memory, "look_up", order
    if refund := re.search(r"(\d+) euros paid back", text):
        paid = paid | {memory["item"]: int(refund[1])}
    return {"paid back": paid}, "say", f"{text.strip().splitlines()[-1].removesuffix('</information>')} Anything else?"


if __name__ == "__main__":
    run(__doc__, "support_chat", list(sessions(4)), SupportDesk, script, max_turns=60)
