"""The losses over the pairs that labels make, over triplets, and on one vector per class, as modules. Made by
``python -m fastpair.formulas`` from the definitions in fastpair/formulas: not to be edited."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastpair.formulas.class_losses import CLASS_LOSSES
from fastpair.losses import generated_functions
from fastpair.losses.base import PairLoss
from fastpair.losses.classes import ClassLoss
from fastpair.losses.options import module_settings

__all__ = [
    "ArcFaceLoss",
    "CenterLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "DCLLoss",
    "GeneralizedLiftedStructureLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NTXentLoss",
    "NormalizedSoftmaxLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SINCERELoss",
    "SNCALoss",
    "SupConLoss",
    "TripletMarginLoss",
]


class ContrastiveLoss(PairLoss):
    """Contrastive loss over all pairs.

        Σ_P [d − m₊]₊ᵖ + Σ_N [m₋ − d]₊ᵖ

    See :func:`fastpair.functional.contrastive_loss`.
    """

    def __init__(
        self,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        distance: str | nn.Module = "unit_euclidean",
        power: int = 1,
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "pos_margin": pos_margin,
            "neg_margin": neg_margin,
            "distance": distance,
            "power": power,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.contrastive_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("contrastive", settings, reducer),
        )


class SNCALoss(PairLoss):
    """Scalable neighbourhood component analysis.

        log Σ_{P∪N} exp(s/τ) − log Σ_P exp(s/τ)

    See :func:`fastpair.functional.snca_loss`.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        distance: str | nn.Module = "cosine",
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "temperature": temperature,
            "distance": distance,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.snca_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("snca", settings, reducer),
        )


class NCALoss(PairLoss):
    """Neighbourhood components analysis.

        log Σ_{P∪N} exp(σs) − log Σ_P exp(σs), s = −d²

    See :func:`fastpair.functional.nca_loss`.
    """

    def __init__(
        self,
        softmax_scale: float | Tensor = 1.0,
        distance: str | nn.Module = "unit_sqeuclidean",
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "softmax_scale": softmax_scale,
            "distance": distance,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.nca_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("nca", settings, reducer),
        )


class SupConLoss(PairLoss):
    """Supervised contrastive loss.

        log Σ_{P∪N} exp(s/τ) − mean_P s/τ

    See :func:`fastpair.functional.supcon_loss`.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        distance: str | nn.Module = "cosine",
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "temperature": temperature,
            "distance": distance,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.supcon_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("supcon", settings, reducer),
        )


class DCLLoss(PairLoss):
    """Decoupled contrastive loss, whose denominator has no positives.

        log Σ_N exp(s/τ) − mean_P s/τ

    See :func:`fastpair.functional.dcl_loss`.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        distance: str | nn.Module = "cosine",
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "temperature": temperature,
            "distance": distance,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.dcl_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("dcl", settings, reducer),
        )


class SINCERELoss(PairLoss):
    """Supervised InfoNCE revisited, each positive against the anchor's negatives.

        mean_P log(1 + Σ_N exp((s_N − s_P)/τ))

    See :func:`fastpair.functional.sincere_loss`.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        distance: str | nn.Module = "cosine",
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "temperature": temperature,
            "distance": distance,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.sincere_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("sincere", settings, reducer),
        )


class NTXentLoss(PairLoss):
    """Normalised temperature-scaled cross-entropy, each positive against the anchor's negatives.

        Σ_P log(1 + Σ_N exp((s_N − s_P)/τ))

    See :func:`fastpair.functional.ntxent_loss`.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        distance: str | nn.Module = "cosine",
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "temperature": temperature,
            "distance": distance,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.ntxent_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("ntxent", settings, reducer),
        )


