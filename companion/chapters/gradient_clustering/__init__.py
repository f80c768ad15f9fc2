"""Chapter 2; its notebook is 02_gradient_clustering.ipynb."""

from companion.lab.about import About

ABOUT = About(
    number="02",
    title="gradient_clustering",
    prefix="gc",
    method="Gradient clustering",
    authors="Faghri et al.",
    front_claim="gc.3",
    key_figure="variance",
    alt=(
        "Gradient clustering lies below batches of twice the size on both data sets; SVRG is "
        "lower still on digits"
    ),
)
