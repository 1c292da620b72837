"""Embeddings of lists of images, and how well they retrieve."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastpair.retrieval import map_at_r, nearest_neighbors, recall_at_k

from .data import Images, Preprocessing, RetrievalData, Views, evaluation_batches, load
from .processes import Processes, on_gpu

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
) -> Tensor:
    """Embeddings (n, d) of the images ``index``, or of all, float32, in every process; each has made its share."""
    training = model.training
    model.eval()
    index = torch.arange(len(images)) if index is None else index
    batches = [
        batch._replace(indices=index[batch.indices])
        for batch in evaluation_batches(len(index), batch_size, processes.rank, processes.world)
    ]
    options = {"num_workers": workers, "pin_memory": on_gpu(device)}
    read = load(Views(images, preprocessing, augmented=False), batches, device=device, **options)
    parts = [model(views[0]).float().cpu() for views, _ in read]
    model.train(training)
    return torch.cat([part for of_process in processes.gather(parts) for part in of_process])


@dataclass(frozen=True)
class Gallery:
    """Queries and what they search, embedded: (n, d) and (m, d), or None where they search among themselves."""

    query: Tensor
    query_labels: Tensor
    items: Tensor | None
    item_labels: Tensor | None

    def metrics(self, recall_at: tuple[int, ...]) -> dict[str, float]:
        """Recall@k and MAP@R, fractions of 1, for cosines and Euclidean distances."""
        found = {}
        for name, metric in METRICS.items():
            searched = (self.query, self.query_labels, self.items, self.item_labels)
            recall = recall_at_k(*searched, k=recall_at, metric=metric)
            found |= {f"{name}/recall@{k}": value for k, value in recall.items()}
            found[f"{name}/map@r"] = map_at_r(*searched, metric=metric)
        return found

    def neighbours(self, queries: Tensor, k: int) -> Tensor:
        """Indices of the k items nearest by cosine to some of the queries, (len(queries), k)."""
        available = len(self.query) - 1 if self.items is None else len(self.items)
        _, indices = nearest_neighbors(self.query, self.items, k=min(k, available))
        return indices.cpu()[queries]


def embed_test(model: nn.Module, data: RetrievalData, preprocessing: Preprocessing | None, **how) -> Gallery:
    """Queries and gallery of ``data``, embedded as :func:`embed` does."""
    device = how["device"]
    query = embed(model, data.query, preprocessing, **how).to(device)
    query_labels = data.query.labels.to(device)
    if data.gallery is None:
        return Gallery(query, query_labels, None, None)
    items = embed(model, data.gallery, preprocessing, **how).to(device)
    return Gallery(query, query_labels, items, data.gallery.labels.to(device))
