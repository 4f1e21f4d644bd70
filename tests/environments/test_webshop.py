"""WebShop: its pages and clicks as the original's text mode has them, its reward by hand, its files, and whole episodes."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("rapidfuzz", reason="WebShop's reward needs the extra webshop")
pytest.importorskip("Stemmer", reason="WebShop's search needs the extra webshop")

from support.trainer_helpers import SHORT, ScriptedGenerator, record, trainer_arguments

from mem1_trl import StopReason
from mem1_trl.environment_runtime.actions import ActionSet, action_methods
from mem1_trl.environments import WebShop, WebShopEnvironment, load_webshop
from mem1_trl.environments.webshop import Goal, Product, Review, load_bundled_webshop, score_purchase, title_words
from mem1_trl.environments.webshop.reward import count_attributes, count_options, normalize_color, similarity
from mem1_trl.rollout.episode import Episode
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.turn_loop import Rollout

ROOT = Path(__file__).resolve().parents[2]

MUG = Product(
    asin="B0MUG00001",
    title="Kelmora Travel Mug",
    category="kitchen",
    query="travel mug",
    product_category="Home › Kitchen › Mugs",
    description="Keeps tea hot.",
    features=("Leak proof lid", "Fits cup holders"),
    attributes=("leak proof", "dishwasher safe"),
    options={"color": ("black", "teal"), "size": ("12 oz", "16 oz")},
    pricing=(19.5,),
    reviews=(Review("Nice", "5.0", "Hot all day."), Review("Meh", "2.0")),
    rating="3.5",
)
PLAIN = Product(asin="B0PLAIN001", title="Plain Mug", query="mug", pricing=(5.0, 7.5))
GOAL = Goal(
    asin=MUG.asin,
    instruction_text="i need a teal travel mug",
    attributes=("leak proof", "keeps tea hot"),
    options=("teal", "16 oz"),
    price_upper=20.0,
    name=MUG.title,
    query=MUG.query,
    product_category=MUG.product_category,
)
MANY = [Product(asin=f"B0SPOON{i:03}", title=f"Spoon number{i}", query="spoon", pricing=(1.0,)) for i in range(73)]


def mug_shop() -> WebShop:
    return WebShop([MUG, PLAIN, *MANY], [GOAL], test_size=0, eval_size=0)


def at(environment: WebShopEnvironment, *clicks: str) -> WebShopEnvironment:
    """The environment after a search for mugs and some clicks."""
    environment.reset(goal=0)
    environment.search("mug")
    for element in clicks:
        environment.click(element)
    return environment


@pytest.fixture(scope="module")
def shop():
    return mug_shop()


@pytest.fixture
def environment(shop):
    return WebShopEnvironment(shop)


# --- Pages: what WebAgentTextEnv(observation_mode="text") shows -----------------------------------------------------------

HEAD = "Instruction: [SEP] i need a teal travel mug [SEP] Back to Search"


def test_the_start_page(environment):
    assert environment.reset(goal=0) == "WebShop [SEP] Instruction: [SEP] i need a teal travel mug [SEP] Search"
    assert environment.available_actions == {"has_search_bar": True, "clickables": ["search"]}


def test_the_first_page_is_set_off_from_a_prompt(environment):
    assert environment.reset(prompt="Shop!", goal=0).startswith("\n\nWebShop [SEP] ")


def test_a_results_page(environment):
    environment.reset(goal=0)
    assert environment.search("Travel  MUGS") == (  # stems, so that mugs finds a mug
        f"{HEAD} [SEP] Page 1 (Total results: 2) [SEP] B0MUG00001 [SEP] Kelmora Travel Mug [SEP] $19.5 [SEP] "
        "B0PLAIN001 [SEP] Plain Mug [SEP] $5.0 to $7.5"
    )
    assert environment.available_actions == {
        "has_search_bar": False,
        "clickables": ["back to search", "b0mug00001", "b0plain001"],
    }


def test_fifty_results_on_five_pages(environment):
    environment.reset(goal=0)
    assert " [SEP] Page 1 (Total results: 50) [SEP] Next > [SEP] B0SPOON" in environment.search("spoon")
    assert environment.available_actions["clickables"][:2] == ["back to search", "next >"]
    second = environment.click("Next >")
    assert " [SEP] Page 2 (Total results: 50) [SEP] < Prev [SEP] Next > [SEP] B0SPOON" in second
    assert second.count("B0SPOON") == 10
    for _ in range(3):
        last = environment.click("next >")
    assert " [SEP] Page 5 (Total results: 50) [SEP] < Prev [SEP] B0SPOON" in last
    assert environment.click("next >") == last  # there is no such button any more
    assert " Page 4 " in environment.click("< Prev")


def test_nothing_found(environment):
    environment.reset(goal=0)
    assert environment.search("zeppelin") == f"{HEAD} [SEP] Page 1 (Total results: 0)"
    assert environment.available_actions["clickables"] == ["back to search"]


def test_a_product_page(environment):
    assert at(environment).click("B0MUG00001") == (
        f"{HEAD} [SEP] < Prev [SEP] color [SEP] black [SEP] teal [SEP] size [SEP] 12 oz [SEP] 16 oz [SEP] "
        "Kelmora Travel Mug [SEP] Price: $19.5 [SEP] Rating: 3.5 [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    assert environment.available_actions["clickables"] == [
        *("back to search", "< prev", "description", "features", "reviews", "buy now"),
        *("black", "teal", "12 oz", "16 oz"),
    ]


def test_a_product_without_options_reviews_or_texts(environment):
    page = at(environment).click("b0plain001")
    assert page == (
        f"{HEAD} [SEP] < Prev [SEP] Plain Mug [SEP] Price: $5.0 to $7.5 [SEP] Rating: N.A. [SEP] Description [SEP] "
        "Features [SEP] Reviews [SEP] Buy Now"
    )
    for name, content in {
        "Description": "No Description",
        "Features": "No Features",
        "Reviews": "No reviews found",
    }.items():
        assert environment.click(name) == f"{HEAD} [SEP] < Prev [SEP] {content}"
        assert environment.click("< Prev") == page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Description", "Keeps tea hot."),
        ("Features", "Leak proof lid [SEP] Fits cup holders"),
        ("Reviews", '"Nice" [SEP] 5.0 [SEP] Hot all day. [SEP] "Meh" [SEP] 2.0'),
    ],
)
def test_sub_pages(environment, name, content):
    assert at(environment, "b0mug00001").click(name) == f"{HEAD} [SEP] < Prev [SEP] {content}"
    assert environment.available_actions == {"has_search_bar": False, "clickables": ["back to search", "< prev"]}


def test_attributes_are_shown_only_on_demand(shop):
    plain, open_ = WebShopEnvironment(shop), WebShopEnvironment(shop, show_attributes=True)
    hidden = at(plain).click("b0mug00001")
    assert plain.click("attributes") == hidden
    assert " [SEP] Reviews [SEP] Attributes [SEP] Buy Now" in at(open_).click("b0mug00001")
    assert open_.click("attributes") == (
        f"{HEAD} [SEP] < Prev [SEP] leak proof [SEP] dishwasher safe [SEP] kitchen [SEP] travel mug [SEP] Home › Kitchen › Mugs"
    )


def test_available_actions_below_the_page(shop):
    environment = WebShopEnvironment(shop, show_available_actions=True)
    page, actions = environment.reset(goal=0).split("\n\nAvailable Actions:\n")
    assert page.endswith("[SEP] Search")
    assert json.loads(actions) == {"has_search_bar": True, "clickables": ["search"]}


# --- Clicks ---------------------------------------------------------------------------------------------------------------


def test_an_action_that_the_page_does_not_offer_changes_nothing(environment):
    start = environment.reset(goal=0)
    for element in ("search", "buy now", "b0mug00001", "", "nonsense"):
        assert environment.click(element) == start
    assert environment.search("   ") == start
    results = environment.search("mug")
    assert environment.click("teal") == results
    assert environment.get_reward() == 0.0 and not environment.done


def test_searching_works_from_every_page(environment):
    at(environment, "b0mug00001", "reviews")
    assert "Page 1 (Total results: 50)" in environment.search("spoon")


def test_an_option_stays_chosen_through_sub_pages_and_is_forgotten_with_the_product(environment):
    page = at(environment).click("b0mug00001")
    assert environment.click("Teal") == page  # what is chosen is not shown: the agent has to remember it
    at(environment, "b0mug00001", "teal", "features", "< prev", "buy now")
    assert environment.purchase.r_option == 0.5
    at(environment, "b0mug00001", "teal", "< prev", "b0mug00001", "buy now")
    assert environment.purchase.r_option == 0.0
    at(environment, "b0mug00001", "black", "teal", "buy now")  # the second color replaces the first
    assert environment.purchase.r_option == 0.5


def test_back_to_search_forgets_the_results(environment):
    start = environment.reset(goal=0)
    assert at(environment, "b0mug00001").click("back to search") == start


def test_buying_ends_the_episode_with_a_receipt(environment):
    receipt = at(environment, "b0mug00001", "teal", "16 oz").click("Buy Now")
    assert receipt == (
        "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk interface.) [SEP] "
        "Purchased [SEP] asin [SEP] B0MUG00001 [SEP] options [SEP] "
        '{"color": "teal", "size": "16 oz"} [SEP] attrs [SEP] None [SEP] category [SEP] None [SEP] query [SEP] None [SEP] '
        "product category [SEP] None [SEP] Target [SEP] asin [SEP] options [SEP] attrs [SEP] price upper [SEP] "
        "instuction text [SEP] category [SEP] product category [SEP] query [SEP] Goal [SEP] None [SEP] Reward [SEP] "
        "Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None"
    )
    assert environment.done and environment.get_reward() == 1.0
    assert environment.available_actions == {"has_search_bar": False, "clickables": []}
    assert environment.search("spoon") == receipt == environment.click("back to search")  # nothing can be undone
    environment.reset(goal=0)
    assert not environment.done and environment.get_reward() == 0.0


# --- Reward, by hand ------------------------------------------------------------------------------------------------------


def scored(product=MUG, goal=GOAL, price=19.5, options=None, **kwargs):
    options = {"color": "teal", "size": "16 oz"} if options is None else options
    return score_purchase(product, goal, price, options, **kwargs)


def test_the_formula():
    assert scored().reward == 1.0  # (2 + 2 + 1) / (2 + 2 + 1)
    assert scored(price=20.0).r_price == 1.0
    assert scored(price=20.01).reward == pytest.approx(4 / 5)
    assert scored(options={"color": "teal"}).reward == pytest.approx(4 / 5)
    assert scored(options={}, price=99.0).reward == pytest.approx(2 / 5)
    assert scored(PLAIN, price=6.0, options={}).reward == pytest.approx(1.0 * 1 / 5)  # "mug" is a third of the title
    no_options = Goal(MUG.asin, "x", ("leak proof",), name=MUG.title, query=MUG.query)
    score = scored(goal=no_options, options={})
    assert (score.reward, score.r_option) == (1.0, None)


def typed(bought: str, wanted: str, **kwargs) -> float:
    product = Product("B", bought, query=kwargs.get("query", "q1"), product_category=kwargs.get("path", "a › b"))
    goal = Goal("B", "x", ("y",), name=wanted, query="q2", product_category="c › a › b"[:5])
    return score_purchase(product, goal, 1.0, {}).r_type


def test_the_type_reward():
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    five, ten, eleven = " ".join(words[:5]), " ".join(words[:10]), " ".join(words[:11])
    assert typed("one two", five) == 1.0  # 0.4 of the words
    assert typed("one", five) == 0.5  # 0.2 is not more than a fifth
    assert typed("one", ten) == 0.5  # 0.1 is not less than a tenth
    assert typed("one", eleven) == 0.1
    assert typed("other", five) == 0.0
    assert typed("one", five, query="q2") == 1.0
    assert typed("one", eleven, query="q2") == 0.1  # the title has the last word
    assert typed("other", five, query="q2") == 0.0
    assert typed("one", five, path="a › c") == 1.0  # two categories in any order
    assert typed("one", five, path="a › a") == 0.5
    assert typed("anything", "4 2") == 0.5  # a title without words: 0.2


def test_title_words():
    # Titles of the original's own tests, whose scores are .857, .3125 and .167 with spaCy's nouns
    assert title_words("adidas Unisex-Adult D.o.n. Issue 2 Basketball Shoe") == [
        *("adidas", "unisex", "adult", "d.o.n.", "issue", "basketball", "shoe")
    ]
    assert title_words("Saireed UL Listed 2 Prong Power Cord for JBL Bar 3.1 Channel 4K HT830V") == [
        *("saireed", "ul", "listed", "prong", "power", "cord", "jbl", "bar", "channel")
    ]


def test_the_noun_filter_can_be_replaced():
    goal = Goal("B", "x", ("y",), name="red big mug")
    assert score_purchase(PLAIN, goal, 1.0, {}).title_score == pytest.approx(1 / 3)
    only_mugs = score_purchase(
        PLAIN, goal, 1.0, {}, nouns=lambda title: [w for w in title.lower().split() if w == "mug"]
    )
    assert only_mugs.title_score == 1.0
    environment = at(WebShopEnvironment(mug_shop(), nouns=lambda title: []), "b0plain001", "buy now")
    assert environment.purchase.title_score == 0.2


def test_attributes():
    oils = Product(
        "B", "Tea Bag", attributes=("essential oil",), features=("All natural", "With LEMON"), description="Mild."
    )
    assert count_attributes(oils, ("essential oils",)) == 1  # alike
    assert count_attributes(oils, ("with lemon", "mild", "tea")) == 3  # in features, description, title
    assert count_attributes(oils, ("tea tree", "peppermint")) == 0
    assert count_attributes(oils, ("natural with",)) == 1  # features are read as one text, as in the original


def test_options():
    shirt = Product("B", "Cotton Shirt")
    assert count_options(shirt, ("black",), {"color": "black forest"}) == 1  # colors by their name
    assert count_options(shirt, ("teal",), {"color": "black"}) == 0
    assert count_options(shirt, ("large",), {"size": "x large"}) == 0  # sizes must be equal
    assert count_options(shirt, ("large",), {"fit": "x large"}) == 1  # other options need only be alike
    assert count_options(shirt, ("silk",), {"fabric": "cotton"}) == 1  # in the title
    assert count_options(shirt, (), {"fabric": "cotton"}) == 0  # never more than was wanted
    assert count_options(shirt, ("silk",), {"fabric": "cotton", "weave": "shirt"}) == 1


def test_colors():
    # The values of the original's own test
    cases = {"": "", "black forest": "black", "violet lavender": "lavender", "steelivy fuchsia": "fuchsia"}
    for value, expected in {**cases, "123alabaster": "alabaster", "webshop": "webshop"}.items():
        assert normalize_color(value) == expected


def test_similarity():
    assert similarity("Essential-Oil!", "oil essential") == 100
    assert similarity("usb port", "usb") == 100  # a subset of the words
    assert similarity("", "") == 0
    assert similarity("naïve", "nave") == 100  # characters beyond ASCII are dropped, as thefuzz does
    assert isinstance(similarity("stainless", "stain"), int)


# --- Files in the schema of the original ----------------------------------------------------------------------------------


def item(asin="B000000001", **kwargs):
    return {
        "asin": asin,
        "name": "Rain Jacket",
        "category": "fashion",
        "query": " Rain Jacket ",
        "product_category": "Clothing › Jackets",
        "full_description": "Dry.",
        "small_description": ["Light", "Packable"],
        "pricing": "$12.00",
        "customization_options": {"Size": [{"value": "S/M ", "image": None}, {"value": "L"}], "Color": None},
        **kwargs,
    }


ATTRIBUTES = {
    "B000000001": {
        "attributes": ["water resistant"],
        "instruction": "Find me water resistant jackets",
        "instruction_attributes": ["water resistant"],
    },
    "B000000002": {"attributes": ["warm"], "instruction": None, "instruction_attributes": None},
}
HUMAN = {
    "B000000001": [
        {
            "instruction": "i want a rain jacket.",
            "instruction_attributes": ["water resistant"],
            "instruction_options": ["l"],
        },
        {"instruction": "skipped", "instruction_attributes": [], "instruction_options": []},
    ],
    "B000000002": [
        {"instruction": "warm one", "instruction_attributes": ["warm"], "instruction_options": {"size": "l"}}
    ],
}


@pytest.fixture
def written(tmp_path):
    """Paths of the files of a small WebShop."""
    contents = {
        "items": [
            item(),
            item("B000000002", pricing="$1,299.50", small_description="One line"),
            item("B000000001", name="a second record"),
            item("nan"),
            item("B0000000011"),
            item("B000000003", pricing="$5.00$7.50", customization_options={}),
            item("B000000004", pricing=None, small_description=None, full_description=None),
        ],
        "attributes": ATTRIBUTES,
        "human_goals": HUMAN,
        "reviews": [
            {
                "asin": "B000000001",
                "average_rating": 4.5,
                "reviews": [{"title": "Ok", "stars": "4.0", "review": "Fits."}],
            }
        ],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return {name: tmp_path / f"{name}.json" for name in contents}


def test_products_are_read_by_the_rules_of_the_original(written):
    shop = load_webshop(**written, test_size=0, eval_size=0)
    assert list(shop.products) == ["B000000001", "B000000002", "B000000003", "B000000004"]
    first, second, third, fourth = shop.products.values()
    assert first.title == "Rain Jacket" and first.query == "rain jacket"
    assert first.options == {"size": ("s | m", "l")}
    assert first.attributes == ("water resistant",)
    assert (first.rating, first.reviews) == ("4.5", (Review("Ok", "4.0", "Fits."),))
    assert second.features == ("One line",) and second.price_tag == "$1299.5"
    assert third.price_tag == "$5.0 to $7.5" and 5.0 <= shop.prices[third.asin] <= 7.5
    assert third.attributes == ("DUMMY_ATTR",)
    assert fourth.price_tag == "$100.0" and shop.prices[fourth.asin] == 100.0
    assert first.search_text == "rain jacket dry. light size: s | m, l"


def test_goals_written_by_people(written):
    shop = load_webshop(**written, test_size=0, eval_size=0)
    goals = {goal.asin: goal for goal in shop.goals}
    assert len(shop.goals) == 2
    jacket = goals["B000000001"]
    assert jacket.price_upper in (30.0, 40.0, 50.0)  # the larger of two out of 20, 30, 40, 50
    assert jacket.instruction_text == f"i want a rain jacket, and price lower than {jacket.price_upper:.2f} dollars"
    assert jacket.options == ("l",) and jacket.weight == 1.0
    dear = goals["B000000002"]  # dearer than any limit
    assert (dear.instruction_text, dear.price_upper, dear.options) == ("warm one", 1000000.0, ("l",))


def test_price_limits(written):
    """The larger of two out of 20, 30, 40 and 50 dollars, for a jacket of 12: never 20, most often 50."""
    limits = []
    for seed in range(300):
        shop = load_webshop(**written, price_seed=seed, test_size=0, eval_size=0)
        limits += [goal.price_upper for goal in shop.goals if goal.asin == "B000000001"]
    shares = {limit: limits.count(limit) / len(limits) for limit in sorted(set(limits))}
    assert shares == {
        30.0: pytest.approx(1 / 6, abs=0.07),
        40.0: pytest.approx(1 / 3, abs=0.08),
        50.0: pytest.approx(1 / 2, abs=0.08),
    }


def test_goals_made_from_options(written):
    items = [item(), item("B000000002", customization_options={"Fit": [{"value": "slim"}], "Age": [{"value": "kid"}]})]
    attributes = {
        **ATTRIBUTES,
        "B000000002": {**ATTRIBUTES["B000000001"], "instruction_attributes": ["water resistant", "warm"]},
    }
    shop = load_webshop(items, attributes, test_size=0, eval_size=0)
    texts = {goal.instruction_text.split(", and price")[0]: goal for goal in shop.goals}
    assert set(texts) == {
        "Find me water resistant jackets with size: s | m",
        "Find me water resistant jackets with size: l",
        "Find me water resistant jackets with age: kid, and fit: slim",
    }
    last = texts["Find me water resistant jackets with age: kid, and fit: slim"]
    assert last.options == ("kid", "slim")
    assert last.weight == pytest.approx(
        (1 / 3 + 1) / 2
    )  # of three goals three want the first attribute, one the second
    one, other = (goal for goal in shop.goals if goal.asin == "B000000001")
    assert one.price_upper == other.price_upper and one.weight == pytest.approx(1 / 3)


def test_the_split_is_the_original_s():
    sizes = [{"value": f"size {i}"} for i in range(1600)]
    shop = load_webshop([item(customization_options={"size": sizes})], ATTRIBUTES)
    order = [f"size {i}" for i in range(1600)]
    random.seed(233)
    random.shuffle(order)
    assert [goal.options[0] for goal in shop.goals] == order
    numbers = {split: shop.dataset(split)["goal"] for split in ("test", "eval", "train")}
    assert list(numbers["test"]) == list(range(500))
    assert list(numbers["eval"]) == list(range(500, 1500))
    assert list(numbers["train"]) == list(range(1500, 1600))


def test_prices_are_drawn_by_their_seed(written):
    one, same, other = (
        load_webshop(**written, price_seed=seed, test_size=0, eval_size=0).prices for seed in (1, 1, 2)
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"items": "nowhere.json"}, FileNotFoundError, "no file 'nowhere.json' for `items`.*setup.sh"),
        ({"items": "attributes"}, ValueError, "`items` must be a JSON list as in WebShop's files, got a dict"),
        ({"attributes": "items"}, ValueError, "`attributes` must be a JSON object as in WebShop's files, got a list"),
        ({"items": [{"asin": "B1"}]}, ValueError, "Item 0 has no 'name'"),
        ({"items": [item("nan")]}, ValueError, "no product with a usable asin"),
        ({"test_size": 2}, ValueError, "2 goals, and test_size=2 and eval_size=0 leave none to train on"),
        ({"test_size": -1}, ValueError, "test_size and eval_size must be at least 0, got -1 and 0"),
    ],
)
def test_wrong_files_are_refused(written, change, error, match):
    change = {name: written.get(value, value) if isinstance(value, str) else value for name, value in change.items()}
    with pytest.raises(error, match=match):
        load_webshop(**{**written, "test_size": 0, "eval_size": 0, **change})


def test_wrong_rows_are_refused(environment, shop):
    with pytest.raises(ValueError, match="A row must have a `goal`, got none"):
        environment.reset(prompt="x")
    with pytest.raises(ValueError, match="goal must be between 0 and 0, got 7"):
        environment.reset(goal=7)
    with pytest.raises(ValueError, match="but in this shop it is another one"):
        environment.reset(goal=0, instruction="something else")
    with pytest.raises(ValueError, match="split must be one of 'test', 'eval', 'train', got 'dev'"):
        shop.dataset("dev")
    with pytest.raises(ValueError, match="'test' is empty"):
        shop.dataset("test")
    with pytest.raises(ValueError, match="must be for a product of the shop, got a goal for 'B9'"):
        WebShop([MUG], [Goal("B9", "x", ())], test_size=0, eval_size=0)
    with pytest.raises(ValueError, match="shop is empty"):
        WebShop([], [])


# --- The bundled shop -----------------------------------------------------------------------------------------------------


def test_the_bundled_shop_is_what_the_script_builds():
    spec = importlib.util.spec_from_file_location("build_webshop", ROOT / "scripts" / "build_webshop.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    stored = json.loads(gzip.decompress(script.TARGET.read_bytes()))
    assert json.loads(json.dumps(script.build())) == stored


def test_the_bundled_shop():
    shop = load_bundled_webshop()
    assert len(shop.products) == 64 and len({product.category for product in shop.products.values()}) == 8
    assert [len(shop.dataset(split)) for split in ("test", "eval", "train")] == [48, 16, 128]
    assert any(product.reviews for product in shop.products.values())
    assert any(len(product.pricing) == 2 for product in shop.products.values())


def buy(environment: WebShopEnvironment, asin: str, query: str, options: tuple[str, ...]) -> float:
    environment.search(query)
    while asin.lower() not in environment.available_actions["clickables"]:
        assert "next >" in environment.available_actions["clickables"], f"{query!r} does not find {asin}"
        environment.click("next >")
    for element in (asin, *options, "buy now"):
        environment.click(element)
    return environment.get_reward()


def test_who_buys_what_is_wanted_gets_all_and_who_is_careless_less():
    environment = WebShopEnvironment()
    careful, careless = [], []
    for number, goal in enumerate(environment.shop.goals):
        environment.reset(goal=number)
        careful.append(buy(environment, goal.asin, goal.query, goal.options))
        environment.reset(goal=number)
        environment.search(goal.query)
        first = environment.available_actions["clickables"][1]
        careless.append(buy(environment, first, goal.query, ()))
    assert careful == [1.0] * 192
    assert 0.3 < statistics.mean(careless) < 0.7
    assert all(reward <= 1.0 for reward in careless)


def test_instances_share_the_index_and_search_at_once():
    make = WebShopEnvironment.factory()
    environments = [make() for _ in range(8)]
    assert len({id(environment.shop.search_engine) for environment in environments}) == 1
    queries = [environments[0].shop.goals[number].query for number in range(8)]

    def found(pair):
        environment, query = pair
        environment.reset(goal=0)
        return [environment.search(query) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(found, zip(environments, queries)))
    for query, several in zip(queries, pages):
        environments[0].reset(goal=0)
        assert set(several) == {environments[0].search(query)}


# --- Episodes -------------------------------------------------------------------------------------------------------------


def test_an_agent_has_two_actions(environment):
    assert set(action_methods(environment)) == {"search", "click"}
    described = ActionSet(environment, SHORT).describe()
    assert described == [
        "<click>element</click>: Click a button, a product or an option of the current page, by its text.",
        "<search>keywords</search>: Search the shop for products.",
    ]


def test_an_episode_through_the_turn_loop(tokenizer, environment):
    script = [
        "<search>travel mug</search>",
        "<click>B0MUG00001</click>",
        "<click>teal</click>",
        "<click>16 oz</click>",
    ]
    script = [[f"<think>{i}</think>{text}"] for i, text in enumerate([*script, "<click>Buy Now</click>"])]
    settings = AgentSettings(max_turns=10, max_observation_length=400)
    rollout = Rollout(tokenizer, SHORT, settings, ScriptedGenerator(tokenizer, script))
    prompt = GOAL.instruction_text + environment.reset(prompt=GOAL.instruction_text, goal=0)
    episode = Episode(tokenizer(prompt)["input_ids"], environment, ActionSet(environment, SHORT))
    [trajectory] = rollout.run([episode])
    assert trajectory.stop_reason == StopReason.DONE
    assert len(trajectory.turns) == 5 and environment.get_reward() == 1.0
    assert "Price: $19.5" in trajectory.turns[1].observation
    last = tokenizer.decode(trajectory.turns[-1].prompt_ids)  # the task, and nothing older than the last turn
    assert last.startswith(prompt) and "16 oz</click>" in last and "teal</click>" not in last


def test_the_bundled_shop_is_a_dataset_for_trainers(tokenizer):
    from mem1_trl.environment_runtime.pool import EnvironmentPool

    shop = load_bundled_webshop()
    rows = list(shop.dataset("train").select(range(3)))
    pool = EnvironmentPool(WebShopEnvironment.factory(shop), SHORT)
    for row, started in zip(rows, pool.start(rows), strict=True):
        assert started.error is None and row["prompt"] in started.observation
        assert started.environment.get_reward() == 0.0


def test_it_trains(tmp_path, tokenizer, actor):
    """One step on the bundled shop: the tiny model only searches, and pages reach it within their budget."""
    from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer

    shop, played = load_bundled_webshop(), []

    def collect(completions, trajectories, **kwargs):
        played.extend(trajectories)
        return [0.0] * len(completions)

    arguments = trainer_arguments(
        tmp_path, max_steps=1, max_turns=3, num_generations=4, max_completion_length=24, max_observation_length=80
    )
    trainer = Mem1GRPOTrainer(
        model=actor,
        args=Mem1GRPOConfig(**arguments),
        reward_funcs=collect,
        train_dataset=shop.dataset("train"),
        environment_factory=WebShopEnvironment.factory(shop),
        protocol=SHORT,
        processing_class=tokenizer,
    )
    recorder = record(trainer)
    trainer.train()
    [logs] = [entry for entry in recorder.logs if "loss" in entry]
    assert logs["rewards/WebShopEnvironment/mean"] == 0.0  # nobody bought anything
    pages = [turn.observation for trajectory in played for turn in trajectory.turns if turn.observation]
    assert pages and all("Instruction: [SEP]" in page and "[cut]" in page for page in pages)
    assert all(turn.observation_tokens <= 80 for trajectory in played for turn in trajectory.turns)


def test_a_shop_says_what_it_was_made_with():
    assert WebShopEnvironment(show_attributes=True).mem1_settings == {
        "show_available_actions": False,
        "show_attributes": True,
    }
