#include "cpu/listed_pairs.h"

#include <algorithm>
#include <numeric>

namespace fastpair {
namespace {

Indices rows_of(const char* name, const Tensor& list, int64_t length, int64_t rows) {
  check_length(name, list, length);
  Indices out(list);
  const auto is_wrong = [rows](int64_t row) { return (row < 0) | (row >= rows); };
  bool wrong = false;
  for (const int64_t row : out.view()) wrong |= is_wrong(row);
  if (!wrong) return out;
  const int64_t row = *std::ranges::find_if(out.view(), is_wrong);
  STD_TORCH_CHECK(false, name, " must hold rows, 0 to ", rows - 1, ", got ", row);
}

bool is_plain_list(const Tensor& list) {
  const bool aligned = reinterpret_cast<uintptr_t>(list.const_data_ptr()) % alignof(int64_t) == 0;
  return list.scalar_type() == ScalarType::Long && list.is_contiguous() && aligned;
}

}  // namespace

Indices::Indices(const Tensor& list) {
  if (!is_plain_list(list)) copy_ = integer_vector(list);
  view_ = is_plain_list(list)
              ? std::span(static_cast<const int64_t*>(list.const_data_ptr()), static_cast<size_t>(list.numel()))
              : std::span<const int64_t>(copy_);
}

PairLists pair_lists(const Tensor& anchors, const Tensor& positives, const std::optional<Tensor>& negative_anchors,
                     const Tensor& negatives, int64_t n, int64_t m) {
  const int64_t length = anchors.numel(), others = negative_anchors ? negatives.numel() : length;
  return {.anchors = rows_of("anchors", anchors, length, n),
          .positives = rows_of("positives", positives, length, m),
          .negative_anchors = negative_anchors
                                  ? std::optional(rows_of("negative_anchors", *negative_anchors, others, n))
                                  : std::nullopt,
          .negatives = rows_of("negatives", negatives, others, m)};
}

ListedPairs::ListedPairs(std::initializer_list<List> lists, int64_t row_count, int64_t col_count)
    : n(row_count), m(col_count), begin(row_count + 1, 0), end(row_count) {
  for (const List& list : lists) {
    for (const int64_t i : list.rows) ++begin[i + 1];
  }
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  listing.resize(begin.back());
  pair.resize(begin.back());
  col.resize(begin.back());
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  int64_t place = 0;
  for (const List& list : lists) {
    for (size_t k = 0; k < list.rows.size(); ++k) {
      const int64_t at = next[list.rows[k]]++;
      listing[at] = place++;
      col[at] = list.cols[k];  // of every listing, at first
    }
  }
  parallel_ranges(
      n,
      [&](int64_t first, int64_t last) {
        // The latest pair of each column. Numbers of pairs grow: those of earlier rows are too small to be of this one.
        std::vector<int64_t> latest(m, -1);
        for (int64_t i = first; i < last; ++i) {
          int64_t next = begin[i];
          for (int64_t k = begin[i]; k < begin[i + 1]; ++k) {
            const int64_t j = col[k];
            if (latest[j] < begin[i]) {
              latest[j] = next;
              col[next++] = j;
            }
            pair[k] = latest[j];
          }
          end[i] = next;
        }
      },
      grain(1));
}

ListedPairs ListedPairs::of(const PairLists& lists, Kind first, int64_t n, int64_t m) {
  const Kind last = first == Positive ? Negative : Positive;
  return ListedPairs(
      {{lists.anchors_of(first), lists.others_of(first)}, {lists.anchors_of(last), lists.others_of(last)}}, n, m);
}

void ListedPairs::group_by_column() {
  if (!col_begin.empty()) return;
  col_begin.assign(m + 1, 0);
  row.resize(col.size());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t p = begin[i]; p < end[i]; ++p) {
      ++col_begin[col[p] + 1];
      row[p] = i;
    }
  }
  std::partial_sum(col_begin.begin(), col_begin.end(), col_begin.begin());
  of_col.resize(col_begin.back());
  std::vector<int64_t> next(col_begin.begin(), col_begin.end() - 1);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t p = begin[i]; p < end[i]; ++p) of_col[next[col[p]]++] = p;
  }
}

std::optional<Tensor> matrix_of(const PairLists& lists, int64_t n, int64_t m, bool repeats) {
  const int64_t listed = lists.others_of(Positive).size() + lists.others_of(Negative).size();
  if (listed * GATHERED_PAIR < n * m) return {};
  Tensor matrix = new_tensor({n, m}, ScalarType::Char);
  int8_t* const kinds = static_cast<int8_t*>(matrix.mutable_data_ptr());
  std::memset(kinds, 0, n * m);
  for (const Kind kind : {Positive, Negative}) {
    const std::span<const int64_t> rows = lists.anchors_of(kind), cols = lists.others_of(kind);
    const int8_t value = kind == Positive ? 1 : -1;
    for (size_t k = 0; k < rows.size(); ++k) {
      int8_t& at = kinds[rows[k] * m + cols[k]];
      const bool twice = at == value, both = at == -value;
      if (repeats && (twice || both)) return {};
      check_one_kind(!both, rows[k], cols[k]);
      at = value;
    }
  }
  return matrix;
}

}  // namespace fastpair
