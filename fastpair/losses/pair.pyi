# The types of pair.py. Made by `python -m fastpair.formulas` from fastpair/formulas/pair_losses.py: not to be edited.
from torch import Tensor

from fastpair.losses.base import PairLoss

FUNCTIONS: dict[str, object]
MODULES: dict[str, type[PairLoss]]

__all__ = [
    "CircleLoss",
    "ContrastiveLoss",
    "DCLLoss",
    "GeneralizedLiftedStructureLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NTXentLoss",
    "SINCERELoss",
    "SNCALoss",
    "SupConLoss",
    "circle_loss",
    "contrastive_loss",
    "dcl_loss",
    "generalized_lifted_structure_loss",
    "multi_similarity_loss",
    "nca_loss",
    "ntxent_loss",
    "sincere_loss",
    "snca_loss",
    "supcon_loss",
]

def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    distance: str = "unit_euclidean",
    power: int = 1,
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...

class ContrastiveLoss(PairLoss):
    """Contrastive loss over all pairs.

    Σ_P [d − m₊]₊ᵖ + Σ_N [m₋ − d]₊ᵖ
    """

    def __init__(
        self,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        distance: str = "unit_euclidean",
        power: int = 1,
        reduction: str = "mean",
    ) -> None: ...
    pos_margin: float
    neg_margin: float

def snca_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...

class SNCALoss(PairLoss):
    """Scalable neighbourhood component analysis.

    log Σ_{P∪N} exp(s/τ) − log Σ_P exp(s/τ)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        distance: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    temperature: float

def nca_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    softmax_scale: float = 1.0,
    distance: str = "unit_sqeuclidean",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...

class NCALoss(PairLoss):
    """Neighbourhood components analysis.

    log Σ_{P∪N} exp(σs) − log Σ_P exp(σs), s = −d²
    """

    def __init__(
        self,
        softmax_scale: float = 1.0,
        distance: str = "unit_sqeuclidean",
        reduction: str = "mean",
    ) -> None: ...
    softmax_scale: float

def supcon_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...

class SupConLoss(PairLoss):
    """Supervised contrastive loss.

    log Σ_{P∪N} exp(s/τ) − mean_P s/τ
    """

    def __init__(
        self,
        temperature: float = 0.1,
        distance: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    temperature: float

def dcl_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...

class DCLLoss(PairLoss):
    """Decoupled contrastive loss, whose denominator has no positives.

    log Σ_N exp(s/τ) − mean_P s/τ
    """

    def __init__(
        self,
        temperature: float = 0.1,
        distance: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    temperature: float

def sincere_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...

class SINCERELoss(PairLoss):
    """Supervised InfoNCE revisited, each positive against the anchor's negatives.

    mean_P log(1 + Σ_N exp((s_N − s_P)/τ))
    """

    def __init__(
        self,
        temperature: float = 0.1,
        distance: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    temperature: float

def ntxent_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.07,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...

class NTXentLoss(PairLoss):
    """Normalised temperature-scaled cross-entropy, each positive against the anchor's negatives.

    Σ_P log(1 + Σ_N exp((s_N − s_P)/τ))
    """

    def __init__(
        self,
        temperature: float = 0.07,
        distance: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    temperature: float

def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...

class MultiSimilarityLoss(PairLoss):
    """Multi-similarity loss.

    log(1 + Σ_P exp(−α(s − λ)))/α + log(1 + Σ_N exp(β(s − λ)))/β
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        distance: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    alpha: float
    beta: float
    base: float

def circle_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    m: float = 0.4,
    gamma: float = 80.0,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...

class CircleLoss(PairLoss):
    """Circle loss with pairwise labels.

    log(1 + Σ_P exp(−γ[1+m−s]₊(s−1+m)) · Σ_N exp(γ[s+m]₊(s−m)))
    """

    def __init__(
        self,
        m: float = 0.4,
        gamma: float = 80.0,
        distance: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    m: float
    gamma: float

def generalized_lifted_structure_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    distance: str = "unit_euclidean",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...

class GeneralizedLiftedStructureLoss(PairLoss):
    """Lifted structure loss over all positives and negatives of an anchor.

    [log Σ_P exp(d − m₊) + log Σ_N exp(m₋ − d)]₊
    """

    def __init__(
        self,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        distance: str = "unit_euclidean",
        reduction: str = "mean",
    ) -> None: ...
    neg_margin: float
    pos_margin: float
