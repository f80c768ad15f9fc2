"""Chapter 4; its notebook is 04_curriculum.ipynb."""

NUMBER, TITLE = "04", "curriculum"
