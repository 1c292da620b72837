// Which pairs of two sides are positive, negative or none.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "arguments.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/samples.h"
#include "cpu/simd/kernels.h"

namespace fastpair {

// The relation of the anchors of one side to the samples of the other, both in the order of Samples. With labels that
// are single, the positives of anchor i are the columns [begin[i], end[i]), since samples are sorted by them, and the
// others but self[i] its negatives; elsewhere the positives lie in this range. Columns with the anchor's id are none.
class Relation {
 public:
  std::vector<int64_t> begin, end;
  std::vector<int64_t> pairs[2];  // how many, by kind

  // For a side without anchors.
  Relation() = default;

  // Of anchors whose pairs are listed, the positives first: how many there are of each kind.
  Relation(std::vector<int64_t> positives, std::vector<int64_t> negatives)
      : begin(positives.size(), 0), end(positives) {
    pairs[Positive] = std::move(positives);
    pairs[Negative] = std::move(negatives);
  }

  // `flipped`: the anchors are the references of the call.
  template <typename T>
  Relation(const PairLossArguments& args, const Samples<T>& anchors, const Samples<T>& others, const int64_t* self,
           bool flipped = false)
      : begin(anchors.n, 0), end(anchors.n, others.n), columns_(others.n), self_(self) {
    const auto of_side = [&](const Tensor& own, const std::optional<Tensor>& of_references, bool references) {
      return references && of_references ? &*of_references : &own;
    };
    if (args.pairs) {
      pairs_ = static_cast<const int8_t*>(args.pairs->const_data_ptr());
    } else if (args.labels.dim() == 2) {
      words_ = args.labels.size(1);
      own_sets_ = words_of(*of_side(args.labels, args.ref_labels, flipped), true);
      other_sets_ = words_of(*of_side(args.labels, args.ref_labels, !flipped), false);
    } else {
      // Both sides are sorted.
      for (int64_t i = 0, first = 0, last = 0; i < anchors.n; ++i) {
        while (first < others.n && others.labels[first] < anchors.labels[i]) ++first;
        while (last < others.n && others.labels[last] <= anchors.labels[i]) ++last;
        begin[i] = first;
        end[i] = last;
      }
    }
    if (args.ids) {
      find_same(sorted(*of_side(*args.ids, args.ref_ids, flipped), anchors.order),
                sorted(*of_side(*args.ids, args.ref_ids, !flipped), others.order));
    }
    count_pairs();
  }

  // Whether begin, end and self say what the columns [col, col + cols) are to anchor i.
  bool is_range(int64_t i, int64_t col, int64_t cols) const {
    if (pairs_ || words_) return false;
    if (same_.empty()) return true;
    const int64_t own = self_ ? self_[i] : -1;
    const auto last = same_.begin() + same_end_[i];
    auto next = std::lower_bound(same_.begin() + same_begin_[i], last, col);
    if (next != last && *next == own) ++next;
    return next == last || *next >= col + cols;
  }

  // Writes what the columns [col, col + cols) are to anchor i: a Kind or NO_PAIR.
  void write_kinds(int64_t i, int64_t col, int64_t cols, uint8_t* __restrict out) const {
    if (pairs_) {
      const int8_t* __restrict given = pairs_ + i * columns_ + col;
      for (int64_t k = 0; k < cols; ++k) out[k] = given[k] == 0 ? NO_PAIR : given[k] > 0 ? Positive : Negative;
    } else if (words_) {
      kernels<float>().shared_labels(own_sets_.data() + i * words_, other_sets_.data() + col, words_, columns_, cols,
                                     out);
    } else {
      const int64_t first = std::clamp(begin[i] - col, int64_t(0), cols), last = std::clamp(end[i] - col, first, cols);
      std::fill(out, out + cols, uint8_t(Negative));
      std::fill(out + first, out + last, uint8_t(Positive));
    }
    if (!same_.empty()) {
      const auto last = same_.begin() + same_end_[i];
      auto next = std::lower_bound(same_.begin() + same_begin_[i], last, col);
      for (; next != last && *next < col + cols; ++next) out[*next - col] = NO_PAIR;
    }
    const int64_t own = self_ ? self_[i] - col : -1;
    if (own >= 0 && own < cols) out[own] = NO_PAIR;
  }

 private:
  // The words of sets of labels: a sample's side by side, or those of all samples.
  static std::vector<int32_t> words_of(const Tensor& sets, bool by_sample) {
    const int64_t n = sets.size(0), words = sets.size(1), down = sets.stride(0), across = sets.stride(1);
    const int32_t* data = static_cast<const int32_t*>(sets.const_data_ptr());
    std::vector<int32_t> out(n * words);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t w = 0; w < words; ++w) out[by_sample ? i * words + w : w * n + i] = data[i * down + w * across];
    }
    return out;
  }

  static std::vector<int64_t> sorted(const Tensor& ids, const std::vector<int64_t>& order) {
    const std::vector<int64_t> values = integer_vector(ids);
    std::vector<int64_t> out;
    out.reserve(order.size());
    for (const int64_t row : order) out.push_back(values[row]);
    return out;
  }

  // Lists the columns with the id of each anchor, in their order.
  void find_same(const std::vector<int64_t>& own, const std::vector<int64_t>& others) {
    same_ = sorting_order(others);
    const auto id = [&](int64_t column) { return others[column]; };
    for (const int64_t of_anchor : own) {
      const auto stretch = std::ranges::equal_range(same_, of_anchor, {}, id);
      same_begin_.push_back(stretch.begin() - same_.begin());
      same_end_.push_back(stretch.end() - same_.begin());
    }
  }

  void count_pairs() {
    const int64_t n = begin.size();
    for (std::vector<int64_t>& of_kind : pairs) of_kind.resize(n);
    parallel_rows(n, pairs_ || words_ ? columns_ : 16, [&](int64_t i) {
      if (is_range(i, 0, columns_)) {
        const int64_t own = self_ ? self_[i] : -1;
        const bool among_positives = own >= begin[i] && own < end[i];
        pairs[Positive][i] = end[i] - begin[i] - among_positives;
        pairs[Negative][i] = columns_ - (end[i] - begin[i]) - (own >= 0 && !among_positives);
      } else {
        std::vector<uint8_t> kinds(columns_);
        write_kinds(i, 0, columns_, kinds.data());
        int32_t positives = 0, negatives = 0;
        for (const uint8_t kind : kinds) positives += kind == Positive, negatives += kind == Negative;
        pairs[Positive][i] = positives;
        pairs[Negative][i] = negatives;
      }
    });
  }

  int64_t columns_ = 0;
  const int64_t* self_ = nullptr;
  const int8_t* pairs_ = nullptr;  // row by row
  int64_t words_ = 0;
  std::vector<int32_t> own_sets_, other_sets_;
  std::vector<int64_t> same_, same_begin_, same_end_;
};

}  // namespace fastpair
