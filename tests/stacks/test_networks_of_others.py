"""Networks of timm and of Hugging Face under gradient clustering and scores of batches."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from stack_pages import need
from torch import nn

from trainaug.methods.gradient_clustering import (
    GradientClustering,
    UnsupportedLayerError,
    flat_gradients,
    layer_factors,
    per_example_gradients,
)
from trainaug.methods.ordering import BatchScorer, target_alignments, trial_losses
from trainaug.training.randomness import stream

Y = torch.arange(6) % 3


def needed(name):
    """Return a module of the extra."""
    need(name.partition(".")[0])
    return importlib.import_module(name)


def randn(seed, *shape):
    return torch.randn(shape, generator=stream(seed, "x"))


def losses_of(logits, y):
    return F.cross_entropy(logits, y, reduction="none")


def own_gradients(model, x, names):
    """Gradients of named parameters by autograd, one example after another."""
    parameters = dict(model.named_parameters())
    rows = []
    for i in range(len(Y)):
        row = {k: v[i : i + 1] for k, v in x.items()} if isinstance(x, dict) else x[i : i + 1]
        output = model(**row) if isinstance(x, dict) else model(row)
        loss = losses_of(getattr(output, "logits", output), Y[i : i + 1]).sum()
        parts = torch.autograd.grad(loss, [parameters[name] for name in names])
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def linear_layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def parts_of(layers):
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def clustered(model, x, **options):
    clustering = GradientClustering(model, losses_of, 2, generator=stream(0, "c"), **options)
    return clustering.fit([(x, Y, torch.arange(6))], 2)


@pytest.fixture
def vit():
    timm = needed("timm")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = timm.models.VisionTransformer(
            img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3
        )
    return model.double()


def test_a_residual_network_in_train_mode_is_refused_with_what_to_do():
    timm = needed("timm")
    model = timm.create_model("resnet10t", num_classes=3)
    x = randn(0, 6, 3, 32, 32)
    with pytest.raises(UnsupportedLayerError, match=r"BatchNorm.* call model.eval\(\)"):
        clustered(model, x)
    with pytest.raises(UnsupportedLayerError, match=r"BatchNorm.*pass layers=\[...\].*conv1"):
        clustered(model.eval(), x)
    modules = model.named_modules()
    layers = [name for name, m in modules if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert clustered(model, x, layers=layers).sizes.sum() == 6


def test_a_vision_transformer_is_clustered_by_its_linear_layers(vit):
    """The oracle is autograd, one example at a time."""
    x = randn(0, 6, 3, 8, 8).double()
    refusal = r"VisionTransformer.*cls_token, pos_embed.*pass layers=\[...\].*attn.qkv"
    with pytest.raises(UnsupportedLayerError, match=refusal):
        clustered(vit, x)
    layers = linear_layers(vit)
    assert [name.rpartition(".")[2] for name in layers] == ["qkv", "proj", "fc1", "fc2", "head"]
    actual = layer_factors(vit, losses_of, x, Y, layers=layers)
    for name, layer in actual.items():
        expected = own_gradients(vit, x, parts_of([name]))
        got = flat_gradients({name: layer})
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert clustered(vit, x, layers=layers).sizes.sum() == 6
    everything = [name for name, p in vit.named_parameters() if p.requires_grad]
    got = per_example_gradients(vit, losses_of, x, Y)
    torch.testing.assert_close(got, own_gradients(vit, x, everything), rtol=0, atol=1e-12)


def test_alignments_of_a_vision_transformer_are_products_of_gradients(vit):
    """Fused attention has no forward mode; the oracle is autograd."""
    x = randn(0, 6, 3, 8, 8).double()
    names = [name for name, p in vit.named_parameters() if p.requires_grad]
    gradients = own_gradients(vit, x, names)
    along = gradients.mean(0)
    expected = gradients.view(3, 2, -1).mean(1) @ along
    candidates = x.view(3, 2, 3, 8, 8), Y.view(3, 2)
    actual = target_alignments(vit, losses_of, *candidates, target=(x, Y))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_trial_steps_of_lamb_are_made_one_by_one_or_refused(vit):
    """Lamb scales a step by the norm of a whole parameter, which stacked copies would share."""
    optim = needed("timm.optim")
    x, labels = randn(0, 3, 2, 3, 8, 8).double(), Y.view(3, 2)
    optimizer = optim.Lamb(vit.parameters(), lr=0.01)
    with pytest.raises(TypeError, match=r"Lamb.*together=False"):
        trial_losses(vit, optimizer, losses_of, x, labels)
    start = {name: value.clone() for name, value in vit.state_dict().items()}
    before, after = trial_losses(vit, optimizer, losses_of, x, labels, together=False)
    for i in range(3):
        fresh = optim.Lamb(vit.parameters(), lr=0.01)
        loss = losses_of(vit(x[i]), labels[i]).mean()
        torch.testing.assert_close(before[i], loss.detach())
        fresh.zero_grad()
        loss.backward()
        fresh.step()
        with torch.no_grad():
            torch.testing.assert_close(after[i], losses_of(vit(x[i]), labels[i]).mean())
        vit.load_state_dict(start)


def test_a_text_classifier_of_hugging_face_gives_gradients_and_scores():
    """Inputs go in by keywords, logits come out of an object; the oracle is autograd."""
    hub = needed("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_labels": 3}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = hub.BertForSequenceClassification(hub.BertConfig(**sizes)).double().eval()
    ids = torch.randint(1, 20, (6, 5), generator=stream(0, "ids"))
    mask = (torch.arange(5) < torch.tensor([3, 5, 4, 5, 2, 5])[:, None]).long()
    x = {"input_ids": ids, "attention_mask": mask}
    with pytest.raises(UnsupportedLayerError, match=r"Embedding.*pass layers=\[...\]"):
        clustered(model, x)
    layers = linear_layers(model)
    expected = own_gradients(model, x, parts_of(layers))
    for criterion in (
        losses_of,
        lambda output, y: losses_of(output.logits, y),
        lambda output, y: losses_of(output["logits"], y),
    ):
        factors = layer_factors(model, criterion, x, Y, layers=layers)
        torch.testing.assert_close(flat_gradients(factors), expected, rtol=0, atol=1e-10)
    assert clustered(model, x, layers=layers).sizes.sum() == 6
    everything = [name for name, _ in model.named_parameters()]
    gradients = own_gradients(model, x, everything)
    got = per_example_gradients(model, losses_of, x, Y)
    torch.testing.assert_close(got, gradients, rtol=0, atol=1e-10)
    candidates = {name: values.view(3, 2, 5) for name, values in x.items()}
    scorer = BatchScorer("grad_align", model, losses_of, target=(x, Y))
    products = gradients.view(3, 2, -1).mean(1) @ gradients.mean(0)
    actual = scorer(candidates, Y.view(3, 2))
    torch.testing.assert_close(actual, products, rtol=0, atol=1e-10)
    for score in ("min_loss", "max_loss", "delta_abs", "delta_rel", "delta_target"):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        options = {"optimizer": optimizer, "target": (x, Y), "together": False}
        scorer = BatchScorer(score, model, losses_of, **options)
        assert bool(scorer(candidates, Y.view(3, 2)).isfinite().all())
