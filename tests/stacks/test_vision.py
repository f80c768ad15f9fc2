"""The page on torchvision and timm, and what is refused there by name."""

from __future__ import annotations

import pytest
import torch
from stack_pages import need, run
from torch import nn

from trainaug.methods.gradient_clustering import GradientClustering, UnsupportedLayerError
from trainaug.methods.ordering import BatchScorer

CRITERION = nn.CrossEntropyLoss(reduction="none")


def test_tv_tensors_stay_what_they_are():
    names = run("vision", "Mixes after a torchvision pipeline")
    from torchvision import tv_tensors

    mix, x, labels = names["mix"], names["augment"](names["pictures"]), names["labels"]
    mix.num_groups = 4
    state = mix.state_dict()
    mixed, soft = mix(x, labels)
    assert isinstance(mixed, tv_tensors.Image)
    mix.load_state_dict(state)
    plain, same = mix(x.as_subclass(torch.Tensor), labels)
    assert type(plain) is torch.Tensor
    assert torch.equal(mixed.as_subclass(torch.Tensor), plain)
    assert torch.equal(soft, same)
    for word in ("num_groups=4", "num_classes=3", "mode='pairing'"):
        assert word in repr(mix)


def test_a_network_with_batchnorm_is_scored_attacked_and_clustered():
    names = run("vision", "A network with BatchNorm")
    assert int(names["clusters"].sizes.sum()) == 64
    assert names["sampler"].emitted == 4
    x, y = names["x"].view(2, 32, 3, 32, 32), names["y"].view(2, 32)
    model = names["model"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model.training
    BatchScorer("grad_align", model, CRITERION, target=(x[0], y[0]))(x, y)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    clustering = GradientClustering(
        model, CRITERION, 4, layers=names["layers"], generator=torch.Generator()
    )
    with pytest.raises(ValueError, match="eval"):
        clustering.fit([(x[0], y[0], torch.arange(32))], num_iterations=1)


def test_a_network_with_attention_is_scored_and_clustered():
    names = run("vision", "A network with attention")
    assert int(names["clusters"].sizes.sum()) == 80
    assert names["sampler"].emitted == 4


def vit():
    need("timm")
    import timm

    model = timm.create_model("test_vit", pretrained=False, num_classes=3, img_size=32)
    return model.eval(), torch.rand(24, 3, 32, 32), torch.arange(24) % 3


def test_layers_without_factors_are_named():
    model, x, y = vit()
    clustering = GradientClustering(model, CRITERION, 2, generator=torch.Generator())
    with pytest.raises(UnsupportedLayerError, match=r"(pos_embed|cls_token|norm).*layers="):
        clustering.fit([(x, y, torch.arange(24))], num_iterations=1)


def test_alignment_without_forward_mode_is_the_product_of_gradients():
    model, x, y = vit()
    batches, target = (x[8:].view(2, 8, 3, 32, 32), y[8:].view(2, 8)), (x[:8], y[:8])
    scores = BatchScorer("grad_align", model, CRITERION, target=target)(*batches)

    def gradient(x, y):
        model.zero_grad()
        CRITERION(model(x), y).mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    along = gradient(*target).double()
    expected = [along @ gradient(*batch).double() for batch in zip(*batches, strict=True)]
    torch.testing.assert_close(scores.double(), torch.stack(expected), rtol=1e-3, atol=1e-4)


def test_steps_that_cannot_be_stacked_are_named():
    model, x, y = vit()
    import timm.optim

    optimizer = timm.optim.create_optimizer_v2(model, "lamb", lr=1e-3)
    scorer = BatchScorer("delta_abs", model, CRITERION, optimizer=optimizer)
    with pytest.raises(TypeError, match="together=False"):
        scorer(x.view(3, 8, 3, 32, 32), y.view(3, 8))
