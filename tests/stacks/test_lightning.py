"""The page on Lightning, and the rest of its column of the table."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from stack_pages import need, run
from torch import nn
from torch.utils.data import DataLoader

from trainaug.data.indexed import IndexedDataset
from trainaug.methods import hard_negatives as hn
from trainaug.methods.gradient_clustering import SnoozeSampler
from trainaug.methods.linear_robustness import ProximalGradient, SteepestDescent
from trainaug.methods.ordering import BatchScorer, PerfectOrderingSampler

pytestmark = pytest.mark.filterwarnings("ignore")


def test_hard_negatives_train_as_in_a_plain_loop():
    names = run("lightning", "Hard negatives, with a start on the sum")
    torch.manual_seed(0)
    pictures, captions = torch.randn(64, 20), torch.randn(64, 12)
    plain = names["Towers"]()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    groups = names["groups"]
    sampler = hn.DistinctGroupBatchSampler(groups, 16, torch.Generator().manual_seed(0))
    for _ in range(3):
        for rows in sampler:
            assert len(groups[rows].unique()) == 16
            optimizer.zero_grad()
            plain.training_step((pictures[rows], captions[rows], groups[rows]), 0).backward()
            optimizer.step()
            plain.loss.step()
    assert names["towers"].loss.steps == plain.loss.steps == 12
    for p, q in zip(names["towers"].parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.fixture
def trained(monkeypatch):
    """Rows of each batch that a sampler has heard of, in the order of training."""
    batches = []
    update = SnoozeSampler.update

    def remember(self, indices, values):
        batches.append((self.epoch, indices.tolist()))
        update(self, indices, values)

    monkeypatch.setattr(SnoozeSampler, "update", remember)
    return batches


def counts_of(batches):
    counts: dict[int, int] = {}
    for epoch, rows in batches:
        counts[epoch] = counts.get(epoch, 0) + len(rows)
    return list(counts.values())


def test_awake_is_trained_in_all_epochs(trained):
    names = run("lightning", "Examples that sleep")
    assert counts_of(trained) == names["sampler"].active_counts
    assert len(trained) < 6 * 8


def test_a_checkpoint_in_mid_epoch_loses_and_repeats_nothing(trained, tmp_path):
    names = run("lightning", "Examples that sleep")
    L = names["L"]

    def fit(num_epochs, resumed=None, **options):
        torch.manual_seed(1)
        names["sampler"] = SnoozeSampler(256, 32, torch.Generator().manual_seed(0), tau=0.7)
        loader = DataLoader(names["data"], sampler=names["sampler"], batch_size=None)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet |= names["each"]
        trainer = L.Trainer(max_epochs=num_epochs, accelerator="cpu", **quiet, **options)
        trained.clear()
        trainer.fit(names["Classifier"](), loader, ckpt_path=resumed)
        return list(trained)

    saver = L.pytorch.callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1
    )
    whole = fit(3, callbacks=[saver])
    rest = fit(3, tmp_path / "step=11.ckpt", enable_checkpointing=False)
    assert rest == whole[11:]


def test_every_row_is_visited_once_with_accumulation():
    names = run("lightning", "The batch that comes next, chosen by the model")
    assert names["classifier"].sampler.emitted == 20
    assert names["trainer"].global_step == 10


@pytest.mark.parametrize("score", ["min_loss", "delta_target", "grad_align"])
@pytest.mark.parametrize("workers", [0, 1])
def test_scores_are_those_of_a_plain_loop_and_workers_are_refused(score, workers):
    need("lightning")
    import lightning as L

    x = torch.randn(96, 6)
    data, target = IndexedDataset(x[32:], torch.arange(64) % 3), (x[:32], torch.arange(32) % 3)
    criterion = nn.CrossEntropyLoss(reduction="none")

    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.model, self.rows = nn.Linear(6, 3), []
            self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scorer = BatchScorer(
                score, self.model, criterion, optimizer=self.optimizer, target=target
            )
            self.sampler = PerfectOrderingSampler(
                data,
                8,
                scorer=scorer,
                generator=torch.Generator().manual_seed(0),
                candidate_generator=torch.Generator().manual_seed(1),
            )

        def training_step(self, batch, number):
            self.rows.append(batch[2].tolist())
            return criterion(self.model(batch[0]), batch[1]).mean()

        def configure_optimizers(self):
            return self.optimizer

    plain, module = Classifier(), Classifier()
    for rows in plain.sampler:
        plain.optimizer.zero_grad()
        plain.training_step(data[rows], 0).backward()
        plain.optimizer.step()
    loader = DataLoader(data, sampler=module.sampler, batch_size=None, num_workers=workers)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", barebones=True)
    if workers:
        with pytest.raises(RuntimeError) as error:
            trainer.fit(module, loader)
        shown = [str(error.value), str(error.value.__context__)]  # Lightning adds one of its own
        assert any("num_workers=0" in message for message in shown)
        return
    trainer.fit(module, loader)
    assert module.rows == plain.rows
    assert sorted(chain(*module.rows)) == list(range(64))


def test_mixes_and_their_state():
    names = run("lightning", "Mixes and attacks")
    classifier = names["classifier"]
    assert classifier.mix.num_groups == 1
    torch.save(classifier.state_dict(), "classifier.pt")
    twin = names["Classifier"]()
    twin.load_state_dict(torch.load("classifier.pt", weights_only=True))
    twin.mix.num_groups = classifier.mix.num_groups = 4
    batch = torch.rand(8, 1, 8, 8), torch.arange(8) % 3
    for a, b in zip(classifier.mix(*batch), twin.mix(*batch), strict=True):
        assert torch.equal(a, b)


def test_a_module_is_clustered_and_its_strata_drawn():
    names = run("lightning", "Clusters of gradients, and strata")
    assert int(names["classifier"].clusters.sizes.sum()) == 256
    assert names["sampler"].epoch == 1
    weights = names["sampler"].weights(torch.arange(256))
    sizes = names["classifier"].clusters.sizes
    assert len(weights.unique()) == len(sizes[sizes > 0].unique())


def test_what_the_assistant_kept_is_trained_on():
    names = run("lightning", "AutoAssist")
    assert names["classifier"].trained == names["sampler"].kept < names["sampler"].scanned


@pytest.mark.parametrize("kind", [SteepestDescent, ProximalGradient])
def test_optimisers_step_as_in_a_plain_loop(kind):
    need("lightning")
    import lightning as L

    x = torch.randn(32, 6)
    y = x[:, 0].sign()

    class Line(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(6))

        def training_step(self, batch, number):
            return F.softplus(-batch[1] * (batch[0] @ self.w)).mean()

        def configure_optimizers(self):
            lam = {} if kind is SteepestDescent else {"lam": 0.01}
            return kind([self.w], lr=0.05, norm="l1", **lam)

    plain, module = Line(), Line()
    optimizer = plain.configure_optimizers()

    def closure():
        optimizer.zero_grad()
        loss = plain.training_step((x, y), 0)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", barebones=True)
    trainer.fit(module, DataLoader([(x, y)], batch_size=None))
    assert bool((plain.w != 0).any())
    assert torch.equal(module.w, plain.w)
