"""
A workflow with several tools: goes through an inbox of invoices, books what is right, flags what is not, and reports totals.

    python examples/applications/workflow.py                                   # a script plays, seconds
    python examples/applications/workflow.py --model Qwen/Qwen2.5-7B-Instruct  # a model plays

An invoice is to be booked in euros under its vendor's account, and flagged if the vendor is unknown or its number was seen before.
Both the duplicates and the totals need facts that were read many turns ago. The reward is the share of the mails and totals that are right.
"""

import random
import re

from application import run

VENDORS = {
    "Nordlicht": "energy",
    "Papier & Co": "office",
    "Webwerk": "software",
    "Speedy Cargo": "freight",
    "Aqua": "office",
}
RATES = {"EUR": 1.0, "USD": 0.9, "GBP": 1.2, "CHF": 1.1}


class Accounting:
    """An inbox, a list of vendors, exchange rates and the books."""

    def reset(self, prompt, mails, **row):
        """`mails`: each with `vendor`, `number`, `amount`, `currency`, and `right`, the correct treatment."""
        self.mails, self.read, self.dealt, self.report, self.done = mails, 0, {}, "", False

    def next_mail(self) -> str:
        """Open the next mail of the inbox."""
        if self.read == len(self.mails):
            return "The inbox is empty."
        mail = self.mails[self.read]
        self.read += 1
        return (
            f"Mail {self.read}: invoice {mail['number']} of {mail['vendor']} over {mail['amount']} {mail['currency']}."
        )

    def vendor(self, name: str) -> str:
        """Look up the account of a vendor."""
        return f"{name} belongs to the account {VENDORS[name]}." if name in VENDORS else f"{name} is unknown."

    def exchange_rate(self, currency: str) -> str:
        """Value of one unit of a currency in euros."""
        return f"1 {currency} is {RATES[currency]} EUR."

    def book(self, mail: int, account: str, euros: float) -> str:
        """Book the invoice of a mail."""
        self.dealt[int(mail)] = f"{account} {float(euros):.2f}"
        return f"Booked {float(euros):.2f} euros under {account}."

    def flag(self, mail: int, reason: str) -> str:
        """Put a mail aside for a person: reason `unknown` or `duplicate`."""
        self.dealt[int(mail)] = reason
        return f"Mail {mail} is flagged as {reason}."

    def answer(self, totals: str) -> str:
        """End with the totals of all accounts in euros: `account: total; ...`."""
        self.report, self.done = totals, True
        return "Thank you."

    def get_reward(self) -> float:
        """Share of the mails dealt with rightly and of the totals that are right."""
        totals: dict[str, float] = {}
        right = 0
        for number, mail in enumerate(self.mails, 1):
            right += self.dealt.get(number) == mail["right"]
            account, _, euros = mail["right"].partition(" ")
            if euros:
                totals[account] = totals.get(account, 0.0) + float(euros)
        said = dict(part.strip().split(": ", 1) for part in self.report.split(";") if ": " in part)
        right += sum(said.get(account) == f"{total:.2f}" for account, total in totals.items())
        return right / (len(self.mails) + len(totals))


def inboxes(count, seed=0):
    """Fourteen invoices; some come twice, some are from unknown vendors."""
    rng = random.Random(seed)
    for _ in range(count):
        mails, seen = [], set()
        for _ in range(14):
            vendor = rng.choice([*VENDORS, *VENDORS, "Prince of Nowhere"])
            number = rng.choice([*sorted(seen), None, None, None, None, None, None]) or f"R{rng.randrange(100, 1000)}"
            mail = {
                "vendor": vendor,
                "number": number,
                "amount": rng.randrange(10, 900),
                "currency": rng.choice([*RATES]),
            }
            euros = f"{VENDORS.get(vendor)} {mail['amount'] * RATES[mail['currency']]:.2f}"
            mail["right"] = "unknown" if vendor not in VENDORS else "duplicate" if number in seen else euros
            seen.add(number)
            mails.append(mail)
        prompt = (
            "Go through all mails. Book each invoice in euros under its vendor's account. Flag it as `unknown` if its vendor is not "
            "known, else as `duplicate` if an earlier mail had its number. In the end give the totals of the accounts.\n"
        )
        yield {"prompt": prompt, "mails": mails}


def script(task, memory, action, observation):
    """Mail, vendor, rate, booking; the numbers seen and the totals are kept."""
    memory = {"numbers": [], "totals": {}, **memory}
    name = action[0] if action else None
    if name == "next_mail":
        read = re.search(r"Mail (\d+): invoice (\w+) of (.+) over (\d+) (\w+)\.", observation)
        if not read:
            totals = "; ".join(f"{account}: {total:.2f}" for account, total in memory["totals"].items())
            return memory, "answer", totals
        now = {"mail": int(read[1]), "number": read[2], "amount": int(read[4]), "currency": read[5]}
        return {**memory, "now": now}, "vendor", read[3]
    if name == "vendor":
        now = memory["now"]
        known = re.search(r"the account (\w+)", observation)
        reason = None if known and now["number"] not in memory["numbers"] else "duplicate" if known else "unknown"
        memory["numbers"] = [*dict.fromkeys([*memory["numbers"], now["number"]])]
        if reason:
            return memory, "flag", {"mail": now["mail"], "reason": reason}
        return {**memory, "now": {**now, "account": known[1]}}, "exchange_rate", now["currency"]
    if name == "exchange_rate":
        now = memory["now"]
        euros = round(now["amount"] * float(re.search(r"is ([\d.]+) EUR", observation)[1]), 2)
        total = round(memory["totals"].get(now["account"], 0.0) + euros, 2)
        memory = {"numbers": memory["numbers"], "totals": {**memory["totals"], now["account"]: total}}
        return memory, "book", {"mail": now["mail"], "account": now["account"], "euros": euros}
    return {key: memory[key] for key in ("numbers", "totals")}, "next_mail", ""


if __name__ == "__main__":
    run(__doc__, "workflow", list(inboxes(4)), Accounting, script, max_turns=80)
