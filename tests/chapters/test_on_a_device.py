"""Every kind of run puts model and data on the device of the run, which is pretended here."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict, replace

import pytest
import torch
from pretend_device import MixedDevicesError, pretended

from companion.chapters.autoassist.canary import tiny_data as sentences
from companion.chapters.gradient_clustering.features import Features
from companion.lab.chapters import chapter_of_arm

# One arm of each kind of run; `make soak` tries the others as well.
CUDA = (
    "family_gru_sum", "digits_mlp_90", "speed_0_stratified", "images_0_assist",
    "digits_delta_target", "orders_mlp_lr005", "digits_10_cutmix", "gaussian_coordinate",
    "digits_convolutional",
)  # fmt: skip
MORE = (
    "fashion_cnn", "vendor_negatives_2_sum", "family_ridge", "features_copies",
    "speed_90_reweighted",
    "departures", "images_0_screener", "translation_assist70", "digits_cnn_bn_min_loss",
    "units_grab", "paced_short_ascending", "selection", "digits_10_csa4_restart",
    "digits_10_source4", "digits_10_radii", "digits_10_objective", "gaussian_regularised",
    "gaussian_dense", "gaussian_adversarial",
)  # fmt: skip
if os.environ.get("TRAINAUG_SOAK"):
    CUDA += MORE
MPS = ("digits_delta_target",)
if os.environ.get("TRAINAUG_SOAK"):
    MPS += ("family_gru_sum",)


def compute(name: str, kind: str) -> dict[str, int]:
    """Run the tiny form of an arm on a pretended device; where its work was done."""
    chapter = chapter_of_arm(name)
    arm = chapter.arm(name)
    settings = arm.complete(chapter.chosen).tiny()
    if isinstance(settings, Features):
        settings = replace(settings, taus=settings.taus[-1:], lrs=settings.lrs[:1])
    assert kind in settings.devices
    tiny = sentences(asdict(settings)) if chapter.number == "03" else nullcontext()
    with tiny:
        expected = arm.run(settings, 0)
        with pretended(kind) as work:
            actual = arm.run(settings, 0)
    for metric, value in expected.metrics.items():
        # a GPU's roots are torch's, those of the CPU are NumPy's
        assert actual.metrics[metric] == pytest.approx(value, rel=1e-4, abs=1e-9), metric
    return dict(work)


@pytest.mark.parametrize("name", CUDA)
def test_a_run_mixes_no_devices(name):
    work = compute(name, "cuda")
    assert work["there"] > 0
    # near-synonyms of captions are counted, and exact margins proved, on the CPU
    assert work["here"] <= work["there"] / 4


@pytest.mark.parametrize("name", MPS)
def test_a_run_on_mps_needs_no_float64_there(name):
    assert compute(name, "mps")["there"] > 0


def test_what_was_not_tried_there_is_refused():
    for name in ("gaussian_max_margin", "svm_digits", "theorem"):
        assert chapter_of_arm(name).arm(name).settings.devices == ("cpu",)
    for row in chapter_of_arm("gaussian_gradient").arms.values():
        assert "mps" not in row.settings.devices  # it computes in float64


def test_the_pretended_device_refuses_to_mix():
    with pretended("mps"):
        there = torch.ones(3).to(torch.device("mps"))
        assert there.device.type == (there + 1).device.type == "mps"
        assert there[torch.tensor([0, 1])].cpu().tolist() == [1.0, 1.0]
        with pytest.raises(MixedDevicesError):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(TypeError, match="float64"):
            there.double()
