"""The definitions of the pair losses, from which the kernels' code, the dense evaluation, the functions and modules and
the tables of the documentation are printed.

A formula (``FORMULAS``) is what is computed; a loss (``PAIR_LOSSES``) gives it the name, the settings and the defaults
that it has in the literature. ``DEFINITIONS`` are the losses that one formula, or one for each choice, computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .expressions import as_expr, constant, nonzero, relu, softplus, square, step, variable
from .formula import N, P, PairFormula, bias, both_lse, negatives_lse, s, scale

alpha, beta, base, gamma, m, margin = map(variable, ("alpha", "beta", "base", "gamma", "m", "margin"))
hardness = variable("hardness")
pos_margin, neg_margin = map(variable, ("pos_margin", "neg_margin"))

pull, push = relu(pos_margin - s), relu(s - neg_margin)
gap = P.max + N.max + margin

# The closeness of an anchor's closest positive, minus infinity without any, as its loss.
BEST_POSITIVE = "best_positive"

FORMULAS = {
    formula.name: formula
    for formula in (
        PairFormula("contrastive", pull, push, anchor=(P.sum, N.sum), count=(P.nonzero, N.nonzero)),
        PairFormula("squared_contrastive", square(pull), square(push), anchor=P.sum + N.sum),
        PairFormula("snca", scale * s, scale * s, anchor=softplus(N.lse - P.lse), needs=(P,)),
        PairFormula("supcon", scale * s, scale * s, anchor=both_lse - P.mean, needs=(P,)),
        PairFormula("dcl", scale * s, scale * s, anchor=N.lse - P.mean, needs=(P, N)),
        PairFormula("sincere", softplus(negatives_lse - scale * s), scale * s, anchor=P.mean, needs=(P,)),
        PairFormula("ntxent", softplus(negatives_lse - scale * s), scale * s, anchor=P.sum, count=P.pairs),
        PairFormula("sigmoid", softplus(-(scale * s + bias)), softplus(scale * s + bias), anchor=P.sum + N.sum),
        PairFormula(
            "multi_similarity",
            -alpha * (s - base),
            beta * (s - base),
            anchor=softplus(P.lse) / alpha + softplus(N.lse) / beta,
        ),
        PairFormula(
            "proxy_anchor",
            -alpha * (s - margin),
            alpha * (s + margin),
            anchor=(softplus(P.lse), softplus(N.lse)),
            count=(step(P.pairs), 1),
        ),
        PairFormula(
            "circle",
            -gamma * constant(relu(1 + m - s)) * (s - 1 + m),
            gamma * constant(relu(s + m)) * (s - m),
            anchor=softplus(P.lse + N.lse),
            needs=(P, N),
        ),
        PairFormula("lifted_structure", pos_margin - s, s - neg_margin, anchor=relu(P.lse + N.lse), needs=(P, N)),
        # Of the negatives alone: what is positive is left out.
        PairFormula("row_logsumexp", as_expr(0), scale * s + hardness * constant(s), anchor=as_expr(N.lse)),
        PairFormula(BEST_POSITIVE, s, as_expr(0), anchor=P.max),
        PairFormula("hard_triplet", -s, s, anchor=relu(gap), count=nonzero(relu(gap)), needs=(P, N)),
        PairFormula("smooth_hard_triplet", -s, s, anchor=softplus(gap), count=nonzero(softplus(gap)), needs=(P, N)),
    )
}

# Those that users added while the package is in use.
ADDED: dict[str, PairFormula] = {}


# The losses over all triplets of an anchor, the semi-hard ones, or those that FaceNet selects, which are not sums over
# pairs and have kernels of their own: whether they are smooth, and which triplets count.
TRIPLETS = {
    "triplet": (False, "all"),
    "smooth_triplet": (True, "all"),
    "semihard_triplet": (False, "semihard"),
    "smooth_semihard_triplet": (True, "semihard"),
    "facenet_triplet": (False, "facenet"),
    "smooth_facenet_triplet": (True, "facenet"),
}


@dataclass(frozen=True)
class Setting:
    """An argument that a loss takes.

    Attributes:
        name, default: of the argument, which has the type of the default.
        what: what it is, and what it may be, for the documentation.
        check: the rule that it has to keep, of :mod:`fastpair.losses.options`, or "margin": not NaN and, for a
            distance, not negative.
        gives: the parameter of the formula that it sets. Default: the one of the same name; "": none.
        converted: the parameter as a function of the setting.
        on_scores: whether it is a value of the score: for a distance the parameter is then its negative.
    """

    name: str
    default: float | bool | str
    what: str
    check: str = "finite"
    gives: str | None = None
    converted: Callable[[float], float] = lambda value: value
    on_scores: bool = False

    @property
    def parameter(self) -> str:
        return self.name if self.gives is None else self.gives

    def value(self, setting: float, similarity: bool) -> float:
        """The value of the parameter."""
        value = self.converted(setting)
        return -value if self.on_scores and not similarity else value


@dataclass(frozen=True)
class Choice:
    """A setting that picks the formula. ``before_distance``: its place among the arguments."""

    name: str
    default: int | str
    what: str
    formulas: Mapping[int | str, str]
    before_distance: bool = False


@dataclass(frozen=True)
class Definition:
    """A loss as users see it.

    Attributes:
        name: that of the function, without "_loss".
        module: the name of its class.
        title: what it is, in one line.
        text: the loss as the literature writes it.
        source: the paper and the equation.
        formula: what computes it, or the choice that picks one.
        settings: in the order in which the module takes them.
        mean: what reduction="mean" is.
        notes: anything else that its documentation says.
    """

    name: str
    module: str
    title: str
    text: str
    source: str
    formula: str | Choice
    settings: tuple[Setting, ...]
    mean: str
    notes: str = ""


METRIC, SIMILARITY = "a metric of :func:`fastpair.functional.pairwise_distance`", '"cosine" or "dot"'
OBJECTS = "or the object of pytorch-metric-learning that is the same"
# What the reductions of a pair loss are, given the mean.
REDUCTION = (
    '"mean": {}; "sum": the sum of the anchors\' losses; "none": the losses, shape (n,); "totals": what the mean is '
    "made of, which adds up over parts of a batch: (S, c, S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part "
    "being 0 where its c is. The last two belong to the negatives where these have a mean of their own, else they are "
    "0; counts have no gradient."
)


@dataclass(frozen=True)
class PairDefinition(Definition):
    """A loss over the pairs that labels make. ``text`` is the loss of an anchor, P its positives, N its negatives, s
    the closeness; ``formula`` a key of ``FORMULAS`` or of ``TRIPLETS``.

    Attributes:
        distance: the default.
        similarities: whether it is defined for similarities alone.
        repeats: what it is for a pair that is listed twice.
        option: its name on command lines. Default: ``name``.
        learnable: the setting that may be a tensor, with a gradient, if any.
    """

    distance: str = "cosine"
    similarities: bool = False
    repeats: str = "A pair that is listed twice counts once, but twice in contrastive_loss and ntxent_loss."
    option: str = ""

    def __post_init__(self):
        # What a call needs is computed here: torch.compile cannot trace the first access to a cached property.
        by_parameter = {x.parameter: x for x in self.settings if x.parameter}
        order, *others = (["margin"] if name in TRIPLETS else FORMULAS[name].parameters for name in self.formulas)
        if set(order) != set(by_parameter) or any(parameters != order for parameters in others):
            raise ValueError(f"{self.name}: the settings must give {order}, and {others}, not {list(by_parameter)}")
        object.__setattr__(self, "_by_parameter", tuple(by_parameter[name] for name in order))
        is_scaled = order == ["scale"] and all(FORMULAS[name].is_scaled for name in self.formulas)
        object.__setattr__(self, "learnable", by_parameter["scale"] if is_scaled else None)
        object.__setattr__(self, "option", self.option or self.name)

    @property
    def choice(self) -> Choice | None:
        return self.formula if isinstance(self.formula, Choice) else None

    @property
    def formulas(self) -> list[str]:
        """The names of the formulas that settings may pick, the default first."""
        return list(self.choice.formulas.values()) if self.choice else [self.formula]

    @property
    def arguments(self) -> tuple[Setting | Choice, ...]:
        """All settings, in the order in which functions and modules take them."""
        what, check = (SIMILARITY, "similarity") if self.similarities else (METRIC, "distance")
        others = [Setting("distance", self.distance, f"the score of a pair, {what}, {OBJECTS}.", check)]
        if self.choice:
            others.insert(0 if self.choice.before_distance else 1, self.choice)
        return (*self.settings, *others, Setting("reduction", "mean", REDUCTION.format(self.mean), "pair_reduction"))

    def picked(self, settings: Mapping[str, float | bool | str]) -> str:
        """The name of the formula that the settings pick; with a setting ``smooth_loss`` that of its smooth form."""
        if self.choice is None:
            return self.formula
        picked = next(name for value, name in self.choice.formulas.items() if value == settings[self.choice.name])
        return f"smooth_{picked}" if settings.get("smooth_loss") else picked

    def params(self, settings: Mapping[str, float | bool | str], similarity: bool) -> list[float]:
        """The parameters of the formula, in the formula's order."""
        return [float(x.value(settings[x.name], similarity)) for x in self._by_parameter]


