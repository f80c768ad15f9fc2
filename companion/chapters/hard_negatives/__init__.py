"""Chapter 1; its notebook is 01_vse_hard_negatives.ipynb."""

from companion.lab.about import About

ABOUT = About(
    number="01",
    title="vse_hard_negatives",
    prefix="vse",
    method="Hard negatives (VSE++)",
    authors="Faghri et al.",
    front_claim="vse.1",
    key_figure="gains",
    alt=(
        "New concepts: near zero at R@1, negative at R@5 and R@10; new drawing style: "
        "positive throughout"
    ),
)