class MultiSimilarityLoss(PairLoss):
    """Multi-similarity loss.

        log(1 + Σ_P exp(−α(s − λ)))/α + log(1 + Σ_N exp(β(s − λ)))/β

    See :func:`fastpair.functional.multi_similarity_loss`.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        distance: str | nn.Module = "cosine",
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "alpha": alpha,
            "beta": beta,
            "base": base,
            "distance": distance,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.multi_similarity_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("multi_similarity", settings, reducer),
        )


class CircleLoss(PairLoss):
    """Circle loss with pairwise labels.

        log(1 + Σ_P exp(−γ[1+m−s]₊(s−1+m)) · Σ_N exp(γ[s+m]₊(s−m)))

    See :func:`fastpair.functional.circle_loss`.
    """

    def __init__(
        self,
        m: float = 0.4,
        gamma: float = 80.0,
        distance: str | nn.Module = "cosine",
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "m": m,
            "gamma": gamma,
            "distance": distance,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.circle_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("circle", settings, reducer),
        )


class GeneralizedLiftedStructureLoss(PairLoss):
    """Lifted structure loss over all positives and negatives of an anchor.

        [log Σ_P exp(d − m₊) + log Σ_N exp(m₋ − d)]₊

    See :func:`fastpair.functional.generalized_lifted_structure_loss`.
    """

    def __init__(
        self,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        distance: str | nn.Module = "unit_euclidean",
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "neg_margin": neg_margin,
            "pos_margin": pos_margin,
            "distance": distance,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.generalized_lifted_structure_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("generalized_lifted_structure", settings, reducer),
        )


class TripletMarginLoss(PairLoss):
    """Triplet margin loss.

        Σ over triplets of an anchor, a positive and a negative, of [d_P − d_N + m]₊

    See :func:`fastpair.functional.triplet_margin_loss`.
    """

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        smooth_loss: bool = False,
        triplets_per_anchor: str = "all",
        distance: str | nn.Module = "unit_euclidean",
        reduction: str = "mean",
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
    ):
        settings = {
            "margin": margin,
            "swap": swap,
            "smooth_loss": smooth_loss,
            "triplets_per_anchor": triplets_per_anchor,
            "distance": distance,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.triplet_margin_loss,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **module_settings("triplet_margin", settings, reducer),
        )


class NormalizedSoftmaxLoss(ClassLoss):
    """Cross-entropy of cosines.

        logits cos(z_i, w_k) / temperature

    See :func:`fastpair.functional.normalized_softmax_loss`.
    """

    definition = CLASS_LOSSES["normalized_softmax"]

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        temperature: float = 0.05,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
        weight_regularizer: Callable[[Tensor], Tensor] | None = None,
        weight_reg_weight: float = 1.0,
    ):
        settings = {
            "temperature": temperature,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.normalized_softmax_loss,
            num_classes,
            embedding_size,
            device,
            dtype,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            weight_regularizer=weight_regularizer,
            weight_reg_weight=weight_reg_weight,
            **module_settings("normalized_softmax", settings, reducer),
        )


class CosFaceLoss(ClassLoss):
    """Cross-entropy of cosines with a margin.

        logits scale (cos(z_i, w_k) - margin [k = y_i])

    See :func:`fastpair.functional.cosface_loss`.
    """

    definition = CLASS_LOSSES["cosface"]

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.35,
        scale: float = 64.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
        weight_regularizer: Callable[[Tensor], Tensor] | None = None,
        weight_reg_weight: float = 1.0,
    ):
        settings = {
            "margin": margin,
            "scale": scale,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.cosface_loss,
            num_classes,
            embedding_size,
            device,
            dtype,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            weight_regularizer=weight_regularizer,
            weight_reg_weight=weight_reg_weight,
            **module_settings("cosface", settings, reducer),
        )


class ArcFaceLoss(ClassLoss):
    """Cross-entropy of cosines with a margin on the angle.

        logits scale cos(theta_ik + margin [k = y_i])

    See :func:`fastpair.functional.arcface_loss`.
    """

    definition = CLASS_LOSSES["arcface"]

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 28.6,
        scale: float = 64.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
        weight_regularizer: Callable[[Tensor], Tensor] | None = None,
        weight_reg_weight: float = 1.0,
    ):
        settings = {
            "margin": margin,
            "scale": scale,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.arcface_loss,
            num_classes,
            embedding_size,
            device,
            dtype,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            weight_regularizer=weight_regularizer,
            weight_reg_weight=weight_reg_weight,
            **module_settings("arcface", settings, reducer),
        )


class ProxyNCALoss(ClassLoss):
    """Neighbourhood components analysis with one proxy per class.

        l_i = -log( exp(-softmax_scale d_{i y_i}) / sum_k exp(-softmax_scale d_ik) ),  d_ik = |z_i/|z_i| - p_k/|p_k||^2

    See :func:`fastpair.functional.proxy_nca_loss`.
    """

    definition = CLASS_LOSSES["proxy_nca"]

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        softmax_scale: float = 1.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
        weight_regularizer: Callable[[Tensor], Tensor] | None = None,
        weight_reg_weight: float = 1.0,
    ):
        settings = {
            "softmax_scale": softmax_scale,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.proxy_nca_loss,
            num_classes,
            embedding_size,
            device,
            dtype,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            weight_regularizer=weight_regularizer,
            weight_reg_weight=weight_reg_weight,
            **module_settings("proxy_nca", settings, reducer),
        )


class ProxyAnchorLoss(ClassLoss):
    """Proxy-anchor loss: a pair loss whose anchors are the proxies of the classes.

        l_k = log(1 + sum_{i: y_i = k} exp(-alpha (s_ik - margin)))
            + log(1 + sum_{i: y_i != k} exp(alpha (s_ik + margin)))

    See :func:`fastpair.functional.proxy_anchor_loss`.
    """

    definition = CLASS_LOSSES["proxy_anchor"]

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.1,
        alpha: float = 32.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
        weight_regularizer: Callable[[Tensor], Tensor] | None = None,
        weight_reg_weight: float = 1.0,
    ):
        settings = {
            "margin": margin,
            "alpha": alpha,
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.proxy_anchor_loss,
            num_classes,
            embedding_size,
            device,
            dtype,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            weight_regularizer=weight_regularizer,
            weight_reg_weight=weight_reg_weight,
            **module_settings("proxy_anchor", settings, reducer),
        )


class CenterLoss(ClassLoss):
    """Center loss: the pull of samples towards the centre of their class.

        l_i = 1/2 |z_i - c_{y_i}|^2

    See :func:`fastpair.functional.center_loss`.
    """

    definition = CLASS_LOSSES["center"]

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
        weight_regularizer: Callable[[Tensor], Tensor] | None = None,
        weight_reg_weight: float = 1.0,
    ):
        settings = {
            "reduction": reduction,
        }
        super().__init__(
            generated_functions.center_loss,
            num_classes,
            embedding_size,
            device,
            dtype,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            weight_regularizer=weight_regularizer,
            weight_reg_weight=weight_reg_weight,
            **module_settings("center", settings, reducer),
        )
