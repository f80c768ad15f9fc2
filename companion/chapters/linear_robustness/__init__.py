"""Chapter 6; its notebook is 06_linear_robustness.ipynb."""

NUMBER, TITLE = "06", "linear_robustness"
