"""Prints formulas as functions of the whole matrix of closenesses, for :mod:`fastpair.backends.dense`."""

from __future__ import annotations

from .expressions import (
    Expr,
    as_expr,
    guarded,
    may_be_infinite,
    share,
    subexpressions,
    substitute,
    text,
    variable,
    variables,
)
from .formula import LOG_SUM_EXP, Kind, N, P, PairFormula, both_lse

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


def leaves_out(formula: PairFormula) -> bool:
    """Whether numbers of rows may leave pairs out, whose terms are then minus infinity."""
    return bool(formula.scalars("anchor") or formula.scalars("ref"))


def loss(formula: PairFormula) -> tuple[str, str]:
    """Name and source of a function of the closenesses (n, m), the masks of positives and of negatives, the parameters,
    and the numbers of anchors (n,) and of references (m,), or (n, m), that the formula reads. For each part of the
    loss's own mean it returns the losses of the anchors and how much they count, both (n,)."""
    # Here a log-sum-exp is one number; so is the one over both kinds where their terms are the same.
    whole = {lse.rest: as_expr(0) for lse in (P.lse, N.lse, both_lse)}
    terms = formula.positive, formula.negative
    if infinite := any(map(may_be_infinite, terms)):
        terms = tuple(guarded(of, variable(MASKS[kind.name])) for kind, of in zip((P, N), terms))
    parts = formula.written if formula.positive == formula.negative and not infinite else formula.parts
    parts, counts = ([substitute(of, whole) for of in all] for all in (parts, formula.counts))
    parts = [guarded(of) if may_be_infinite(of) else of for of in parts]
    symbols = statistics(P) | statistics(N) | {both_lse.highest: "log_sum_exp(u, positive | negative)"}
    read = {x for of in (*parts, *counts) for x in subexpressions(of)}
    names = {symbol.args[0]: symbol.args[0].replace(".", "_").replace("highest", "lse") for symbol in symbols}
    scalars = {f"{of}.{x}": f"{of}_{x}" for of in ("anchor", "ref") for x in formula.scalars(of)}
    of_pair = {x: f"{name}[:, None]" if x.startswith("anchor.") else name for x, name in scalars.items()}
    names |= scalars
    calls = {op: f"torch.{op}({{}})" for op in ("exp", "log", "sqrt", "absolute", "tanh")}
    calls |= {"constant": "constant({})", "maximum": "maximum_of({}, {})"}
    counted = " & ".join(f"{MASKS[kind.name]}.any(1)" for kind in formula.needs)
    shared, values = share([*parts, *counts], "x")
    values = [text(of, names, calls) for of in values]
    if counted:
        # Where an anchor counts as one, the mask is its count.
        values = ["counted" if of == "1" else f"torch.where(counted, {of}, 0)" for of in values]
    # What reads no statistic and no number of an anchor is one number.
    alike = [not any("." in x for x in variables(of)) for of in (*parts, *counts)]
    values = [f"of_each({of}, s)" if same and of != "1" else of for of, same in zip(values, alike)]
    values, counts = values[: len(parts)], values[len(parts) :]
    losses = ["losses", "neg_losses"][: len(parts)]
    counted_parts = [
        f"({of}, {f'torch.ones_like({of})' if count == '1' else count})" for of, count in zip(losses, counts)
    ]
    arguments = ["s", "positive", "negative", *formula.parameters, *scalars.values()]
    lines = [f"def {formula.name}({', '.join(arguments)}):"]
    made = list(zip("vu", reversed(terms)))
    # Where positives read their anchor's negatives, these come first.
    for together in [[v_or_u] for v_or_u in made] if formula.reads_negatives_lse else [made]:
        of_terms, rest = share([of for _, of in together], "t")
        named = [*of_terms, *((name, of) for (name, _), of in zip(together, rest))]
        lines += [f"    {name} = {text(of, of_pair, calls)}" for name, of in named]
        for kind, (name, _) in ((k, term) for k, term in zip((N, P), made) if term in together):
            # Where all terms are minus infinity there are no pairs.
            if formula.pool(kind) == LOG_SUM_EXP and leaves_out(formula):
                mask = MASKS[kind.name]
                lines.append(f"    {mask} = {mask} & ({mask} & ({name} != -torch.inf)).any(1, keepdim=True)")
        if formula.reads_negatives_lse and together == made[:1]:
            lines.append("    negatives_lse = log_sum_exp(v, negative)[:, None]")
    if counted:
        lines.append(f"    counted = {counted}")
    for symbol, of in symbols.items():
        if symbol in read:
            lines.append(f"    {names[symbol.args[0]]} = " + (f"torch.where(counted, {of}, 0)" if counted else of))
    lines += [f"    {name} = {text(of, names, calls)}" for name, of in shared]
    lines += [f"    {name} = {of}" for name, of in zip(losses, values)]
    lines.append(f"    return {', '.join(counted_parts)},")
    return formula.name, "\n".join(lines) + "\n"
