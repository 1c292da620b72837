"""Embeddings of lists of images, and how well they retrieve."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastpair.retrieval import nearest_neighbors

from .data import Images, Preprocessing, RetrievalData, Views, evaluation_batches, load
from .processes import Processes, on_gpu
from .stopping import Stop

# The metrics' names in results, and fastpair's.
METRICS = {"cosine": "cosine", "l2": "euclidean"}


@torch.no_grad()
def embed(
    model: nn.Module,
    images: Images,
    preprocessing: Preprocessing | None,
    index: Tensor | None = None,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    processes: Processes,
    stop: Stop | None = None,
) -> Tensor | None:
    """Embeddings (n, d) of the images ``index``, or of all, float32 on ``device``, in the main process.

    Each process makes its share; the others than the main one get None, so that a machine holds them once.

    Raises:
        Interrupted: ``stop`` was asked to.
    """
    training = model.training
    model.eval()
    index = torch.arange(len(images)) if index is None else index
    batches = [
        batch._replace(indices=index[batch.indices])
        for batch in evaluation_batches(len(index), batch_size, processes.rank, processes.world)
    ]
    options = {"num_workers": workers, "pin_memory": on_gpu(device)}
    read = load(Views(images, preprocessing, augmented=False), batches, device=device, **options)
    parts = []
    try:
        # As many rounds in each process: they ask each other whether to stop.
        for _ in range(-(-len(index) // (batch_size * processes.world))):
            if (batch := next(read, None)) is not None:
                views, _ = batch
                parts.append(model(views[0]).float())
            if stop is not None:
                stop.check()
    finally:
        model.train(training)
    own = torch.cat(parts) if parts else torch.empty(0, model.embedding_size, device=device)
    rows = [len(part) for part in torch.arange(len(index)).tensor_split(processes.world)]
    return processes.rows_to_main(own, rows)


@dataclass(frozen=True)
class Gallery:
    """Queries and what they search, embedded: (n, d) and (m, d), or None where they search among themselves."""

    query: Tensor
    query_labels: Tensor
    items: Tensor | None
    item_labels: Tensor | None

    def measure(self, recall_at: tuple[int, ...], neighbours: int = 1) -> tuple[dict[str, float], Tensor]:
        """Recall@k and MAP@R, and the indices (n, neighbours) of the items nearest by cosine, nearest first.

        The metrics are fractions of 1, for cosines and for Euclidean distances. Of each kind there is one search, as
        deep as the deepest Recall@k and the largest class need, but no deeper than there are items.
        """
        item_labels = self.query_labels if self.items is None else self.item_labels
        own = int(self.items is None)
        relevant = (item_labels.bincount(minlength=int(self.query_labels.max()) + 1) - own)[self.query_labels]
        depth = min(max(*recall_at, int(relevant.max()), neighbours), len(item_labels) - own)
        counted, found, nearest = relevant > 0, {}, {}
        for name, metric in METRICS.items():
            _, nearest[name] = nearest_neighbors(self.query, self.items, depth, metric=metric)
            hits = (item_labels[nearest[name]] == self.query_labels[:, None])[counted]
            found |= {f"{name}/recall@{k}": hits[:, :k].any(1).double().mean().item() for k in recall_at}
            found[f"{name}/map@r"] = _map_at_r(hits, relevant[counted])
        return found, nearest["cosine"][:, :neighbours]


def _map_at_r(hits: Tensor, relevant: Tensor) -> float:
    """As ``fastpair.retrieval.map_at_r``, from whether neighbour r is of the query's class (n, depth)."""
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    hits = hits & (rank <= relevant[:, None])
    return ((hits.cumsum(1) / rank * hits).sum(1) / relevant).double().mean().item()


def embed_test(model: nn.Module, data: RetrievalData, preprocessing: Preprocessing | None, **how) -> Gallery | None:
    """Queries and gallery of ``data``, embedded as :func:`embed` does; None in other processes than the main one."""
    device = how["device"]
    query = embed(model, data.query, preprocessing, **how)
    items = None if data.gallery is None else embed(model, data.gallery, preprocessing, **how)
    if query is None:
        return None
    item_labels = None if items is None else data.gallery.labels.to(device)
    return Gallery(query, data.query.labels.to(device), items, item_labels)