def temperature(default: float, what: str = "τ, positive.") -> Setting:
    return Setting("temperature", default, what, "positive", gives="scale", converted=lambda value: 1 / value)


WITH_POSITIVES = "over the anchors that have positives"
WITH_BOTH = "over the anchors that have positives and negatives; the others have loss 0"
MARGINS = "in units of the distance, for which it is not negative"

DEFINITIONS = {
    loss.name: loss
    for loss in (
        PairDefinition(
            "contrastive",
            "ContrastiveLoss",
            "Contrastive loss over all pairs",
            "Σ_P [d − m₊]₊ᵖ + Σ_N [m₋ − d]₊ᵖ",
            "Hadsell et al., CVPR 2006; Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1",
            Choice("power", 1, "p, 1 or 2.", {1: "contrastive", 2: "squared_contrastive"}),
            (
                Setting("pos_margin", 0.0, f"m₊, {MARGINS}.", "margin", on_scores=True),
                Setting("neg_margin", 1.0, f"m₋, {MARGINS}.", "margin", on_scores=True),
            ),
            "for power 1 the average of the positive terms that are not zero plus that of the negative terms that are "
            "not zero (the convention of pytorch-metric-learning), for power 2 over all anchors (with pos_margin 0 and "
            '"euclidean" the form of the paper)',
            distance="unit_euclidean",
            notes="For a similarity s the signs are flipped, [m₊ − s]₊ and [s − m₋]₊, so that pos_margin 1 and "
            "neg_margin 0 are the usual choice.",
        ),
        PairDefinition(
            "snca",
            "SNCALoss",
            "Scalable neighbourhood component analysis",
            "log Σ_{P∪N} exp(s/τ) − log Σ_P exp(s/τ)",
            "Wu et al., ECCV 2018 (arXiv 1808.04699); Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1",
            "snca",
            (temperature(0.1, "τ, the paper's σ, positive."),),
            WITH_POSITIVES,
        ),
        PairDefinition(
            "nca",
            "NCALoss",
            "Neighbourhood components analysis",
            "log Σ_{P∪N} exp(σs) − log Σ_P exp(σs), s = −d²",
            "Goldberger et al., NeurIPS 2004, in the form of Boudiaf et al., ECCV 2020 (arXiv 2003.08983)",
            "snca",
            (Setting("softmax_scale", 1.0, "σ, positive.", "positive", gives="scale"),),
            WITH_POSITIVES,
            distance="unit_sqeuclidean",
            notes="Computed from logarithms of sums: pytorch-metric-learning, whose probabilities underflow, leaves "
            "far anchors out and is NaN where all are far.",
        ),
        PairDefinition(
            "supcon",
            "SupConLoss",
            "Supervised contrastive loss",
            "log Σ_{P∪N} exp(s/τ) − mean_P s/τ",
            "Khosla et al., NeurIPS 2020 (arXiv 2004.11362), eq. 2",
            "supcon",
            (temperature(0.1),),
            f"{WITH_POSITIVES}, also where the batch has no negatives (for pytorch-metric-learning such a batch has "
            "loss 0)",
        ),
        PairDefinition(
            "dcl",
            "DCLLoss",
            "Decoupled contrastive loss, whose denominator has no positives",
            "log Σ_N exp(s/τ) − mean_P s/τ",
            "Yeh et al., ECCV 2022 (arXiv 2110.06848); with several positives their mean",
            "dcl",
            (temperature(0.1),),
            WITH_BOTH,
        ),
        PairDefinition(
            "sincere",
            "SINCERELoss",
            "Supervised InfoNCE revisited, each positive against the anchor's negatives",
            "mean_P log(1 + Σ_N exp((s_N − s_P)/τ))",
            "Feeney and Hughes (arXiv 2309.14277)",
            "sincere",
            (temperature(0.1),),
            WITH_POSITIVES,
            notes="NTXentLoss is the sum over the positives in place of their mean.",
        ),
        PairDefinition(
            "ntxent",
            "NTXentLoss",
            "Normalised temperature-scaled cross-entropy, each positive against the anchor's negatives",
            "Σ_P log(1 + Σ_N exp((s_N − s_P)/τ))",
            "Sohn, NeurIPS 2016; Chen et al., ICML 2020 (arXiv 2002.05709); with several positives each "
            "against the negatives, as in SINCERE",
            "ntxent",
            (temperature(0.07),),
            "over the positive pairs",
            notes="Computed from logarithms of sums: pytorch-metric-learning's probabilities underflow for small "
            "temperatures, and its loss stops at 87.",
        ),
        PairDefinition(
            "multi_similarity",
            "MultiSimilarityLoss",
            "Multi-similarity loss",
            "log(1 + Σ_P exp(−α(s − λ)))/α + log(1 + Σ_N exp(β(s − λ)))/β",
            "Wang et al., CVPR 2019 (arXiv 1904.06627), eq. 16; its pair mining is left to the user",
            "multi_similarity",
            (
                Setting("alpha", 2.0, "α, the weight of the positives, positive.", "positive"),
                Setting("beta", 50.0, "β, the weight of the negatives, positive.", "positive"),
                Setting("base", 0.5, "λ, the similarity, or distance, at which a pair is neither.", on_scores=True),
            ),
            "over all anchors, those without pairs included",
        ),
        PairDefinition(
            "circle",
            "CircleLoss",
            "Circle loss with pairwise labels",
            "log(1 + Σ_P exp(−γ[1+m−s]₊(s−1+m)) · Σ_N exp(γ[s+m]₊(s−m)))",
            "Sun et al., CVPR 2020 (arXiv 2002.10857), eq. 6 and 8",
            "circle",
            (
                Setting("m", 0.4, "the margin."),
                Setting("gamma", 80.0, "γ, the scale, positive.", "positive"),
            ),
            WITH_BOTH,
            similarities=True,
            notes="The weights [·]₊ are constants of the gradient.",
        ),
        PairDefinition(
            "generalized_lifted_structure",
            "GeneralizedLiftedStructureLoss",
            "Lifted structure loss over all positives and negatives of an anchor",
            "[log Σ_P exp(d − m₊) + log Σ_N exp(m₋ − d)]₊",
            "Hermans et al., 2017 (arXiv 1703.07737), eq. 8, after Song et al., CVPR 2016",
            "lifted_structure",
            (
                Setting("neg_margin", 1.0, "m₋, in units of the distance.", on_scores=True),
                Setting("pos_margin", 0.0, "m₊, in units of the distance.", on_scores=True),
            ),
            f"{WITH_BOTH} (pytorch-metric-learning drops the missing sum from the formula instead)",
            distance="unit_euclidean",
            notes="For a similarity the signs are flipped.",
            option="lifted_structure",
        ),
    )
}

