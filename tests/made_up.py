"""Formulas that no loss has, made up of what a definition may read."""

from fastpair.formulas.expressions import relu, softplus, square, step, variable
from fastpair.formulas.formula import N, P, PairFormula, s

b, c, e, f, g = map(variable, "bcefg")
# The last two are sums, which kernels compute in one sweep.
MADE_UP = {
    # Pools of two kinds, more parameters than any loss has, numbers that are no integers.
    "own": PairFormula(
        "own",
        b * relu(c - s) + 0.1 * s,
        e * s + 0.25 * f * square(s),
        anchor=0.5 * P.sum + softplus(N.lse - g),
        needs=(P,),
    ),
    "means": PairFormula("means", softplus(-s), square(relu(s)), anchor=P.mean + N.mean, needs=(P, N)),
    "half": PairFormula("half", s / 2, s, anchor=(P.sum + N.sum) / 2),
    "third": PairFormula("third", 2 * s / 3 + 1, -s, anchor=0.1 * N.lse + (1 + 2) / P.pairs, needs=(P, N)),
    "counted": PairFormula("counted", relu(-s), relu(s), anchor=P.sum + N.sum, count=P.pairs),
    "nonzero": PairFormula("nonzero", relu(-s), s, anchor=P.sum / (1 + P.nonzero) + softplus(N.lse)),
    "parts": PairFormula(
        "parts", c * s, b * s, anchor=(softplus(P.lse), N.lse / b), count=(1, step(N.pairs)), needs=(N,)
    ),
    "steps": PairFormula("steps", step(s - c) * s, s * s, anchor=P.sum + N.sum),
    "terms": PairFormula("terms", relu(s), relu(-s), anchor=(P.sum, N.sum), count=(P.nonzero, N.nonzero)),
}
