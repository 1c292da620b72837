"""Embeddings of lists of images, and how well they retrieve."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastpair.retrieval import nearest_neighbors, recall_and_map

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

    Each process makes its share; the others than the main one get None, so that a machine holds them once. The model is
    in evaluation mode afterwards.

    Raises:
        Interrupted: ``stop`` was asked to.
    """
    model.eval()
    index = torch.arange(len(images)) if index is None else index
    batches = [
        batch._replace(indices=index[batch.indices])
        for batch in evaluation_batches(len(index), batch_size, processes.rank, processes.world)
    ]
    options = {"num_workers": workers, "pin_memory": on_gpu(device)}
    read = load(Views(images, preprocessing, augmented=False), batches, device=device, **options)
    parts = []
    # As many rounds in each process: they ask each other whether to stop.
    for _ in range(-(-len(index) // (batch_size * processes.world))):
        if (batch := next(read, None)) is not None:
            views, _ = batch
            parts.append(model(views[0]).float())
        if stop is not None:
            stop.check()
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

    def measure(self, recall_at: tuple[int, ...]) -> dict[str, float]:
        """Recall@k and MAP@R, fractions of 1, for cosines and for Euclidean distances, from one search for each."""
        found = {}
        for name, metric in METRICS.items():
            recalls, found[f"{name}/map@r"] = recall_and_map(
                self.query, self.query_labels, self.items, self.item_labels, k=recall_at, metric=metric
            )
            found |= {f"{name}/recall@{k}": recall for k, recall in recalls.items()}
        return found

    def nearest(self, rows: Tensor, k: int) -> Tensor:
        """The indices of the k items nearest to some queries by cosine, nearest first; all if there are less."""
        query = self.query[rows]
        if self.items is not None:
            return nearest_neighbors(query, self.items, min(k, len(self.items)))[1]
        _, indices = nearest_neighbors(query, self.query, min(k + 1, len(self.query)))
        # A query finds itself, unless as many others are equal to it.
        own_last = (indices == rows[:, None]).int().sort(dim=1, stable=True).indices
        return indices.gather(1, own_last)[:, : indices.shape[1] - 1]


def embed_test(model: nn.Module, data: RetrievalData, preprocessing: Preprocessing | None, **how) -> Gallery | None:
    """Queries and gallery of ``data``, embedded as :func:`embed` does; None in other processes than the main one."""
    device = how["device"]
    query = embed(model, data.query, preprocessing, **how)
    items = None if data.gallery is None else embed(model, data.gallery, preprocessing, **how)
    if query is None:
        return None
    item_labels = None if items is None else data.gallery.labels.to(device)
    return Gallery(query, data.query.labels.to(device), items, item_labels)
