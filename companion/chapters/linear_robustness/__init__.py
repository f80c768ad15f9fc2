"""Chapter 6; its notebook is 06_linear_robustness.ipynb."""

from companion.lab.about import About

ABOUT = About(
    number="06",
    title="linear_robustness",
    prefix="lin",
    method="Maximally robust linear models",
    authors="Faghri et al.",
    front_claim="lin.2",
    key_figure="certificate",
    alt="Bounds of the largest robust radius closing on the exact value",
)
