"""Chapter 3; its notebook is 03_autoassist.ipynb."""

from companion.lab.about import About

ABOUT = About(
    number="03",
    title="autoassist",
    prefix="aa",
    method="AutoAssist",
    authors="Zhang, Yu, Dhillon",
    front_claim="aa.6",
    key_figure="accuracy",
    alt=(
        "Against examples trained on, AutoAssist, uniform draws and skipping at random rise "
        "together; against examples scanned uniform draws are ahead"
    ),
)
