"""The two classifiers, and asking a model without changing it."""

from __future__ import annotations

import importlib
from collections import OrderedDict, UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainaug.data.indexed import IndexedDataset
from trainaug.training import networks
from trainaug.training.models import evaluate, predict, run_model
from trainaug.training.networks import MLP, SmallCNN
from trainaug.training.randomness import initialise, stream
from trainaug.undisturbed import undisturbed


def snapshot(model: nn.Module) -> list:
    """Everything that training sees of a model, as comparable values."""
    tensors = [*model.parameters(), *model.buffers()]
    grads = [None if t.grad is None else t.grad.tolist() for t in tensors]
    state = [t.tolist() for t in tensors]
    return [state, grads, [t.requires_grad for t in tensors], [m.training for m in model.modules()]]


def small_model() -> nn.Module:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    initialise(model, stream(0, "init"))
    model[1].eval()  # a mixed state: restoring must be per module
    model[0].weight.requires_grad_(False)
    return model


def test_small_cnn_has_the_parameters_of_the_pilots():
    assert sum(p.numel() for p in SmallCNN(10, stream(0, "init")).parameters()) == 79_770


def test_models_give_a_row_of_logits_an_example():
    assert MLP(12, 5, 3, stream(0, "init"))(torch.zeros(2, 3, 4)).shape == (2, 3)
    cnn = SmallCNN(7, stream(0, "init"), in_channels=3, image_size=32)
    assert cnn(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("hidden", [5, (5,), (7, 4), ()])
def test_mlp_is_its_layers_in_plain_products(hidden):
    model, x = MLP(12, hidden, 3, stream(0, "init")), torch.rand(2, 3, 4, generator=stream(0, "x"))
    sizes = [12, *([hidden] if isinstance(hidden, int) else hidden), 3]
    tensors = list(model.parameters())
    assert [tuple(w.shape) for w in tensors[::2]] == list(zip(sizes[1:], sizes[:-1], strict=True))
    h = x.flatten(1)
    for number, (weight, bias) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
        h = (h if number == 0 else h.clamp(min=0)) @ weight.T + bias
    torch.testing.assert_close(model(x), h, rtol=1e-5, atol=1e-6)  # order of sums


def test_dropout_of_an_mlp_drops_hidden_units_in_train_mode_alone():
    plain, model = (MLP(4, (50, 50), 3, stream(0, "init"), dropout=p) for p in (0.0, 0.5))
    x = torch.rand(6, 4, generator=stream(0, "x"))
    assert [type(m) for m in model if not isinstance(m, nn.Linear)] == [
        nn.Flatten,
        *[nn.ReLU, nn.Dropout] * 2,
    ]
    assert torch.equal(model.eval()(x), plain(x))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        assert not torch.equal(model.train()(x), plain(x))


def test_former_modules_give_the_same_networks():
    for name in ("models", "convnet", "resnet", "wide_resnet", "embeddings"):
        former = importlib.import_module(f"trainaug.training.{name}")
        names = set(former.__all__) & set(networks.__all__)
        assert names
        assert all(getattr(former, each) is getattr(networks, each) for each in names)


@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda g: MLP(4, 0, 3, g), "hidden=0"),
        (lambda g: MLP(4, (5, 0), 3, g), r"hidden=\(5, 0\)"),
        (lambda g: SmallCNN(0, g), "num_classes=0"),
        (lambda g: SmallCNN(10, g, image_size=7), "image_size=7"),
    ],
)
def test_impossible_sizes_raise_with_the_value(build, value):
    with pytest.raises(ValueError, match=value):
        build(stream(0, "init"))


