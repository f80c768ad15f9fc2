"""Chapter 1; its notebook is 01_vse_hard_negatives.ipynb."""

NUMBER, TITLE = "01", "vse_hard_negatives"
