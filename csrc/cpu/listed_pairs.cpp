#include "cpu/listed_pairs.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace fastpair {
namespace {

std::vector<int64_t> rows_of(const char* name, const Tensor& list, int64_t length, int64_t rows) {
  check_length(name, list, length);
  std::vector<int64_t> out = integer_vector(list);
  for (const int64_t row : out) {
    STD_TORCH_CHECK(row >= 0 && row < rows, name, " must hold rows, 0 to ", rows - 1, ", got ", row);
  }
  return out;
}

// The places where the groups of the given keys begin, of `groups` of them, and the places of the keys, by group.
std::pair<std::vector<int64_t>, std::vector<int64_t>> grouped(const std::vector<int64_t>& keys, int64_t groups) {
  std::vector<int64_t> begin(groups + 1, 0), places(keys.size());
  for (const int64_t key : keys) ++begin[key + 1];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (size_t k = 0; k < keys.size(); ++k) places[next[keys[k]]++] = k;
  return {std::move(begin), std::move(places)};
}

}  // namespace

PairLists::PairLists(const Tensor& of_anchors, const Tensor& of_positives,
                     const std::optional<Tensor>& of_negative_anchors, const Tensor& of_negatives, int64_t n, int64_t m)
    : anchors(rows_of("anchors", of_anchors, of_anchors.numel(), n)),
      positives(rows_of("positives", of_positives, of_anchors.numel(), m)) {
  const int64_t length = of_negative_anchors ? of_negatives.numel() : of_anchors.numel();
  negatives = rows_of("negatives", of_negatives, length, m);
  if (of_negative_anchors) negative_anchors = rows_of("negative_anchors", *of_negative_anchors, length, n);
}

ListedPairs::ListedPairs(const std::vector<int64_t>& rows, const std::vector<int64_t>& cols, int64_t row_count,
                         int64_t col_count)
    : n(row_count), m(col_count), end(row_count), col(rows.size()), pair(rows.size()) {
  std::tie(begin, listing) = grouped(rows, n);
  parallel_ranges(
      n,
      [&](int64_t first, int64_t last) {
        // The latest pair of each column. Numbers of pairs grow: those of earlier rows are too small to be of this one.
        std::vector<int64_t> latest(m, -1);
        for (int64_t i = first; i < last; ++i) {
          int64_t next = begin[i];
          for (int64_t k = begin[i]; k < begin[i + 1]; ++k) {
            const int64_t j = cols[listing[k]];
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
  std::vector<int64_t> rows, cols;
  rows.reserve(lists.positives.size() + lists.negatives.size());
  cols.reserve(rows.capacity());
  for (const Kind kind : {first, first == Positive ? Negative : Positive}) {
    rows.insert(rows.end(), lists.anchors_of(kind).begin(), lists.anchors_of(kind).end());
    cols.insert(cols.end(), lists.others_of(kind).begin(), lists.others_of(kind).end());
  }
  return ListedPairs(rows, cols, n, m);
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

std::optional<Tensor> matrix_of(const PairLists& lists, const Tensor& like, int64_t m, bool repeats) {
  const int64_t n = like.size(0), listed = lists.positives.size() + lists.negatives.size();
  if (listed * GATHERED_PAIR < n * m) return {};
  Tensor matrix = new_tensor(like, {n, m}, ScalarType::Char);
  int8_t* const kinds = static_cast<int8_t*>(matrix.mutable_data_ptr());
  std::memset(kinds, 0, n * m);
  for (const Kind kind : {Positive, Negative}) {
    const std::vector<int64_t>&rows = lists.anchors_of(kind), &cols = lists.others_of(kind);
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
