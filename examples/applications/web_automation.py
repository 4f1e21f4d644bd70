"""
Web automation: shops for a list of things on a web site, page by page, with links and forms, and checks out.

    python examples/applications/web_automation.py                                   # a script plays, seconds
    python examples/applications/web_automation.py --model Qwen/Qwen2.5-7B-Instruct  # a model plays

The site is real and local: a server on the loopback interface with a catalogue over several pages, a cart and an order form; every action
is an HTTP request. The reward is the share of the list for which the cheapest offer was ordered, and 0 if the order was not sent.
"""

import random
import re
import urllib.parse
import urllib.request
from html.parser import HTMLParser
from uuid import uuid4

from application import run
from local_shop import BRANDS, KINDS, ORDERS, PAGES, PRICES, serve


class Page(HTMLParser):
    """A page as text, its links by what they say, and where its form goes."""

    def __init__(self, html):
        super().__init__()
        self.lines, self.links, self.form, self._link = [], {}, None, None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self._link = found.get("href") if tag == "a" else self._link
        self.form = found.get("action") if tag == "form" else self.form
        if tag == "input":
            self.lines.append(f"field: {found['name']}")

    def handle_data(self, text):
        self.lines.append(f"[{text}]" if self._link else text)
        if self._link:
            self.links[text], self._link = self._link, None


class Browser:
    """A text browser."""

    def reset(self, prompt, wanted, **row) -> str:
        """`wanted`: kinds of things to order."""
        self.wanted, self.session, self.done = wanted, uuid4().hex, False
        return f"\nThe page in front of you:\n{self._open(f'/{self.session}/page/1')}\n"

    def follow(self, link: str) -> str:
        """Follow a link of the page by its text; `Catalogue` and `Cart` always work."""
        always = {"Catalogue": f"/{self.session}/page/1", "Cart": f"/{self.session}/cart"}
        path = self.page.links.get(link) or always.get(link)
        return self._open(path) if path else f"There is no link {link!r}.\n" + "\n".join(self.page.lines)

    def submit(self, name: str) -> str:
        """Fill the field `name` of the page's form and send it."""
        if self.page.form is None:
            return "There is no form on this page."
        text = self._open(self.page.form, urllib.parse.urlencode({"name": name}).encode())
        self.done = self.session in ORDERS
        return text

    def _open(self, path, data=None):
        with urllib.request.urlopen(ADDRESS + path, data, timeout=10) as answer:
            self.page = Page(answer.read().decode())
        return "\n".join(self.page.lines)

    def get_reward(self) -> float:
        """Share of the wanted kinds whose cheapest offer was ordered, and nothing else of that kind."""
        ordered = ORDERS.get(self.session, [])
        best = {kind: min(BRANDS, key=lambda brand: PRICES[kind, brand]) for kind in self.wanted}
        return sum([brand for k, brand in ordered if k == kind] == [best[kind]] for kind in best) / len(best)


def lists(count):
    for number in range(count):
        wanted = random.Random(number).sample(KINDS, 3)
        task = f"Order the cheapest {', the cheapest '.join(wanted)} that the catalogue has, in the name of Kim."
        yield {"prompt": task, "wanted": wanted}


def script(task, memory, action, observation):
    """Look at every offer of the wanted kinds, keep the cheapest of each with its page, then put them into the cart."""
    wanted = re.findall(r"cheapest (\w+)", task)
    memory = {"best": {}, "seen": [], "page": 1, **memory}
    text = re.sub(r"\[HINT\].*?\[/HINT\]", "", observation) or task
    links, best = re.findall(r"\[(.+?)\]", text), memory["best"]
    if offer := re.search(r"(\w+) (\w+)\s+Price: (\d+)", text):
        brand, kind, price = offer[1], offer[2], int(offer[3])
        if memory.get("buying") == f"{brand} {kind}":
            return (
                {**memory, "buying": None, "best": {k: v for k, v in best.items() if k != kind}},
                "follow",
                "Add to cart",
            )
        memory["seen"] = [*memory["seen"], f"{brand} {kind}"]
        if kind not in best or price < best[kind][1]:
            best = {**best, kind: [brand, price, memory["page"]]}
        return {**memory, "best": best}, "follow", "Catalogue"
    if "Cart: " in text:
        return (memory, "follow", "Catalogue") if best else (memory, "submit", "Kim")
    here = int(re.search(r"page (\d+) of", text)[1])
    if memory["page"] > PAGES:  # everything was seen: buy
        kind, (brand, _, page) = next(iter(best.items()))
        link = f"{brand} {kind}" if here == page else "Next page"
        return {**memory, "buying": f"{brand} {kind}", "seen": []}, "follow", link
    if here < memory["page"]:
        return memory, "follow", "Next page"
    unseen = [link for link in links if link.split()[-1] in wanted and link not in memory["seen"]]
    if unseen:
        return memory, "follow", unseen[0]
    memory |= {"page": here + 1, "seen": []}
    return memory, "follow", "Next page" if here < PAGES else "Catalogue"


ADDRESS = serve()

if __name__ == "__main__":
    run(__doc__, "web_automation", list(lists(4)), Browser, script, max_turns=120)
