"""Prints formulas as functions of the whole matrix of closenesses, for :mod:`fastpair.backends.dense`."""

from __future__ import annotations

from .expressions import Expr, as_expr, share, subexpressions, substitute, text
from .formula import Kind, N, P, PairFormula, both_lse

# The names of each kind's mask and terms in the printed functions.
MASKS, TERMS = {"pos": "positive", "neg": "negative"}, {"pos": "u", "neg": "v"}


def statistics(kind: Kind) -> dict[Expr, str]:
    """How each statistic is computed from the terms and the mask."""
    terms, mask = TERMS[kind.name], MASKS[kind.name]
    return {
        kind.pairs: f"{mask}.sum(1)",
        kind.sum: f"total({terms}, {mask})",
        kind.mean: f"mean({terms}, {mask})",
        kind.nonzero: f"count_nonzero({terms}, {mask})",
        kind.max: f"maximum({terms}, {mask})",
        kind.lse.highest: f"log_sum_exp({terms}, {mask})",
    }


def loss(formula: PairFormula) -> tuple[str, str]:
    """Name and source of a function of the closenesses (n, m), the masks of positives and of negatives, and the
    parameters. For each part of the loss's own mean it returns the losses of the anchors and how much they count, both
    (n,)."""
    # Here a log-sum-exp is one number; so is the one over both kinds where their terms are the same.
    whole = {lse.rest: as_expr(0) for lse in (P.lse, N.lse, both_lse)}
    parts = formula.written if formula.positive == formula.negative else formula.parts
    parts, counts = ([substitute(of, whole) for of in all] for all in (parts, formula.counts))
    symbols = statistics(P) | statistics(N) | {both_lse.highest: "log_sum_exp(u, positive | negative)"}
    read = {x for of in (*parts, *counts) for x in subexpressions(of)}
    names = {symbol.args[0]: symbol.args[0].replace(".", "_").replace("highest", "lse") for symbol in symbols}
    calls = {
        "constant": "{}.detach()",
        **{op: f"torch.{op}({{}})" for op in ("exp", "log", "sqrt", "absolute", "tanh")},
    }
    calls["maximum"] = "maximum_of({}, {})"
    counted = " & ".join(f"{MASKS[kind.name]}.any(1)" for kind in formula.needs)
    shared, values = share([*parts, *counts], "x")
    values = [text(of, names, calls) for of in values]
    if counted:
        # Where an anchor counts as one, the mask is its count.
        values = ["counted" if of == "1" else f"torch.where(counted, {of}, 0)" for of in values]
    values, counts = values[: len(parts)], values[len(parts) :]
    losses = ["losses", "neg_losses"][: len(parts)]
    counted_parts = [
        f"({of}, {f'torch.ones_like({of})' if count == '1' else count})" for of, count in zip(losses, counts)
    ]
    lines = [f"def {formula.name}(s, positive, negative{''.join(f', {x}' for x in formula.parameters)}):"]
    of_both, (positive, negative) = share([formula.positive, formula.negative], "t")
    lines += [f"    {name} = {text(of, calls=calls)}" for name, of in of_both]
    lines.append(f"    v = {text(negative, calls=calls)}")
    if formula.reads_negatives_lse:
        lines.append("    negatives_lse = log_sum_exp(v, negative)[:, None]")
    lines.append(f"    u = {text(positive, calls=calls)}")
    if counted:
        lines.append(f"    counted = {counted}")
    for symbol, of in symbols.items():
        if symbol in read:
            lines.append(f"    {names[symbol.args[0]]} = " + (f"torch.where(counted, {of}, 0)" if counted else of))
    lines += [f"    {name} = {text(of, names, calls)}" for name, of in shared]
    lines += [f"    {name} = {of}" for name, of in zip(losses, values)]
    lines.append(f"    return {', '.join(counted_parts)},")
    return formula.name, "\n".join(lines) + "\n"
