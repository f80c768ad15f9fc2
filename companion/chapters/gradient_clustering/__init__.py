"""Chapter 2; its notebook is 02_gradient_clustering.ipynb."""

NUMBER, TITLE = "02", "gradient_clustering"
