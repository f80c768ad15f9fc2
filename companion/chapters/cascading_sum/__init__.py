"""Chapter 5; its notebook is 05_cascading_sum.ipynb."""

from companion.lab.about import About

ABOUT = About(
    number="05",
    title="cascading_sum",
    prefix="csa",
    method="Cascading Sum Augmentation",
    authors="Simionescu",
    front_claim="csa.1",
    key_figure="cascade",
    alt=(
        "The cascade 4-2-1 is level with or below each of its controls, and loses accuracy "
        "under both attacks, more under PGD than under FGSM"
    ),
)
