"""Two processes: what the page has no example of. Started by torchrun; `trained` is what counts."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.attacks import pgd
from trainaug.methods.autoassist import AssistantTrainer, AssistedSampler, ImageAssistant
from trainaug.methods.cascading_sum import SumMix
from trainaug.methods.gradient_clustering import GradientClustering, StratifiedSampler
from trainaug.methods.linear_robustness import SteepestDescent
from trainaug.methods.ordering import BatchScorer, PerfectOrderingSampler

dist.init_process_group("gloo")
ranks = {"num_replicas": dist.get_world_size(), "rank": dist.get_rank()}
torch.manual_seed(0)
x = torch.randn(160, 12)
data = IndexedDataset(x, x[:, :3].argmax(1))
criterion = nn.CrossEntropyLoss(reduction="none")
draws = [torch.Generator().manual_seed(seed) for seed in range(6)]
trained: dict[str, list[list[int]]] = {}


def train(name, model, optimizer, sampler, hear=lambda index, losses: None, num_epochs=2):
    trained[name] = []
    for _ in range(num_epochs):
        for inputs, labels, index in DataLoader(data, sampler=sampler, batch_size=None):
            losses = criterion(model(inputs), labels)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            hear(index, losses.detach())
            trained[name].append(index.tolist())


def make(kind=torch.optim.SGD, **options):
    model = DistributedDataParallel(nn.Linear(12, 3))
    return model, kind(model.parameters(), **{"lr": 0.1} | options)


model, optimizer = make()
assistant = AssistantTrainer(ImageAssistant(12, 3, draws[0]), lambda i: data[i][:2])
assisted = AssistedSampler(160, 8, assistant.predict, draws[1], draws[2], **ranks)
train("assisted", model, optimizer, assisted, assistant.update)
kept = assisted.kept

model, optimizer = make()
target = data[torch.arange(32)][:2]
scorer = BatchScorer("delta_target", model, criterion, optimizer=optimizer, target=target)
ordered = PerfectOrderingSampler(
    data, 8, scorer=scorer, generator=draws[3], candidate_generator=draws[4], **ranks
)
train("ordered", model, optimizer, ordered, num_epochs=1)

model, optimizer = make(SteepestDescent, norm="linf", lr=0.01)
clustering = GradientClustering(model, criterion, 4, generator=draws[5])
clusters = clustering.fit(DataLoader(data, 32), num_iterations=2).assign
strata = StratifiedSampler(160, 8, torch.Generator(), **ranks)
strata.set_clusters(clusters)
train("strata", model, optimizer, strata, num_epochs=1)

generator = torch.Generator().manual_seed(dist.get_rank())
mix = SumMix(2, num_classes=3, mode="pairing", generator=generator)
x, y, _ = data[torch.arange(16)]  # the same on all ranks; what is drawn is not
bounded = {"norm": "linf", "eps": 0.1, "steps": 2, "step_size": 0.1, "bounds": (-9.0, 9.0)}
moved = pgd(model, x, y, generator=generator, **bounded)
furthest = (moved - x).abs().max()
mixed, soft = mix(moved, y)
optimizer.zero_grad()
criterion(model(mixed), soft).mean().backward()
optimizer.step()
weight = model.module.weight.detach().clone()
dist.destroy_process_group()
