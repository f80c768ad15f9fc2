"""Chapter 3; its notebook is 03_autoassist.ipynb."""

NUMBER, TITLE = "03", "autoassist"
