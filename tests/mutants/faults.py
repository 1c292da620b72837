"""The faults: mistakes that a change could make, each another idea. ``text`` occurs once in ``file``; ``suite`` is the
part of the suite that has to catch it:

    cpu          tests, but for those below
    emulated     tests/gpu, the CUDA kernels in the emulator
    interpreted  tests/gpu with TRITON_INTERPRET=1, the Triton kernels in Triton's interpreter
    examples     the tests of examples/
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    name: str  # says what is wrong
    suite: str
    file: str
    text: str
    replacement: str

    @property
    def is_built(self) -> bool:
        """Whether the file is in the extension for the CPU. Tests build the emulator themselves."""
        return self.file.startswith("csrc/") and not self.file.startswith("csrc/cuda/")


def of(file: str, suite: str, *faults: tuple[str, str, str]) -> list[Fault]:
    return [Fault(name, suite, file, text, replacement) for name, text, replacement in faults]


TEAMS = of(
    "csrc/cpu/parallel.h",
    "cpu",
    ("a loop does not wait for the ranges of others", "< threads_;) spin.wait();", "< 1;) spin.wait();"),
    ("what fails in a thread is forgotten", "if (error_) std::rethrow_exception(std::exchange(error_, nullptr));", ""),
    ("threads keep their own treatment of subnormal numbers", "std::fesetenv(&arithmetic_);", ""),
    (
        "the last of the ranges is a row short",
        "end = (part + 1) * n / parts;",
        "end = (part + 1) * (n - 1) / parts;",
    ),
    ("a loop inside of a loop takes its ranges from it", "const As in_loop(&alone);", ""),
)

SWEEPS = [
    *of(
        "csrc/cpu/pair_sweep.h",
        "cpu",
        (
            "the place of a maximum is counted from its tile's first column",
            "a = value, b = double(first) + count;",
            "a = value, b = count;",
        ),
        (
            "exponentials are not rescaled when a later tile has a larger maximum",
            "b = b * std::exp(a - value) + count;",
            "b = b + count;",
        ),
        (
            "a tile on the diagonal gives its statistics to its columns as well",
            "two_sided_ || (symmetric_ && !diagonal) ? &of_col_anchors",
            "two_sided_ || symmetric_ ? &of_col_anchors",
        ),
        (
            "a tile on the diagonal counts twice in derivatives by parameters",
            "symmetric_ && !diagonal ? &of_cols : nullptr,",
            "symmetric_ ? &of_cols : nullptr,",
        ),
        (
            "the part of a tile below the diagonal is not mirrored",
            "if (has_diagonal) mirror(scores_at(J, col), cols, ld(J));",
            "",
        ),
        (
            "a close pair of a tile on the diagonal is taken out on one side alone",
            "pairs.push_back({p.col, p.row, T(0)});",
            "",
        ),
        (
            "column sums keep the slopes of close pairs",
            "if (std::exchange(col_done[c], true)) continue;",
            "continue;",
        ),
        (
            "squares below the diagonal are visited too",
            "int64_t left = symmetric_ ? top : 0; left < y_.n;",
            "int64_t left = 0; left < y_.n;",
        ),
        (
            "tiles are skipped where the first row has no positives",
            "rows_.relation.end[row + rows - 1] > col;",
            "rows_.relation.end[row] > col;",
        ),
        (
            "products of shorter prefixes are added again for slopes",
            "const T* fewer = pass.compute_scores && layer_ > 0 ?",
            "const T* fewer = layer_ > 0 ?",
        ),
        (
            "scores of several prefixes take the memory of one each",
            "return layers_ * (symmetric_ ? rows * (rows + MAX_BLOCK) / 2 : rows * cols) <= kept_scores();",
            "return (symmetric_ ? rows * (rows + MAX_BLOCK) / 2 : rows * cols) <= kept_scores();",
        ),
    ),
    *of(
        "csrc/cpu/simd/loops.h",
        "cpu",
        (
            "a self-pair of another label is a negative",
            "((k < first) | (k >= last)) & (k != self); };",
            "((k < first) | (k >= last)); };",
        ),
        (
            "a self-pair that is the first positive counts",
            "const bool among = self >= pos_begin && self < pos_end;",
            "const bool among = self > pos_begin && self < pos_end;",
        ),
        (
            "exponentials of columns are relative to the row's maximum",
            "exponential(either(pair, value - col_shift[j], none));",
            "exponential(either(pair, value - shift, none));",
        ),
        (
            "of equal maxima columns take the last",
            "const bool better = (value > col_best[j]) | (value != value);",
            "const bool better = (value >= col_best[j]) | (value != value);",
        ),
        (
            "the constant part of slopes is lost beside a log-sum-exp",
            "return multiply_add(of.factor[i], share, of.constant[i]);",
            "return of.factor[i] * share;",
        ),
        (
            "a distance of zero has the slope of its term",
            "return s == T(0) ? T(0) : value;",
            "return value;",
        ),
        (
            "what is no pair has a slope in tiles of both kinds",
            "value = either(kinds[k] != NO_PAIR, by_product<M>(value, s[k]), T(0));",
            "value = by_product<M>(value, s[k]);",
        ),
        (
            "the remainder of a row after whole vectors is not scaled",
            "for (int64_t j = 0; j < cols; ++j) s[j] = p[j] * factor * col_factors[j];",
            "for (int64_t j = 0; j < cols / 8 * 8; ++j) s[j] = p[j] * factor * col_factors[j];",
        ),
        (
            "the last gathered row is left out of a gradient",
            "for (; k < count; ++k) {\n    const T *a = rows + index[k] * d, of_a = slopes[k];",
            "for (; k < count - 1; ++k) {\n    const T *a = rows + index[k] * d, of_a = slopes[k];",
        ),
        (
            "labels beyond the first word of a set are not seen",
            "for (int64_t w = 0; w < words; ++w) {",
            "for (int64_t w = 0; w < 1; ++w) {",
        ),
        (
            "a negative as far as the positive is farther",
            "const bool chosen = x[j] > bound;",
            "const bool chosen = x[j] >= bound;",
        ),
    ),
    *of(
        "csrc/cpu/samples.h",
        "cpu",
        (
            "the gradient by unit rows keeps its length",
            "k.scaled_difference(scale, g, along, row, d, to);",
            "k.scaled_difference(T(1), g, along, row, d, to);",
        ),
        (
            "the derivative by a scale lacks the norms of distances",
            "if (!norms.empty()) along[r] -= double(slope_sums[r]) * norms[r];",
            "",
        ),
        (
            "distances of infinite rows are not computed again",
            "if (!near && !std::isnan(score)) continue;",
            "if (!near) continue;",
        ),
        (
            "the gradient of a zero row is not written",
            "std::fill(to, to + d, T(0));",
            "",
        ),
        (
            "the gradient beyond the longest prefix is not written",
            "std::fill(to + prefixes.back(), to + d, T(0));",
            "",
        ),
    ),
    *of(
        "csrc/cpu/relation.h",
        "cpu",
        (
            "a repeated id in the last column of a tile makes a pair",
            "for (; next != last && *next < col + cols; ++next)",
            "for (; next != last && *next < col + cols - 1; ++next)",
        ),
        (
            "a self-pair of another label is counted among the negatives",
            "columns_ - (end[i] - begin[i]) - (own >= 0 && !among_positives);",
            "columns_ - (end[i] - begin[i]);",
        ),
    ),
    *of(
        "csrc/cpu/rows.h",
        "cpu",
        (
            "strides of rows are ignored",
            "return t.scalar_type() == scalar_type<T> && t.is_contiguous() && aligned;",
            "return t.scalar_type() == scalar_type<T> && aligned;",
        ),
    ),
    *of(
        "csrc/cpu/gemm.cpp",
        "cpu",
        (
            "without BLAS a product replaces what it is added to",
            "if (!accumulate) return dispatched(",
            "return dispatched(",
        ),
    ),
]

LOSSES = [
    *of(
        "csrc/cpu/pair_loss.cpp",
        "cpu",
        (
            "weights are in the order of the labels",
            "weights.empty() ? 1 : weights[x.order[i]]; }",
            "weights.empty() ? 1 : weights[i]; }",
        ),
        (
            "the mean of negatives is divided by the count of positives",
            "loss_.separate_means ? divisor(totals_[3]) : counts[Positive];",
            "counts[Positive];",
        ),
        (
            "slopes of a sum are divided by the anchors, not by their weights",
            "divisor(batch_.total_weight(side->samples.n))",
            "divisor(side->samples.n)",
        ),
        (
            "every panel gets the weights of the first",
            "set_weights(rows_, 0, top, anchors_of(rows_, 0, top, end));",
            "set_weights(rows_, 0, top, anchors_of(rows_, 0, 0, end - top));",
        ),
        (
            "negatives take the incoming gradient of the positives' total",
            "row_grad[kind == Negative && separate_means ? 2 : 0]",
            "row_grad[0]",
        ),
        (
            "samples of many listed pairs lose their gradient as references",
            "add_to(results.by_embeddings, results.by_ref);",
            "",
        ),
    ),
    *of(
        "csrc/cpu/listed_sweep.h",
        "cpu",
        (
            "of a pair that is listed again one listing has a slope",
            "row.slopes[kinds_.pair(i, k) - first] += row.closeness[k];",
            "row.slopes[kinds_.pair(i, k) - first] = row.closeness[k];",
        ),
        (
            "maxima of an anchor's later listed pairs are looked for among the first",
            "kinds_.pair(i, tile.col + int64_t(place) - 1)",
            "kinds_.pair(i, int64_t(place) - 1)",
        ),
    ),
    *of(
        "csrc/cpu/listed_pairs.h",
        "cpu",
        (
            "gathered distances are in the sums of slopes too",
            "if (!apart || metric_ == Metric::Dot) sum += slope;",
            "sum += slope;",
        ),
    ),
    *of(
        "csrc/cpu/listed_pairs.cpp",
        "cpu",
        (
            "repeats of a pair are lost where lists are dense",
            "if (repeats && (twice || both)) return {};",
            "if (repeats && both) return {};",
        ),
    ),
    *of(
        "csrc/cpu/linear_cross_entropy.cpp",
        "cpu",
        (
            "class weights keep the gradient of the last block of rows",
            "x, d, begin > 0, grad_weight + first * d, d);",
            "x, d, false, grad_weight + first * d, d);",
        ),
        (
            "logits that are made again are products",
            "if (!kept) make_logits(row, begin + r, first, width);",
            "",
        ),
        (
            "label smoothing takes the last block of classes for a whole one",
            "const int64_t width = std::min(class_block, classes - b * class_block);",
            "const int64_t width = class_block;",
        ),
        (
            "the slope of a margin is left out",
            "(*own - scale * T(1 - label_smoothing)) * target_slope;",
            "*own - scale * T(1 - label_smoothing);",
        ),
        (
            "ignored rows count in the mean of the gradient",
            "weights_of_rows<T>(row_grad, reduction, counted, rows),",
            "weights_of_rows<T>(row_grad, reduction, counted, n),",
        ),
        (
            "the part of a gradient along its row is not that of the unit row",
            "along = kernels<T>().dot(row, g, d) * inverse * inverse;",
            "along = kernels<T>().dot(row, g, d) * inverse;",
        ),
        (
            "the part of the last thread is lost",
            "for (int64_t t = 1; t < threads; ++t) k.add_to(",
            "for (int64_t t = 1; t < threads - 1; ++t) k.add_to(",
        ),
    ),
    *of(
        "csrc/margins.h",
        "cpu",
        (
            "the angular margin turns back beyond 180 degrees",
            "if (c < -cos_m) {",
            "if (c < -1) {",
        ),
    ),
    *of(
        "csrc/cpu/triplets.cpp",
        "cpu",
        (
            "a negative as far as the threshold makes a triplet",
            "const T one = (!(d[j] < low) & (d[j] < high)) ? T(1) : T(0);",
            "const T one = (!(d[j] < low) & (d[j] <= high)) ? T(1) : T(0);",
        ),
        (
            "slopes of sorted positives are not put back",
            "slopes_.get()[negatives_ + sorted_[q].second] = T(triplets);",
            "slopes_.get()[negatives_ + q] = T(triplets);",
        ),
        (
            "every panel adds to the gradient of the first",
            "x.gradient + (top + row) * x.d);",
            "x.gradient + row * x.d);",
        ),
        (
            "the mirror image of a close pair keeps its slope",
            "if (symmetric && !twice) *at(p.col, p.row) = 0;",
            "",
        ),
        (
            "swapped pairs get the whole slope beside the anchor's share",
            "swapped_slopes_[triplet] = (1 - share) * slope;",
            "swapped_slopes_[triplet] = slope;",
        ),
    ),
    *of(
        "csrc/cpu/pairwise_distance.cpp",
        "cpu",
        (
            "references do not move with the origin",
            "other->load(*y_tensor, distance, center, grad_y);",
            "other->load(*y_tensor, distance, {}, grad_y);",
        ),
        (
            "rows compared with themselves get no gradient as columns",
            "if (grad_y || (grad_x && !y)) add_gradient(",
            "if (grad_y) add_gradient(",
        ),
    ),
]

CUDA = [
    *of(
        "csrc/cuda/pair_loss.cu",
        "emulated",
        (
            "of equal maxima each lane keeps its own",
            "other_place >= 0 && (place < 0 || other_place < place)",
            "other_place >= 0 && place < 0",
        ),
        (
            "terms that are not zero are counted by the first lane alone",
            "nonzeros = warp_sum(nonzeros), by_negatives_lse = warp_sum(by_negatives_lse);",
            "by_negatives_lse = warp_sum(by_negatives_lse);",
        ),
        (
            "no barrier before the anchors' statistics are read",
            "  grid_barrier();\n\n  Scales x_scales, y_scales;",
            "  Scales x_scales, y_scales;",
        ),
        (
            "no barrier between the slopes and their products",
            "    slopes(x_scales, y_scales);\n    grid_barrier();",
            "    slopes(x_scales, y_scales);",
        ),
        (
            "the matrix of pairs is read by the wrong stride as references",
            "pairs_stride_(s == 0 ? 1 : p.side[1].n)",
            "pairs_stride_(s == 0 ? 1 : p.side[0].n)",
        ),
        (
            "symmetric pairs count twice in the derivative by a scale",
            "const double part = (p.symmetric ? 0.5 : 1) / params",
            "const double part = 1 / params",
        ),
        (
            "weights are lost in the count of the negatives' mean",
            "a.neg_loss *= given, a.neg_count *= given;",
            "a.neg_loss *= given;",
        ),
    ),
    *of(
        "csrc/cuda/pairs.h",
        "emulated",
        (
            "no barrier after the rows are prepared",
            "if (p.element == Element::Float16) prepare_rows<__half>(p);\n  grid_barrier();",
            "if (p.element == Element::Float16) prepare_rows<__half>(p);",
        ),
        (
            "the distance to a zero row pulls along the other",
            "return (squared - dot_zero_row) / 2;",
            "return squared / 2;",
        ),
        (
            "the part of a cosine's gradient along its row keeps the norm",
            "sum - side.along[i] * inverse * (inverse * x)",
            "sum - side.along[i] * inverse * x",
        ),
    ),
    *of(
        "csrc/cuda/tile.h",
        "emulated",
        (
            "a chunk of one column is not copied",
            "if (k + CHUNK < a.depth) copy(",
            "if (k + CHUNK < a.depth - 1) copy(",
        ),
        (
            "a chunk has a column of the next row",
            "const bool inside = i < from.rows && first + k < from.depth;",
            "const bool inside = i < from.rows && first + k <= from.depth;",
        ),
        (
            "no barrier before partial sums are added up",
            "sums.store(buffers.values + warp * TILE * SUMS_PITCH);\n  __syncthreads();",
            "sums.store(buffers.values + warp * TILE * SUMS_PITCH);",
        ),
    ),
    *of(
        "csrc/cuda/device.h",
        "emulated",
        (
            "the next sum of a block begins while the last is read",
            "sum += room[warp];\n  __syncthreads();",
            "sum += room[warp];",
        ),
    ),
    *of(
        "csrc/cuda/softmax.cu",
        "emulated",
        (
            "label smoothing is not in the slopes",
            "float slope = exponential(logit(k) - highest) * normaliser - spread;",
            "float slope = exponential(logit(k) - highest) * normaliser;",
        ),
        (
            "ignored rows count in the mean on the GPU",
            "counted += p.labels[i] != p.ignore_index;",
            "counted += 1;",
        ),
    ),
    *of(
        "csrc/cuda/pairwise_distance.cu",
        "emulated",
        (
            "a matrix of one side has the gradient of its rows alone",
            "return p.symmetric ? slope + incoming(j, i) : slope;",
            "return slope;",
        ),
    ),
    *of(
        "csrc/cuda/operators.cpp",
        "emulated",
        (
            "columns that lie apart are read as neighbours",
            "const bool dense = t.size(1) <= 1 || t.stride(1) == 1;",
            "const bool dense = true;",
        ),
    ),
]

TRITON = [
    *of(
        "fastpair/backends/triton/pair_kernels.py",
        "interpreted",
        (
            "tiles with repeated ids are taken for tiles of pairs alone",
            "if SELF == LISTED_SELF or x.ids is not None or links.pairs is not None:",
            "if SELF == LISTED_SELF or links.pairs is not None:",
        ),
        (
            "exponentials of earlier tiles keep their shift",
            "second = tl.fma(second, tl.where(terms > first, nearer, 1.0), added)",
            "second = second + added",
        ),
        (
            "slots of columns are added without their shifts",
            "second * relative_to(first, highest) + other_second * relative_to(other_first, highest)",
            "second + other_second",
        ),
        (
            "both means are divided by the count of the positives",
            "negative = 1 / divisor(tl.sum(neg_pairs, 0))",
            "negative = 1 / divisor(tl.sum(pairs, 0))",
        ),
        (
            "a tile that stands for its mirror image counts once",
            "            visits = 2.0",
            "            visits = 1.0",
        ),
        (
            "the constant part of a slope is lost where kernels make products",
            "            if POOLS.constants:",
            "            if not POOLS.constants:",
        ),
    ),
    *of(
        "fastpair/backends/triton/tiles.py",
        "interpreted",
        (
            "slopes of close pairs are in the products as well",
            "        pair &= ~close\n",
            "",
        ),
        (
            "the remainder of the depth is not multiplied",
            "for start in range(0, x.d, DEPTH):",
            "for start in range(0, x.d - DEPTH + 1, DEPTH):",
        ),
        (
            "sums of slopes lack what rounding took",
            "        kept += rest.to(tl.float32)\n",
            "",
        ),
    ),
    *of(
        "fastpair/backends/triton/close.py",
        "interpreted",
        (
            "differences of close unit rows are not scaled back",
            "before + scale[:, None] * total",
            "before + total",
        ),
    ),
    *of(
        "fastpair/backends/triton/linear_cross_entropy.py",
        "interpreted",
        (
            "exponentials of earlier blocks of classes keep their shift",
            "exponentials = exponentials * tl.exp(highest - shift) + tl.exp(logit - shift)",
            "exponentials = exponentials + tl.exp(logit - shift)",
        ),
        (
            "class weights multiply every block of slopes with the first rows",
            "x_factor.add_products(dw, parts, top, top + count, transposed=True)",
            "x_factor.add_products(dw, parts, 0, count, transposed=True)",
        ),
    ),
    *of(
        "fastpair/backends/triton/triplets.py",
        "interpreted",
        (
            "the gradient of sorted references is not put back",
            "dy = torch.empty_like(dy).index_copy_(0, order, dy)",
            "dy = dy.clone()",
        ),
        (
            "a positive shares its slope among all negatives, not with its own",
            "                    chosen &= column[:, None] == n[None, :]\n",
            "",
        ),
    ),
    *of(
        "fastpair/backends/triton/pair_loss.py",
        "interpreted",
        (
            "the slope of a squared distance is halved for maxima",
            "                slope = slope * 2\n",
            "                slope = slope * 1\n",
        ),
    ),
    *of(
        "fastpair/backends/products.py",
        "interpreted",
        (
            "the low parts of float16 embeddings are lost",
            "pairs = [(0, part) for part in self.parts[1:]] + [",
            "pairs = [",
        ),
    ),
    *of(
        "fastpair/backends/triton/retrieval.py",
        "interpreted",
        (
            "an equal item that comes before does not count",
            "((s > own[:, None]) | equal_before)",
            "(s > own[:, None])",
        ),
    ),
    *of(
        "fastpair/formulas/formula.py",
        "interpreted",
        (
            "the slope of a mean is that of a sum",
            "derivative(loss, kind.mean) / kind.pairs",
            "derivative(loss, kind.mean)",
        ),
    ),
]

PYTHON = [
    *of(
        "fastpair/ops/autograd.py",
        "cpu",
        (
            "a second backward scales the gradients of the first",
            "gradients, ctx.gradients = ctx.gradients, None",
            "gradients = ctx.gradients",
        ),
        (
            "a gradient that is differentiated again is a constant",
            "return _NotTwice.apply(gradient, *causes)",
            "return gradient",
        ),
        (
            "what depends on parameters that learn may be differentiated twice",
            "causes = (*of_op[: len(wanted)], *learn)",
            "causes = of_op[: len(wanted)]",
        ),
    ),
    *of(
        "fastpair/ops/relation.py",
        "cpu",
        (
            "other labels of the same rows are not read",
            "same = pairs is None and (ref_labels is None or ref_labels is labels) and (",
            "same = pairs is None and (",
        ),
    ),
    *of(
        "fastpair/ops/prefixes.py",
        "cpu",
        (
            "weights of prefixes are not sorted with their lengths",
            "rising = sorted(zip(lengths, map(float, weights)))",
            "rising = list(zip(sorted(lengths), map(float, weights)))",
        ),
    ),
    *of(
        "fastpair/distributed.py",
        "cpu",
        (
            "gradients are not multiplied by the ranks that will average them",
            "return _Identity.apply(x, lambda grad: grad * self.count)",
            "return _Identity.apply(x, lambda grad: grad)",
        ),
        (
            "gradients go back to the ranks in the order of the rows",
            "for part in parts[len(sizes) - rank :] + parts[: len(sizes) - rank]]",
            "for part in parts]",
        ),
        (
            "parameters get the gradient of one rank",
            "lambda grad: once(_summed(grad, self.group), grad))",
            "lambda grad: once(grad.clone(), grad))",
        ),
        (
            "class means are divided by the rows of one rank",
            "group, rows = group[: len(labels)], max(len(everywhere), 1)",
            "group, rows = group[: len(labels)], max(len(labels), 1)",
        ),
    ),
    *of(
        "fastpair/losses/mined.py",
        "cpu",
        (
            "repeats of pairs count once in NT-Xent",
            'COUNT_REPEATS = ("contrastive", "squared_contrastive", "ntxent")',
            'COUNT_REPEATS = ("contrastive", "squared_contrastive")',
        ),
        (
            "triplets of pairs take the first negatives of any anchor",
            "- start[pair] + first[pair]",
            "- start[pair]",
        ),
    ),
    *of(
        "fastpair/losses/info_nce.py",
        "cpu",
        (
            "weights of positive scores have the wrong sign",
            "losses = losses + (1 - weights_of_own) * own",
            "losses = losses - (1 - weights_of_own) * own",
        ),
        (
            "label smoothing is not shared by the directions",
            "losses = losses + label_smoothing / len(directions) * spread",
            "losses = losses + label_smoothing * spread",
        ),
        (
            "debiasing counts the positive among the negatives",
            "return dict(zip(DIRECTIONS, (m - 1 + own,",
            "return dict(zip(DIRECTIONS, (m + own,",
        ),
    ),
    *of(
        "fastpair/losses/memory.py",
        "cpu",
        (
            "rows beyond the write position are forgotten after a wrap",
            "self.filled = min(self.filled + n, self.memory_size)",
            "self.filled = max(self.filled, self.queue_idx)",
        ),
        (
            "samples are compared with their own copies in the memory",
            "own = places if enqueue_mask is None else",
            "own = torch.full_like(places, -1) if enqueue_mask is None else",
        ),
    ),
    *of(
        "fastpair/losses/matryoshka.py",
        "cpu",
        (
            "weights multiply counts as well",
            "return totals * totals.new_tensor((weight, 1, weight, 1))",
            "return totals * weight",
        ),
    ),
    *of(
        "fastpair/losses/bounds.py",
        "cpu",
        (
            "the soft means push where they pull",
            "return log_sum_exp - (positives + centers.square().sum()) / (2 * lam)",
            "return log_sum_exp - (positives - centers.square().sum()) / (2 * lam)",
        ),
    ),
    *of(
        "fastpair/cached.py",
        "cpu",
        (
            "a chunk drops other units when it runs again",
            "        around.set_random_state(state)\n",
            "",
        ),
        (
            "buffers change in both passes",
            "buffers = {b: copy.clone() for b, copy in ctx.buffers.items()}",
            "buffers = {b: b for b in ctx.buffers}",
        ),
    ),
    *of(
        "fastpair/retrieval.py",
        "cpu",
        (
            "of equally close items the last are taken",
            "chosen[torn] &= ~equal | (equal.cumsum(1) <= spare)",
            "chosen[torn] &= ~equal | (equal.flip(1).cumsum(1).flip(1) <= spare)",
        ),
        (
            "hits beyond the size of a class count in MAP@R",
            "hits = hits & (rank <= within)",
            "hits = hits & (rank <= within.max())",
        ),
    ),
    *of(
        "fastpair/numerics.py",
        "cpu",
        (
            "softplus is rounded to its argument too early",
            "return F.softplus(x, threshold=40)",
            "return F.softplus(x)",
        ),
        (
            "results of half precision are rounded to it",
            "return torch.float64 if dtype == torch.float64 else torch.float32",
            "return dtype",
        ),
    ),
    *of(
        "fastpair/backends/dense.py",
        "cpu",
        (
            "the mean over all rows counts those that are ignored",
            "(labels != call.ignore_index).sum().clamp(min=1)",
            "max(len(labels), 1)",
        ),
        (
            "references are taken to have the ids of the anchors",
            "(call.ids[rows, None] != (call.ids if call.ref_ids is None else call.ref_ids)[None, :])",
            "(call.ids[rows, None] != call.ids[None, :])",
        ),
    ),
]

EXAMPLES = [
    *of(
        "examples/fastpair_dml/data/batches.py",
        "examples",
        (
            "the batches of every epoch are those of the first",
            "np.random.SeedSequence(seed, spawn_key=(epoch,))",
            "np.random.SeedSequence(seed)",
        ),
    ),
    *of(
        "examples/fastpair_dml/trainer.py",
        "examples",
        (
            "an epoch that goes on begins with its first batches",
            "            skip=self.step_of_epoch,\n",
            "",
        ),
        (
            "vectors are decayed like matrices",
            '{"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}',
            '{"params": [p for p in parameters if p.ndim <= 1], "weight_decay": s.weight_decay}',
        ),
        ("the network stays in evaluation mode", "        self.network.train()\n", ""),
        ("random numbers begin anew", "            torch.set_rng_state(random)\n", "            pass\n"),
        (
            "a loss that goes on has forgotten what it learned",
            "part.load_state_dict(state[name])",
            'name == "criterion" or part.load_state_dict(state[name])',
        ),
        (
            "gradients are summed over the processes",
            "self.scaler.scale(loss).backward()",
            "self.scaler.scale(loss * self.processes.world).backward()",
        ),
        ("processes train with the same share", "            rank=self.processes.rank,\n", "            rank=0,\n"),
        ("processes draw the same numbers", "torch.manual_seed(seed + processes.rank)", "torch.manual_seed(seed)"),
        ("batches are never cut into chunks", "if self.settings.chunk is None:", "if True:"),
    ),
    *of(
        "examples/fastpair_dml/training.py",
        "examples",
        (
            "the last steps before a signal are lost",
            "        except Interrupted:\n            self._save()\n",
            "        except Interrupted:\n",
        ),
        ("the best network is the last", "if history.best is history.evaluations[-1]:", "if True:"),
    ),
    *of(
        "examples/fastpair_dml/evaluation.py",
        "examples",
        ("training images are the queries", "embed(model, data.query,", "embed(model, data.train,"),
        ("every process embeds the first share", "batch_size, processes.rank,", "batch_size, 0,"),
    ),
    *of(
        "examples/fastpair_dml/stopping.py",
        "examples",
        (
            "a second Ctrl-C waits like the first",
            "            signal.signal(signal.SIGINT, signal.default_int_handler)\n",
            "            pass\n",
        ),
    ),
    *of(
        "examples/fastpair_dml/plots.py",
        "examples",
        (
            "neighbours are drawn from the queries",
            "gallery = data.query if data.gallery is None else data.gallery",
            "gallery = data.query",
        ),
    ),
    *of(
        "examples/train_dml.py",
        "examples",
        ("results stand in the order of the trainings", 'for name in self.config["loss"]\n', "for name in known\n"),
        (
            "seeds stand in the order of the trainings",
            'for number in self.config["seeds"] if number in known[name]}',
            "for number in known[name]}",
        ),
        ("what failed is drawn", "results = succeeded(self.results)", "results = self.results"),
        ("what was not drawn stays so", "self._undrawn = bool(self.results)", "self._undrawn = False"),
        ("options without effect are passed over", "    refuse_without_effect(settings, arguments)\n", ""),
        (
            "a dry run makes the run folder",
            "    processes, device = start(settings.device)\n",
            "    processes, device = start(settings.device)\n    folder.mkdir(parents=True)\n",
        ),
    ),
]

FAULTS: list[Fault] = [*TEAMS, *SWEEPS, *LOSSES, *CUDA, *TRITON, *PYTHON, *EXAMPLES]
