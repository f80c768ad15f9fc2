"""Visual-semantic embeddings: hinge losses over all or over the hardest negatives of a batch.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Faghri, Fleet, Kiros, Fidler, "VSE++: Improving Visual-Semantic Embeddings with Hard
Negatives", BMVC 2018, arXiv 1707.05612.
"""

from trainaug.methods.hard_negatives.chunked import chunked_max_of_hinges, chunked_sum_of_hinges
from trainaug.methods.hard_negatives.collapse import CollapseMonitor, is_collapsed
from trainaug.methods.hard_negatives.losses import (
    HingeCurriculum,
    MaxOfHinges,
    SumOfHinges,
    group_mask,
    subsample_negatives,
)
from trainaug.methods.hard_negatives.retrieval import (
    RetrievalMetrics,
    folded_metrics,
    retrieval_metrics,
    retrieval_ranks,
    rsum,
)
from trainaug.methods.hard_negatives.sampling import DistinctGroupBatchSampler
from trainaug.methods.hard_negatives.scores import cosine_scores, order_scores

__all__ = [
    "CollapseMonitor",
    "DistinctGroupBatchSampler",
    "HingeCurriculum",
    "MaxOfHinges",
    "RetrievalMetrics",
    "SumOfHinges",
    "chunked_max_of_hinges",
    "chunked_sum_of_hinges",
    "cosine_scores",
    "folded_metrics",
    "group_mask",
    "is_collapsed",
    "order_scores",
    "retrieval_metrics",
    "retrieval_ranks",
    "rsum",
    "subsample_negatives",
]
