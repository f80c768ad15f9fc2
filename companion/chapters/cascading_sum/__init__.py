"""Chapter 5; its notebook is 05_cascading_sum.ipynb."""

NUMBER, TITLE = "05", "cascading_sum"
