"""Training efficiency and robustness in deep learning: a reproducible companion to four works."""

__version__ = "0.1.0"
