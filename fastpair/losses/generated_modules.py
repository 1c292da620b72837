"""The losses over the pairs that labels make, as modules. Made by ``python -m fastpair.formulas`` from
fastpair/formulas/pair_losses.py: not to be edited."""

from __future__ import annotations

from fastpair.losses import generated_functions
from fastpair.losses.base import PairLoss
from fastpair.losses.pair import check_settings

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
]


class ContrastiveLoss(PairLoss):
    """Contrastive loss over all pairs.

        Σ_P [d − m₊]₊ᵖ + Σ_N [m₋ − d]₊ᵖ

    See :func:`fastpair.functional.contrastive_loss` for the settings.
    """

    def __init__(
        self,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        distance: str = "unit_euclidean",
        power: int = 1,
        reduction: str = "mean",
    ):
        settings = {"pos_margin": pos_margin, "neg_margin": neg_margin, "power": power}
        check_settings("contrastive", settings, distance, reduction)
        super().__init__(
            generated_functions.contrastive_loss,
            pos_margin=pos_margin,
            neg_margin=neg_margin,
            distance=distance,
            power=power,
            reduction=reduction,
        )


class SNCALoss(PairLoss):
    """Scalable neighbourhood component analysis.

        log Σ_{P∪N} exp(s/τ) − log Σ_P exp(s/τ)

    See :func:`fastpair.functional.snca_loss` for the settings.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        distance: str = "cosine",
        reduction: str = "mean",
    ):
        settings = {"temperature": temperature}
        check_settings("snca", settings, distance, reduction)
        super().__init__(
            generated_functions.snca_loss,
            temperature=temperature,
            distance=distance,
            reduction=reduction,
        )


class NCALoss(PairLoss):
    """Neighbourhood components analysis.

        log Σ_{P∪N} exp(σs) − log Σ_P exp(σs), s = −d²

    See :func:`fastpair.functional.nca_loss` for the settings.
    """

    def __init__(
        self,
        softmax_scale: float = 1.0,
        distance: str = "unit_sqeuclidean",
        reduction: str = "mean",
    ):
        settings = {"softmax_scale": softmax_scale}
        check_settings("nca", settings, distance, reduction)
        super().__init__(
            generated_functions.nca_loss,
            softmax_scale=softmax_scale,
            distance=distance,
            reduction=reduction,
        )


class SupConLoss(PairLoss):
    """Supervised contrastive loss.

        log Σ_{P∪N} exp(s/τ) − mean_P s/τ

    See :func:`fastpair.functional.supcon_loss` for the settings.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        distance: str = "cosine",
        reduction: str = "mean",
    ):
        settings = {"temperature": temperature}
        check_settings("supcon", settings, distance, reduction)
        super().__init__(
            generated_functions.supcon_loss,
            temperature=temperature,
            distance=distance,
            reduction=reduction,
        )


class DCLLoss(PairLoss):
    """Decoupled contrastive loss, whose denominator has no positives.

        log Σ_N exp(s/τ) − mean_P s/τ

    See :func:`fastpair.functional.dcl_loss` for the settings.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        distance: str = "cosine",
        reduction: str = "mean",
    ):
        settings = {"temperature": temperature}
        check_settings("dcl", settings, distance, reduction)
        super().__init__(
            generated_functions.dcl_loss,
            temperature=temperature,
            distance=distance,
            reduction=reduction,
        )


class SINCERELoss(PairLoss):
    """Supervised InfoNCE revisited, each positive against the anchor's negatives.

        mean_P log(1 + Σ_N exp((s_N − s_P)/τ))

    See :func:`fastpair.functional.sincere_loss` for the settings.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        distance: str = "cosine",
        reduction: str = "mean",
    ):
        settings = {"temperature": temperature}
        check_settings("sincere", settings, distance, reduction)
        super().__init__(
            generated_functions.sincere_loss,
            temperature=temperature,
            distance=distance,
            reduction=reduction,
        )


class NTXentLoss(PairLoss):
    """Normalised temperature-scaled cross-entropy, each positive against the anchor's negatives.

        Σ_P log(1 + Σ_N exp((s_N − s_P)/τ))

    See :func:`fastpair.functional.ntxent_loss` for the settings.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        distance: str = "cosine",
        reduction: str = "mean",
    ):
        settings = {"temperature": temperature}
        check_settings("ntxent", settings, distance, reduction)
        super().__init__(
            generated_functions.ntxent_loss,
            temperature=temperature,
            distance=distance,
            reduction=reduction,
        )


class MultiSimilarityLoss(PairLoss):
    """Multi-similarity loss.

        log(1 + Σ_P exp(−α(s − λ)))/α + log(1 + Σ_N exp(β(s − λ)))/β

    See :func:`fastpair.functional.multi_similarity_loss` for the settings.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        distance: str = "cosine",
        reduction: str = "mean",
    ):
        settings = {"alpha": alpha, "beta": beta, "base": base}
        check_settings("multi_similarity", settings, distance, reduction)
        super().__init__(
            generated_functions.multi_similarity_loss,
            alpha=alpha,
            beta=beta,
            base=base,
            distance=distance,
            reduction=reduction,
        )


class CircleLoss(PairLoss):
    """Circle loss with pairwise labels.

        log(1 + Σ_P exp(−γ[1+m−s]₊(s−1+m)) · Σ_N exp(γ[s+m]₊(s−m)))

    See :func:`fastpair.functional.circle_loss` for the settings.
    """

    def __init__(
        self,
        m: float = 0.4,
        gamma: float = 80.0,
        distance: str = "cosine",
        reduction: str = "mean",
    ):
        settings = {"m": m, "gamma": gamma}
        check_settings("circle", settings, distance, reduction)
        super().__init__(
            generated_functions.circle_loss,
            m=m,
            gamma=gamma,
            distance=distance,
            reduction=reduction,
        )


class GeneralizedLiftedStructureLoss(PairLoss):
    """Lifted structure loss over all positives and negatives of an anchor.

        [log Σ_P exp(d − m₊) + log Σ_N exp(m₋ − d)]₊

    See :func:`fastpair.functional.generalized_lifted_structure_loss` for the settings.
    """

    def __init__(
        self,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        distance: str = "unit_euclidean",
        reduction: str = "mean",
    ):
        settings = {"neg_margin": neg_margin, "pos_margin": pos_margin}
        check_settings("generalized_lifted_structure", settings, distance, reduction)
        super().__init__(
            generated_functions.generalized_lifted_structure_loss,
            neg_margin=neg_margin,
            pos_margin=pos_margin,
            distance=distance,
            reduction=reduction,
        )
