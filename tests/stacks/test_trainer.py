"""The page on the Hugging Face Trainer, and the rest of its column of the table."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from stack_pages import run

from trainaug.methods.autoassist import AssistedSampler

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_dual_encoder_trains_on_batches_of_distinct_groups():
    names = run("trainer", "Hard negatives for an image-text model")
    assert names["sampler"].epoch == 1
    for batch in names["sampler"]:
        assert len({names["rows"][i]["labels"] for i in batch}) == len(batch) == 16
    assert names["model"].visual_projection.weight.grad is None  # zeroed after its last update
    with torch.no_grad():
        rows = names["rows"][::2]
        pictures = torch.stack([row["pixel_values"] for row in rows])
        texts = torch.stack([row["input_ids"] for row in rows])
        outputs = names["model"](pixel_values=pictures, input_ids=texts)
        groups = torch.tensor([row["labels"] for row in rows])
        assert bool(names["hinges"](outputs, groups).isfinite())


def test_epochs_of_their_own_lengths_reach_the_planned_end():
    names = run("trainer", "Examples that sleep")
    assert names["state"].global_step == 40
    ends = set(accumulate(names["trained"]))
    finished = list(accumulate(names["sampler"].active_counts[:-1]))
    assert len(finished) > 3
    assert ends >= set(finished)  # each epoch's awake, no more and no less


def test_a_sampler_without_a_length_is_counted_in_steps():
    names = run("trainer", "Examples that sleep")

    class Assisted(AssistedSampler):
        def update(self, indices, values):
            heard.extend(indices.tolist())

    heard: list[int] = []
    draws = torch.Generator().manual_seed(1)
    sampler = Assisted(128, 16, lambda i: torch.full((len(i),), 0.5), torch.Generator(), draws)
    names["sampler"] = sampler
    trainer = names["Sleeping"](
        names["ViTForImageClassification"](names["config"]), names["options"], train_dataset=[0]
    )
    assert trainer.train().global_step == 40
    assert sampler.kept - 16 <= len(heard) <= sampler.kept  # one batch is fetched ahead


def test_a_sampler_that_asks_the_model_in_a_loader_that_is_not_prepared():
    names = run("trainer", "The batch that comes next, chosen by the model")
    assert names["sampler"].emitted == 16
    assert names["scorer"].backward_rows > 16 * 16  # no forward mode: each candidate goes back


def test_accumulation_fetches_ahead_and_is_refused_by_name():
    names = run("trainer", "The batch that comes next, chosen by the model")
    names["options"].gradient_accumulation_steps = 2
    trainer = names["Ordered"](names["model"], names["options"], train_dataset=names["data"])
    with pytest.raises(RuntimeError, match="train on every batch before the next"):
        trainer.train()


@pytest.mark.parametrize("workers", [0, 1])
def test_mixes_are_collated_and_attacked(workers):
    names = run("trainer", "Mixes, attacks and other optimisers")
    assert names["trainer"].state.global_step == 8
    names["options"].dataloader_num_workers = workers
    batch = next(iter(names["trainer"].get_train_dataloader()))
    assert batch["labels"].shape == (8, 3)
    assert set(batch["labels"].unique().tolist()) <= {0.0, 0.5, 1.0}
    soft = batch["labels"]
    loss = F.cross_entropy(names["model"](pixel_values=batch["pixel_values"]).logits, soft)
    assert bool(loss.isfinite())


def test_layers_of_a_network_with_attention_are_clustered():
    names = run("trainer", "Clusters of gradients")
    assert names["sampler"].num_clusters == 4
    assert len(names["linear"]) == 7
