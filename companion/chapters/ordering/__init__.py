"""Chapter 4; its notebook is 04_curriculum.ipynb."""

from companion.lab.about import About

ABOUT = About(
    number="04",
    title="curriculum",
    prefix="ord",
    method="Perfect Ordering Approximation",
    authors="Simionescu",
    front_claim="ord.12",
    key_figure="recency",
    alt=(
        "The last position explains most of the variance for the conv net and long steps, the "
        "first for short steps"
    ),
)
