"""Tables and text: joins of generated orders, and words weighed by how rare they are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from .base import Workload
from .collections import sort_index

CUSTOMERS, PRODUCTS, ORDERS = 20_000, 1_000, 50_000
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def make_orders(part: int) -> pd.DataFrame:
    rng = np.random.default_rng([7, part])
    return pd.DataFrame(
        {
            "customer": rng.integers(0, CUSTOMERS, ORDERS),
            "product": rng.integers(0, PRODUCTS, ORDERS),
            "quantity": rng.integers(1, 10, ORDERS),
        }
    )


def joins() -> Any:
    """800,000 orders joined with their customers (by a shuffle) and products (a small table), then grouped."""
    import dask.dataframe as dd

    rng = np.random.default_rng(3)
    orders = dd.from_map(make_orders, range(16))
    customers = dd.from_pandas(
        pd.DataFrame(
            {"customer": np.arange(CUSTOMERS), "country": rng.choice(["at", "ch", "de", "fr", "it"], CUSTOMERS)}
        ),
        npartitions=4,
    )
    products = pd.DataFrame({"product": np.arange(PRODUCTS), "cents": rng.integers(100, 10_000, PRODUCTS)})
    joined = orders.merge(customers, on="customer", shuffle_method="tasks").merge(products, on="product")
    valued = joined.assign(value=joined["quantity"] * joined["cents"])
    # By default dask would go over the disk here, but between workers if there is a distributed client.
    return valued.groupby("country")["value"].agg(["sum", "count", "max"], shuffle_method="tasks")


@lru_cache(maxsize=1)
def documents() -> list[str]:
    """4,000 documents of 150 words; word frequencies fall as in natural language (Zipf)."""
    rng = np.random.default_rng(4)
    syllables = ["ka", "lo", "mi", "ne", "ru", "sa", "to", "vi"]
    words = ["".join(rng.choice(syllables, 3)) for _ in range(3_000)]
    picks = np.minimum(rng.zipf(1.3, size=(4_000, 150)), len(words)) - 1
    return [", ".join(words[i].title() if i % 5 == 0 else words[i] for i in row) + "." for row in picks.tolist()]


def tokenise(document: str) -> list[str]:
    return [word for word in WORD.findall(document.lower()) if len(word) > 2]


def count_documents(partition: Iterable[list[str]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for words in partition:
        found.update(set(words))
    return found


def merge_counts(parts: Iterable[Counter[str]]) -> Counter[str]:
    merged: Counter[str] = Counter()
    for part in parts:
        merged.update(part)
    return merged


def top_words(words: list[str], seen_in: Counter[str], documents: int) -> list[tuple[str, float]]:
    """The three words that tell this document from the others: tf-idf."""
    weights = {word: count * math.log(documents / seen_in[word]) for word, count in Counter(words).items()}
    return sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:3]


def text() -> Any:
    import dask.bag as db

    words = db.from_sequence(documents(), npartitions=32).map(tokenise)
    seen_in = words.reduction(count_documents, merge_counts)
    return words.map(top_words, seen_in=seen_in, documents=len(documents()))


WORKLOADS = (
    Workload("joins", "dataframe joins, 800,000 orders", joins, normalise=sort_index),
    Workload("text", "tf-idf over 4,000 documents", text),
)
