"""Attacks on the inputs of any classifier, in balls of pixels or of Fourier moduli.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, the Fourier attack; Madry et al., "Towards Deep Learning Models Resistant to
Adversarial Attacks", ICLR 2018, projected gradient steps.
"""

from trainaug.methods.attacks.balls import AttackNorm, project_ball, steepest_step
from trainaug.methods.attacks.bands import equal_bands, radial_band
from trainaug.methods.attacks.pgd import fgsm, pgd
from trainaug.norms import FourierNorm

__all__ = [
    "AttackNorm",
    "FourierNorm",
    "equal_bands",
    "fgsm",
    "pgd",
    "project_ball",
    "radial_band",
    "steepest_step",
]