@pytest.mark.parametrize("in_channels", [1, 3])
def test_channels_last_equals_contiguous(in_channels, train_set):
    results = {}
    for dtype in (torch.float32, torch.float64):
        x = train_set.x[:64].repeat(1, in_channels, 1, 1).to(dtype)
        for last in (True, False):
            init = stream(0, "init")
            model = SmallCNN(10, init, in_channels=in_channels, channels_last=last).to(dtype)
            weight = model.features[4].weight
            assert weight.is_contiguous(memory_format=torch.channels_last) == last
            logits = model(x)
            F.cross_entropy(logits, train_set.y[:64]).backward()
            results[dtype, last] = logits.double(), weight.grad.double()
    exact = results[torch.float64, False]
    for a, b in zip(results[torch.float64, True], exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    # float32: torch's channels-last BatchNorm is right to 1e-4 only on a CPU. The gradient is not
    # compared: it jumps where max-pooling has near ties, as in the black background
    for last in (True, False):
        torch.testing.assert_close(results[torch.float32, last][0], exact[0], rtol=0, atol=1e-3)


def test_undisturbed_restores_everything():
    model = small_model()
    with torch.random.fork_rng([]):  # for the dropout
        model(torch.tensor([[1.0], [2.0]]).repeat(1, 4)).sum().backward()
    before, random_state = snapshot(model), torch.get_rng_state()
    grad = model[3].weight.grad

    def disturb() -> None:
        model.train()
        model(torch.randn(5, 4)).sum().backward()
        model[0].requires_grad_(True)
        model[1].requires_grad_(False)
        model[0].weight.data.add_(1.0)
        model[3].zero_grad()
        raise RuntimeError("even when it fails")

    with pytest.raises(RuntimeError, match="even when it fails"), undisturbed(model):
        disturb()
    assert snapshot(model) == before
    assert model[3].weight.grad is grad
    assert torch.equal(torch.get_rng_state(), random_state)


def test_predict_equals_eval_forward_in_order_and_changes_nothing():
    model = small_model()
    x, y = torch.rand(23, 4, generator=stream(0, "x")), torch.arange(23) % 3
    before = snapshot(model)
    logits, targets = predict(model, IndexedDataset(x, y), batch_size=5)
    assert snapshot(model) == before
    assert not logits.requires_grad
    assert torch.equal(targets, y)
    model.eval()
    torch.testing.assert_close(logits, model(x), rtol=1e-6, atol=1e-6)  # batches of another size


def test_evaluate_counts_hits_and_averages_losses(val_set):
    model = SmallCNN(10, stream(0, "init"))
    metrics = evaluate(model, val_set, "val")
    logits = torch.stack([model.eval()(x[None])[0] for x in val_set.x[:1000]])
    hits = sum(int(a.argmax() == y) for a, y in zip(logits, val_set.y, strict=True))
    assert metrics["val/accuracy"] == hits / 1000
    loss = -logits.log_softmax(1)[torch.arange(1000), val_set.y].mean().item()
    assert metrics["val/loss"] == pytest.approx(loss, rel=1e-5)


def test_predict_refuses_an_empty_set():
    empty = IndexedDataset(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="0 examples"):
        predict(small_model(), empty)


def test_run_model_precision():
    model, x = MLP(4, 8, 3, stream(0, "init")), torch.rand(5, 4, generator=stream(0, "x"))
    fp32, bf16 = run_model(model, x), run_model(model, x, "bf16")
    assert torch.equal(fp32, model(x))
    assert bf16.dtype == torch.float32
    assert not torch.equal(fp32, bf16)
    torch.testing.assert_close(fp32, bf16, rtol=0.05, atol=0.02)  # bfloat16 has 8 bits
    assert run_model(model.double(), x.double()).dtype == torch.float64
    with pytest.raises(ValueError, match="got 'fp16'"):
        run_model(model, x, "fp16")


# --- what other loops bring


class Output(OrderedDict):
    """Like the outputs of Hugging Face models: entries are attributes, too."""

    def __getattr__(self, name):
        return self[name]


def test_containers_keep_their_types():
    x = Output(logits=torch.ones(2, dtype=torch.bfloat16), rest=UserDict(a=(torch.ones(1),)))
    got = run_model(Wrapped(nn.Linear(1, 1, device="meta").to_empty(device="cpu")), x)
    assert type(got) is Output
    assert got.logits.dtype == torch.float32
    assert type(got.rest) is UserDict
    assert x.logits.dtype == torch.bfloat16


class Wrapped(nn.Module):
    """Gives back what it gets."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x


def test_undisturbed_returns_replaced_buffers_and_precision_after_a_failure():
    model = small_model()
    norm, before = model[1], snapshot(model)
    mean = norm.running_mean

    def spoil():
        with undisturbed(model):
            model.half()
            norm.running_mean = torch.ones(6)
            norm.register_buffer("more", torch.ones(1))
            raise KeyError

    with pytest.raises(KeyError):
        spoil()
    assert norm.running_mean is mean
    assert snapshot(model) == before
    assert {t.dtype for t in model.parameters()} == {torch.float32}


def test_undisturbed_gives_tensors_their_memory_again():
    """A view that a caller holds shows the weights still, whatever took their place meanwhile."""
    model = small_model()
    view, weight = model[0].weight.detach(), model[0].weight
    before = weight.detach().clone()
    for other in (torch.ones(6, 4), torch.ones(4, 6).T, view.flatten().flip(0).view(6, 4)):
        with undisturbed(model):
            weight.data = other
        assert torch.equal(view, before)
        assert torch.equal(weight, before)
        with torch.no_grad():
            weight.add_(1.0)
        assert torch.equal(view, before + 1)
        with torch.no_grad():
            weight.copy_(before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_accuracy_takes_labels_of_any_integer_type_and_no_nan_for_a_hit(dtype):
    x = torch.eye(3)
    model = Wrapped(nn.Linear(1, 1, device="meta").to_empty(device="cpu"))
    y = torch.tensor([0, 1, 0], dtype=dtype)
    actual = evaluate(model, IndexedDataset(x, y), "test")
    assert actual["test/accuracy"] == pytest.approx(2 / 3)
    x[0, 0] = float("nan")
    actual = evaluate(model, IndexedDataset(x, y), "test")
    assert actual["test/accuracy"] == pytest.approx(1 / 3)
    assert actual["test/loss"] != actual["test/loss"]
    with pytest.raises(ValueError, match="labels must be"):
        evaluate(model, IndexedDataset(x, torch.tensor([0, 1, 3], dtype=dtype)), "test")
