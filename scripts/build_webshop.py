"""
Build `src/mem1_trl/data/webshop.json.gz`, the small bundled shop: 64 products with 192 goals, in the schema of WebShop's files.

All texts were written for this project and the brands are invented. The result depends only on this file:

    python scripts/build_webshop.py
"""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "src" / "mem1_trl" / "data" / "webshop.json.gz"

SEED = 7
PRODUCTS_PER_KIND = 4
GOALS_PER_PRODUCT = 3

_BRAND_NAMES = (
    "Almaro Brennick Calvane Dorrell Eskby Fennwick Galdora Harlune Ivoska Jentro Kelmora Lundvig Marrow&Pine Nordelle "
    "Oakhurn Pellisto Quintrel Rovanne Selkirt Tammery Ulvane Vestrell Wrenford Yaldene"
)
BRANDS = _BRAND_NAMES.split()

COLORS = ("black", "white", "navy", "olive", "burgundy", "grey", "teal", "sand")

# kind: department, path of categories, lowest and highest price, attributes, options
KINDS: dict[str, tuple[str, str, int, int, tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "electric kettle": (
        "home", "Home & Kitchen › Kitchen › Kettles", 18, 70,
        ("fast boiling", "auto shutoff", "bpa free", "cool touch", "stainless steel", "easy clean"),
        {"color": COLORS[:5], "capacity": ("1 liter", "1.5 liter", "1.7 liter")},
    ),
    "frying pan": (
        "home", "Home & Kitchen › Kitchen › Cookware", 15, 85,
        ("non stick", "dishwasher safe", "oven safe", "induction ready", "lightweight", "pfoa free"),
        {"size": ("8 inch", "10 inch", "12 inch"), "color": COLORS[:3]},
    ),
    "desk lamp": (
        "home", "Home & Kitchen › Furniture & Lighting › Lamps", 12, 60,
        ("dimmable", "energy efficient", "eye caring", "touch control", "foldable", "usb port"),
        {"color": COLORS[:4], "light": ("warm", "neutral", "cool")},
    ),
    "throw blanket": (
        "home", "Home & Kitchen › Bedding › Blankets", 14, 55,
        ("machine washable", "super soft", "double sided", "long lasting", "anti pilling", "breathable"),
        {"size": ("50x60 inch", "60x80 inch", "90x90 inch"), "color": COLORS},
    ),
    "running shoes": (
        "fashion", "Clothing, Shoes & Jewelry › Men › Shoes", 35, 140,
        ("arch support", "slip resistant", "moisture wicking", "rubber sole", "lightweight", "wide toe box"),
        {"size": ("8", "9", "10", "11"), "color": COLORS[:6]},
    ),
    "rain jacket": (
        "fashion", "Clothing, Shoes & Jewelry › Women › Outerwear", 30, 120,
        ("water resistant", "machine washable", "quick drying", "long sleeve", "packable", "adjustable hood"),
        {"size": ("small", "medium", "large", "x-large"), "color": COLORS[:6]},
    ),
    "face cream": (
        "beauty", "Beauty & Personal Care › Skin Care › Face", 8, 45,
        ("fragrance free", "cruelty free", "hyaluronic acid", "sensitive skin", "paraben free", "long lasting"),
        {"size": ("1.7 fl oz", "3.4 fl oz")},
    ),
    "shampoo bar": (
        "beauty", "Beauty & Personal Care › Hair Care › Shampoo", 6, 24,
        ("sulfate free", "tea tree", "plastic free", "coconut oil", "dry hair", "natural ingredients"),
        {"scent": ("lavender", "citrus", "rosemary", "unscented"), "pack": ("1 pack", "2 pack", "4 pack")},
    ),
    "green tea": (
        "grocery", "Grocery & Gourmet Food › Beverages › Tea", 5, 30,
        ("caffeine free", "usda organic", "sugar free", "gluten free", "non gmo", "individually wrapped"),
        {"flavor": ("mint", "jasmine", "lemon ginger", "plain"), "size": ("20 count", "50 count", "100 count")},
    ),
    "trail mix": (
        "grocery", "Grocery & Gourmet Food › Snacks › Nuts", 7, 34,
        ("high protein", "low sodium", "dairy free", "gluten free", "no added sugar", "resealable bag"),
        {"flavor": ("salted", "unsalted", "dark chocolate", "spicy"), "size": ("8 ounce", "16 ounce", "32 ounce")},
    ),
    "wireless earbuds": (
        "electronics", "Electronics › Headphones › Earbuds", 20, 130,
        ("noise cancelling", "water resistant", "fast charging", "long battery life", "hands free", "touch control"),
        {"color": COLORS[:5]},
    ),
    "phone charger": (
        "electronics", "Electronics › Accessories › Chargers", 9, 48,
        ("fast charging", "compact size", "overheat protection", "usb port", "travel friendly", "heavy duty"),
        {"color": COLORS[:2], "cable length": ("3 ft", "6 ft", "10 ft")},
    ),
    "yoga mat": (
        "sports", "Sports & Outdoors › Exercise & Fitness › Yoga", 16, 75,
        ("non slip", "eco friendly", "extra thick", "easy carry", "odor free", "moisture resistant"),
        {"color": COLORS[:7], "thickness": ("4 mm", "6 mm", "8 mm")},
    ),
    "water bottle": (
        "sports", "Sports & Outdoors › Outdoor Recreation › Hydration", 10, 42,
        ("leak proof", "bpa free", "vacuum insulated", "dishwasher safe", "wide mouth", "stainless steel"),
        {"size": ("16 oz", "24 oz", "32 oz"), "color": COLORS},
    ),
    "dog bed": (
        "pets", "Pet Supplies › Dogs › Beds", 22, 110,
        ("machine washable", "memory foam", "non slip bottom", "chew resistant", "water resistant", "calming"),
        {"size": ("small", "medium", "large"), "color": COLORS[:5]},
    ),
    "building blocks": (
        "toys", "Toys & Games › Building Toys › Blocks", 13, 65,
        ("bpa free", "smooth edges", "storage box", "educational", "solid wood", "easy clean"),
        {"pieces": ("50 pieces", "100 pieces", "200 pieces"), "style": ("classic", "animals", "city")},
    ),
}  # fmt: skip

OPENINGS = (
    "i am looking for a {attributes} {kind}{options}",
    "i need a {kind} that is {attributes}{options}",
    "find me a {kind}{options}, it should be {attributes}",
)

PRAISE = (
    ("Does what it says", "5.0", "We have used it every day for a month and would choose it again."),
    ("Good for the money", "4.0", "Well made. The color is a little darker than on the picture."),
    ("Not for me", "2.0", "It works, but I had expected something sturdier."),
    ("A fine present", "5.0", "Arrived early, nicely packed, and my sister loves it."),
)


def build() -> dict[str, Any]:
    """The content of the three files of a WebShop, and of `reviews.json`."""
    generator = random.Random(SEED)
    items, attributes, instructions, reviews = [], {}, {}, []
    for kind, (department, path, lowest, highest, pool, options) in KINDS.items():
        for brand in generator.sample(BRANDS, PRODUCTS_PER_KIND):
            asin = "B0" + "".join(generator.choices("0123456789ABCDEFGHJKLMNPQRSTVWXYZ", k=8))
            own = generator.sample(pool, 4)
            chosen = {
                name: sorted(generator.sample(values, max(2, len(values) - generator.randrange(2))), key=values.index)
                for name, values in options.items()
            }
            price = round(generator.uniform(lowest, highest), 2)
            title = f"{brand} {kind.title()}, {own[0].title()} and {own[1].title()}"
            item = {
                "asin": asin,
                "name": title,
                "category": department,
                "query": kind,
                "product_category": path,
                "full_description": f"A {kind} by {brand}: {own[2]}, {own[0]}. Made to be used, and to last.",
                "small_description": [f"{attribute.capitalize()}: tested by us." for attribute in own],
                # One product in four has a range of prices
                "pricing": f"${price}" if generator.random() < 0.75 else f"${price}${round(price * 1.3, 2)}",
                "customization_options": {
                    name.title(): [{"value": value, "image": None} for value in values]
                    for name, values in chosen.items()
                },
            }
            items.append(item)
            wanted = generator.sample(own, 2)
            attributes[asin] = {
                "attributes": own,
                "instruction": f"Find me {', '.join(wanted)} {kind}",
                "instruction_attributes": wanted,
            }
            instructions[asin] = [
                instruction(generator, kind, own, chosen, opening)
                for opening in generator.sample(OPENINGS, GOALS_PER_PRODUCT)
            ]
            texts = generator.sample(PRAISE, generator.randrange(4))
            if texts:
                mean = sum(float(score) for _, score, _ in texts) / len(texts)
                reviews.append(
                    {
                        "asin": asin,
                        "average_rating": round(mean, 1),
                        "reviews": [{"title": t, "stars": s, "review": r} for t, s, r in texts],
                    }
                )
    generator.shuffle(items)
    return {"items": items, "attributes": attributes, "human_goals": instructions, "reviews": reviews}


def instruction(
    generator: random.Random, kind: str, own: list[str], options: dict[str, list[str]], opening: str
) -> dict[str, Any]:
    """The instruction of a customer, with the attributes and options that the reward looks for."""
    wanted = generator.sample(own, generator.choice((1, 2, 2)))
    picked = {name: generator.choice(values) for name, values in options.items() if generator.random() < 0.8}
    said = " with " + " and ".join(f"{name} {value}" for name, value in picked.items()) if picked else ""
    text = opening.format(attributes=" and ".join(wanted), kind=kind, options=said)
    return {
        "instruction": re.sub(r"\ba (?=[aeiou])", "an ", text) + ".",
        "instruction_attributes": wanted,
        "instruction_options": list(picked.values()),
    }


def main() -> None:
    text = json.dumps(build(), ensure_ascii=False)
    TARGET.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
