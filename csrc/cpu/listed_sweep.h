// Sweeps over listed pairs: a row of scores has the pairs of one anchor.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/listed_pairs.h"
#include "cpu/pair_sweep.h"

namespace fastpair {

// What the pairs of each anchor are. The loss reads the listings of ListedPairs, of which each counts, or, for a loss
// of sets, each pair once.
struct ListedKinds {
  ListedPairs& pairs;
  const bool repeats;
  Relation relation;

  // `positives`: how many of the list's pairs are positive; they come first.
  ListedKinds(ListedPairs& listed, int64_t positives, bool each_counts)
      : pairs(listed), repeats(each_counts), relation(relation_of(listed, positives, each_counts)) {}

  // The pairs of anchor i that count, positives first: count(i) of them, the k-th being pair(i, k).
  int64_t count(int64_t i) const { return (repeats ? pairs.begin[i + 1] : pairs.end[i]) - pairs.begin[i]; }
  int64_t pair(int64_t i, int64_t k) const { return repeats ? pairs.pair[pairs.begin[i] + k] : pairs.begin[i] + k; }

 private:
  static Relation relation_of(const ListedPairs& pairs, int64_t positives, bool repeats) {
    std::vector<int64_t> counts[2];
    for_kinds([&](Kind kind) { counts[kind].assign(pairs.n, 0); });
    for (int64_t i = 0; i < pairs.n; ++i) {
      int64_t last_positive = -1;  // the pairs of positives come first
      for (int64_t k = pairs.begin[i]; k < pairs.begin[i + 1]; ++k) {
        const Kind kind = pairs.listing[k] < positives ? Positive : Negative;
        counts[kind][i] += repeats;
        if (repeats) continue;
        if (kind == Positive) last_positive = std::max(last_positive, pairs.pair[k]);
        check_one_kind(kind == Positive || pairs.pair[k] > last_positive, i, pairs.col[pairs.pair[k]]);
      }
      if (repeats) continue;
      counts[Positive][i] = std::max<int64_t>(last_positive + 1 - pairs.begin[i], 0);
      counts[Negative][i] = pairs.end[i] - pairs.begin[i] - counts[Positive][i];
    }
    return Relation(std::move(counts[Positive]), std::move(counts[Negative]));
  }
};

// As PairSweep, over listed pairs.
template <typename T>
class ListedSweep {
 public:
  ListedSweep(const PairKernels<T>& loss, const std::vector<double>& params, Metric metric, AnchorSide<T>& anchors,
              AnchorSide<T>& references, const ListedKinds& kinds)
      : loss_(loss),
        params_(params),
        metric_(metric),
        rows_(anchors),
        ref_scalars_(references.scalars),
        kinds_(kinds),
        scores_(anchors.samples, references.samples, metric, kinds.pairs),
        derivatives_(anchors.samples.n * loss.learned) {}

  bool keeps_scores() const { return true; }
  int64_t panel() const { return 0; }
  void run_panel(const Pass& pass, int64_t) { run(pass); }

  void run(const Pass& pass) {
    interruptions_.look();
    if (pass.compute_scores) scores_.compute();
    interruptions_.look();
    parallel_ranges(
        rows_.samples.n,
        [&](int64_t begin, int64_t end) {
          Row row;
          for (int64_t i = begin; i < end; ++i) visit(i, pass, row);
        },
        kinds_.pairs.grain(16));
    for (size_t k = 0; pass.learned && k < derivatives_.size(); ++k) {
      (*pass.learned)[k % loss_.learned] += derivatives_[k];
    }
    interruptions_.look();
    if (pass.gradient) scores_.add_gradients();
  }

 private:
  // What a thread visits an anchor with: the closenesses of what counts, and the numbers of their references; the
  // slopes by pair; the derivatives by the parameters that learn.
  struct Row {
    std::vector<T> closeness, scalars, slopes;
    std::vector<double> derivatives;
  };

  void visit(int64_t i, const Pass& pass, Row& row) {
    const int64_t count = kinds_.count(i), first = kinds_.pairs.begin[i];
    row.closeness.resize(count);
    for (int64_t k = 0; k < count; ++k) row.closeness[k] = scores_.of_pairs()[kinds_.pair(i, k)];
    row.scalars.resize(count * loss_.ref_scalars);
    for (int of = 0; of < loss_.ref_scalars; ++of) {
      const T* numbers = ref_scalars_.ref + of * ref_scalars_.n;
      for (int64_t k = 0; k < count; ++k) {
        row.scalars[of * count + k] = numbers[kinds_.pairs.col[kinds_.pair(i, k)]];
      }
    }
    if (pass.learned) std::fill_n(derivatives_.begin() + i * loss_.learned, loss_.learned, 0.0);
    for (int64_t col = 0; col < count; col += MAX_BLOCK) {
      visit_tile({.scores = row.closeness.data() + col,
                  .ld = count,
                  .row = i,
                  .rows = 1,
                  .col = col,
                  .cols = std::min(MAX_BLOCK, count - col),
                  .pos_begin = rows_.relation.begin.data(),
                  .pos_end = rows_.relation.end.data(),
                  .self = nullptr,
                  .row_scalars = rows_.scalars,
                  .col_scalars = {.anchor = nullptr, .ref = row.scalars.data(), .n = count}},
                 pass, row);
    }
    if (!pass.gradient) return;
    row.slopes.assign(kinds_.pairs.end[i] - first, T(0));
    for (int64_t k = 0; k < count; ++k) row.slopes[kinds_.pair(i, k) - first] += row.closeness[k];
    std::copy(row.slopes.begin(), row.slopes.end(), scores_.of_pairs() + first);
  }

  void visit_tile(const ScoreTile<T>& tile, const Pass& pass, Row& row) {
    const int64_t i = tile.row;
    const Weights<T> weights = rows_.weights(0);
    for_kinds([&](Kind kind) {
      if (!pass.add[kind]) return;
      T part[STATISTICS] = {};
      const Parts<T> parts{{{part, part + 1, part + 2}, {part, part + 1, part + 2}}};
      loss_.statistics(tile, params_.data(), kind, weights.negatives_lse, nullptr, parts, nullptr);
      Total total{{part[0], part[1], part[2]}};
      double& place = total.of[1];
      if (loss_.pool[kind] == Pool::Max && place > 0) {
        place = kinds_.pairs.col[kinds_.pair(i, tile.col + int64_t(place) - 1)] + 1;
      }
      merge(loss_.pool[kind], rows_.totals[kind][i], total, 0);
    });
    if (pass.learned) {
      row.derivatives.resize(loss_.learned);
      loss_.term_derivatives(tile, params_.data(), weights, nullptr, row.derivatives.data());
      for (int k = 0; k < loss_.learned; ++k) derivatives_[i * loss_.learned + k] += row.derivatives[k];
    }
    if (pass.gradient) {
      T row_sum = 0, col_sums[MAX_BLOCK] = {};  // the gradients sum the slopes themselves
      loss_.slopes(tile, params_.data(), metric_, weights, nullptr, &row_sum, col_sums);
    }
  }

  const PairKernels<T>& loss_;
  const std::vector<double>& params_;
  const Metric metric_;
  AnchorSide<T>& rows_;
  const SampleScalars<T> ref_scalars_;
  const ListedKinds& kinds_;
  ListedScores<T> scores_;
  std::vector<double> derivatives_;  // by the parameters that learn, of each anchor
  Interruptions interruptions_;
};

}  // namespace fastpair