TRIPLET_MARGIN = PairDefinition(
    "triplet_margin",
    "TripletMarginLoss",
    "Triplet margin loss",
    "Σ over triplets of an anchor, a positive and a negative, of [d_P − d_N + m]₊",
    'Schroff et al., CVPR 2015 (arXiv 1503.03832), eq. 2 ("all", "semihard") and section 3.2 ("facenet"); Hermans et '
    'al., 2017 (arXiv 1703.07737), eq. 5 ("hard")',
    Choice(
        "triplets_per_anchor",
        "all",
        'which triplets count. "all": every one, summed in O(n log n) time per anchor. "semihard": those with '
        'd_P < d_N < d_P + m. "facenet": one for each positive, with the nearest negative that is farther or, where '
        'there is none, with the farthest negative. "hard": one per anchor, its farthest positive with its nearest '
        "negative. Of equally far ones any is taken, for the gradient. Ignored where ``indices_tuple`` lists them.",
        {
            "all": "triplet",
            "semihard": "semihard_triplet",
            "facenet": "facenet_triplet",
            "hard": "hard_triplet",
        },
        before_distance=True,
    ),
    (
        Setting("margin", 0.05, "m, in units of the distance."),
        Setting(
            "swap",
            False,
            "use the smaller of d_N and the distance between positive and negative in place of d_N. Only for triplets "
            "that ``indices_tuple`` lists.",
            "anything",
            gives="",
        ),
        Setting("smooth_loss", False, "log(1 + exp(x)) in place of [x]₊.", "anything", gives=""),
    ),
    'over the triplets whose loss is not zero, or with "facenet" over all of them, one for each positive of the '
    "anchors that have negatives (the mean of TensorFlow Addons and sentence-transformers)",
    distance="unit_euclidean",
    notes="For a similarity d is −s.",
    repeats="A triplet that is listed twice counts twice.",
)
PAIR_LOSSES = {**DEFINITIONS, TRIPLET_MARGIN.name: TRIPLET_MARGIN}
