// Sums over the triplets of each anchor, and their gradients, from panels of rows of the score matrix.
//
// A positive at distance p has the threshold t = p + margin: a negative at distance n < t adds t - n. So the anchor's
// loss is the sum of the thresholds, each times the number of negatives it is above, less the sum of the negatives'
// distances, each times the number of thresholds above it; and these numbers are the slopes. With the positives sorted,
// those with which a negative makes triplets are a range, also for semi-hard triplets: O(n log n) time per anchor.
// Where positives or negatives are few, and for the smooth loss, every triplet is visited.
//
// Where a positive makes one triplet alone, with the nearest negative that is farther, each negative is that of the
// positives between it and the next nearer one. With the positives sorted these are a range too; where either are few,
// every positive looks through the negatives.
//
// Cost in units of 2nmd flops, with references = anchors: 0.5 for the scores + 1 for the gradient if the score matrix
// fits in one panel, else 1 + 2; the gradient next to nothing where anchors have few triplets.

#include "cpu/triplets.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "cpu/interrupt.h"
#include "cpu/squares.h"
#include "elementary.h"

namespace fastpair {
namespace {

// Products with fewer rows are slow.
constexpr int64_t MIN_PANEL_ROWS = 32;
// With at most this many positives or negatives it is cheaper to visit every triplet than to sort.
constexpr int64_t FEW = 48;
// Negatives are visited in chunks that stay in the first-level cache; sums in the type of the scores end with a chunk.
constexpr int64_t CHUNK = 2048;
// A slope by itself takes about as much time as this many slopes in a product.
constexpr int64_t SINGLE = 24;

// The number of sorted values that are not above x.
template <typename T>
int64_t rank_of(T x, const std::vector<T>& sorted) {
  const T* first = sorted.data();
  int64_t n = sorted.size();
  for (; n > 1; n -= n / 2) first += (first[n / 2 - 1] <= x) * (n / 2);
  return first - sorted.data() + (*first <= x);
}

// The distances of one anchor, those of negatives before those of positives, and the slopes of its loss.
template <typename T>
class TripletRow {
 public:
  TripletRow(const TripletTerms& terms, int64_t references) : terms_(terms), d_(references), slopes_(references) {}

  double loss = 0, count = 0;
  T* distances() { return d_.get(); }
  const T* slopes() const { return slopes_.get(); }

  void visit(int64_t negatives, int64_t positives) {
    negatives_ = negatives;
    positives_ = positives;
    loss = count = 0;
    std::fill_n(slopes_.get(), negatives + positives, T(0));
    if (negatives == 0 || positives == 0) return;
    if (terms_.chosen == Triplets::NearestFarther) {
      const bool defined = !undefined();
      defined&& std::min(negatives, positives) > FEW ? add_nearest_sorted() : add_nearest(defined);
    } else if (undefined()) {
      add_each();
    } else if (terms_.smooth) {
      add_smooth();
    } else {
      std::min(negatives, positives) <= FEW ? count_each() : count_sorted();
      add_counts();
    }
  }

 private:
  static constexpr T INFINITE = std::numeric_limits<T>::infinity();

  T positive(int64_t p) const { return d_.get()[negatives_ + p]; }
  T threshold(T distance) const { return distance + T(terms_.margin); }
  // A positive at this distance makes triplets with the negatives at distances in [from, threshold).
  T from(T distance) const { return semihard() ? std::min(above(distance), threshold(distance)) : -INFINITE; }
  bool semihard() const { return terms_.chosen == Triplets::SemiHard; }
  static T above(T distance) { return std::nextafter(distance, INFINITE); }

  // Whether a distance, or the difference of a positive's and a negative's, is NaN.
  bool undefined() const {
    const T *d = d_.get(), *middle = d + negatives_, *end = middle + positives_;
    T zero = 0;
#pragma omp simd reduction(+ : zero)
    for (const T* x = d; x < end; ++x) zero += *x * T(0);
    if (zero == T(0)) return false;
    if (std::any_of(d, end, [](T x) { return std::isnan(x); })) return true;
    const auto [low_n, high_n] = std::minmax_element(d, middle);
    const auto [low_p, high_p] = std::minmax_element(middle, end);
    return std::isnan(*low_p - *low_n) || std::isnan(*high_p - *high_n);
  }

  // f(p, first negative, end) for all positives and chunks of the negatives.
  template <typename F>
  void for_chunks(const F& f) {
    for (int64_t begin = 0; begin < negatives_; begin += CHUNK) {
      for (int64_t p = 0; p < positives_; ++p) f(p, begin, std::min(begin + CHUNK, negatives_));
    }
  }

  // By the formula, which passes NaN through: NaN cannot be sorted among thresholds.
  void add_each() {
    const T* d = d_.get();
    for (int64_t p = 0; p < positives_; ++p) {
      for (int64_t j = 0; j < negatives_; ++j) {
        const T gap = positive(p) - d[j];
        if (semihard() && (gap >= T(0) || gap + T(terms_.margin) <= T(0))) continue;
        count += nonzero(add_triplet(p, j));
      }
    }
  }

  // Returns its loss.
  T add_triplet(int64_t p, int64_t j) {
    const T excess = positive(p) - d_.get()[j] + T(terms_.margin);
    const T term = terms_.smooth ? softplus(excess) : relu(excess);
    const T slope = terms_.smooth ? sigmoid(excess) : step(excess);
    loss += term;
    slopes_.get()[j] -= slope;
    slopes_.get()[negatives_ + p] += slope;
    return term;
  }

  void add_smooth() {
    const Kernels<T>& k = kernels<T>();
    for_chunks([&](int64_t p, int64_t begin, int64_t end) {
      const T t = threshold(positive(p)), to = semihard() ? t : INFINITE;
      T sums[3];
      k.smooth_triplets(t, from(positive(p)), to, d_.get() + begin, end - begin, slopes_.get() + begin, sums);
      loss += sums[0];
      count += sums[1];
      slopes_.get()[negatives_ + p] += sums[2];
    });
  }

  void count_each() {
    for_chunks([&](int64_t p, int64_t begin, int64_t end) {
      const T low = from(positive(p)), high = threshold(positive(p));
      const T* __restrict d = d_.get();
      T* __restrict slopes = slopes_.get();
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = begin; j < end; ++j) {
        const T one = (!(d[j] < low) & (d[j] < high)) ? T(1) : T(0);
        slopes[j] -= one;
        sum += one;
      }
      slopes[negatives_ + p] += sum;
    });
  }

  void sort_positives() {
    sorted_.resize(positives_);
    from_.resize(positives_);
    for (int64_t p = 0; p < positives_; ++p) sorted_[p] = {positive(p), p};
    std::sort(sorted_.begin(), sorted_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  }

  void count_sorted() {
    sort_positives();
    to_.resize(positives_);
    std::transform(sorted_.begin(), sorted_.end(), from_.begin(), [&](const auto& p) { return from(p.first); });
    std::transform(sorted_.begin(), sorted_.end(), to_.begin(), [&](const auto& p) { return threshold(p.first); });
    // A negative makes triplets with the positives [begin, end): +1 from begin on, -1 from end on.
    steps_.assign(positives_ + 1, 0);
    for (int64_t j = 0; j < negatives_; ++j) {
      const T distance = d_.get()[j];
      if (distance >= to_.back()) continue;
      const int64_t begin = rank_of(distance, to_), end = semihard() ? rank_of(distance, from_) : positives_;
      slopes_.get()[j] = T(begin - end);
      ++steps_[begin];
      --steps_[end];
    }
    int64_t triplets = 0;
    for (int64_t q = 0; q < positives_; ++q) {
      triplets += steps_[q];
      slopes_.get()[negatives_ + sorted_[q].second] = T(triplets);
    }
  }

  // The loss is the sum of thresholds and negatives' distances times their slopes, which count triplets.
  void add_counts() {
    const T *d = d_.get(), *slopes = slopes_.get();
    // An infinite distance without a triplet adds nothing to the loss.
    const auto product = [](T slope, T x) { return slope == T(0) ? 0.0 : double(slope) * double(x); };
    for (int64_t j = 0; j < negatives_; ++j) loss += product(slopes[j], d[j]);
    for (int64_t j = negatives_; j < negatives_ + positives_; ++j) {
      loss += product(slopes[j], threshold(d[j]));
      count += slopes[j];
    }
  }

  int64_t farthest() const { return std::max_element(d_.get(), d_.get() + negatives_) - d_.get(); }

  // Of equally far negatives the first is taken; of any that are NaN, the first of these.
  void add_nearest(bool defined) {
    const T *d = d_.get(), *end = d + negatives_;
    const auto is_nan = [](T x) { return std::isnan(x); };
    const int64_t nan = defined ? negatives_ : std::find_if(d, end, is_nan) - d;
    int64_t last = -1;
    for (int64_t p = 0; p < positives_; ++p) {
      int64_t j = nan < negatives_ ? nan : kernels<T>().least_above(positive(p), d, negatives_);
      if (j == negatives_) j = last = last < 0 ? farthest() : last;
      add_triplet(p, j);
    }
    count = positives_;
  }

  void add_nearest_sorted() {
    sort_positives();
    std::transform(sorted_.begin(), sorted_.end(), from_.begin(), [](const auto& p) { return above(p.first); });
    // The nearest of the negatives that are farther than q positives, but not farther than more.
    nearest_.assign(positives_ + 1, -1);
    const T* d = d_.get();
    for (int64_t j = 0; j < negatives_; ++j) {
      int64_t& nearest = nearest_[rank_of(d[j], from_)];
      if (nearest < 0 || d[j] < d[nearest]) nearest = j;
    }
    int64_t farther = nearest_[positives_] < 0 ? farthest() : -1;
    for (int64_t q = positives_; q > 0; --q) {
      if (nearest_[q] >= 0) farther = nearest_[q];
      add_triplet(sorted_[q - 1].second, farther);
    }
    count = positives_;
  }

  const TripletTerms terms_;
  int64_t negatives_, positives_;
  Scratch<T> d_, slopes_;
  std::vector<T> from_, to_;
  std::vector<std::pair<T, int64_t>> sorted_;
  std::vector<int64_t> steps_, nearest_;
};

int64_t blocks(int64_t length, int64_t block) { return (length + block - 1) / block; }

template <typename T>
struct TripletSweep {
  const TripletTerms& terms;
  Metric metric;
  Samples<T>&x, &y;
  const Relation& relation;
  const int64_t* self;
  const T* weights;

  TripletSums sums{std::vector<double>(x.n), std::vector<double>(x.n)};
  // The scores of a panel are those of a square, 16 MiB, which fit a third-level cache and are reused call after call.
  const int64_t panel_scores = square_length * square_length;
  const int64_t panel_rows = std::min(std::max(panel_scores / std::max<int64_t>(y.n, 1), MIN_PANEL_ROWS), x.n);
  // Of the anchors of a panel, by tasks: the slopes of those that have few, which the panel then lacks.
  std::vector<std::vector<SinglePair<T>>> single;
  // The panel is the whole matrix of the anchors with themselves.
  const bool symmetric = &x == &y && panel_rows == x.n;
  const int64_t row_block = task_length(panel_rows, MAX_BLOCK), col_block = task_length(y.n, MAX_BLOCK);
  // An odd number of cache lines between rows: a power of two would map them all to a few sets of the cache.
  const int64_t ld = ((y.n + 15) / 16 | 1) * 16;
  const Scratch<T> scores = Scratch<T>(panel_rows * ld);
  std::vector<std::vector<SinglePair<T>>> close =
      std::vector<std::vector<SinglePair<T>>>(blocks(panel_rows, row_block) * blocks(y.n, col_block));

  T* at(int64_t row, int64_t col) const { return scores.get() + row * ld + col; }

  void run() {
    Interruptions interruptions;
    x.start_gradient();
    y.start_gradient();
    for (int64_t top = 0; top < x.n; top += panel_rows) {
      interruptions.look();
      const int64_t rows = std::min(panel_rows, x.n - top);
      compute_panel(top, rows);
      // A task takes rows from all over the panel, since rows of a large class have more triplets.
      const int64_t tasks = blocks(rows, 8);
      single.assign(tasks, {});
      parallel_for(tasks, [&](int64_t task) {
        TripletRow<T> row(terms, y.n);
        for (int64_t r = task; r < rows; r += tasks) visit_row(row, top + r, at(r, 0), single[task]);
      });
      if (!weights) continue;
      const auto first = sums.counts.begin() + top;
      if (!std::all_of(first, first + rows, [&](double count) { return has_few(count); })) add_gradients(top, rows);
      add_single();
    }
  }

  // f(row, rows, column, columns) for the tiles of the panel; if it is symmetric, for those on and above the diagonal.
  template <typename F>
  void for_tiles(int64_t rows, const F& f) const {
    const int64_t across = blocks(y.n, col_block);
    parallel_for(blocks(rows, row_block) * across, [&](int64_t tile) {
      const int64_t row = tile / across * row_block, col = tile % across * col_block;
      if (symmetric && col < row) return;
      f(row, std::min(row_block, rows - row), col, std::min(col_block, y.n - col));
    });
  }

  void compute_panel(int64_t top, int64_t rows) {
    for (std::vector<SinglePair<T>>& pairs : close) pairs.clear();
    for_tiles(rows, [&](int64_t row, int64_t count, int64_t col, int64_t cols) {
      std::vector<SinglePair<T>>& pairs = close[row / row_block * blocks(y.n, col_block) + col / col_block];
      compute_scores(x, top + row, count, y, col, cols, metric, at(row, col), ld, weights ? &pairs : nullptr);
      if (!symmetric || row == col) return;
      for (int64_t c = col; c < col + cols; ++c) {
        for (int64_t r = row; r < row + count; ++r) *at(c, r) = *at(r, c);
      }
    });
  }

  // What the columns are to anchor i, empty where the range of its positives says it.
  std::vector<uint8_t> kinds_of(int64_t i) const {
    std::vector<uint8_t> kinds(relation.is_range(i, 0, y.n) ? 0 : y.n);
    if (!kinds.empty()) relation.write_kinds(i, 0, y.n, kinds.data());
    return kinds;
  }

  // f(begin, end, place) for the columns [begin, end) of anchor i, negatives before positives, which are packed from
  // `place` on. Returns the numbers of negatives and positives.
  template <typename F>
  std::pair<int64_t, int64_t> for_columns(int64_t i, const std::vector<uint8_t>& kinds, const F& f) const {
    int64_t place = 0;
    const auto add = [&](int64_t begin, int64_t end) {
      f(begin, end, place);
      return place += end - begin;
    };
    if (!kinds.empty()) {
      const auto add_kind = [&](Kind kind) {
        for (auto first = kinds.begin(); first != kinds.end();) {
          first = std::find(first, kinds.end(), uint8_t(kind));
          const auto last = std::find_if(first, kinds.end(), [&](uint8_t k) { return k != kind; });
          add(first - kinds.begin(), last - kinds.begin());
          first = last;
        }
        return place;
      };
      const int64_t negatives = add_kind(Negative);
      return {negatives, add_kind(Positive) - negatives};
    }
    const auto add_stretch = [&, own = self ? self[i] : -1](int64_t begin, int64_t end) {
      if (begin <= own && own < end) {
        add(begin, own);
        begin = own + 1;
      }
      return add(begin, end);
    };
    add_stretch(0, relation.begin[i]);
    const int64_t negatives = add_stretch(relation.end[i], y.n);
    return {negatives, add_stretch(relation.begin[i], relation.end[i]) - negatives};
  }

  // Whether an anchor with so many triplets, each of which has two slopes, has few beside the pairs.
  bool has_few(double triplets) const { return 2 * triplets * SINGLE <= y.n; }

  // Replaces the scores of anchor i by the derivatives of its loss, times its weight, by the dot products; or appends
  // those that are not zero to `single`, and leaves zeros.
  void visit_row(TripletRow<T>& row, int64_t i, T* __restrict s, std::vector<SinglePair<T>>& single) {
    const std::vector<uint8_t> kinds = kinds_of(i);
    const auto [negatives, positives] = for_columns(i, kinds, [&](int64_t begin, int64_t end, int64_t place) {
      T* __restrict d = row.distances() + place - begin;
      for (int64_t j = begin; j < end; ++j) d[j] = -s[j];
    });
    row.visit(negatives, positives);
    sums.losses[i] = row.loss;
    sums.counts[i] = row.count;
    if (!weights) return;
    const T factor = -weights[i] * closeness_slope(metric, T(1));
    const auto by_product = [&](T slope, T score) {
      if (metric == Metric::Euclidean) return score == T(0) ? T(0) : factor * slope / score;
      return factor * slope;
    };
    if (has_few(row.count)) {
      for_columns(i, kinds, [&](int64_t begin, int64_t end, int64_t place) {
        const T* slopes = row.slopes() + place - begin;
        for (int64_t j = begin; j < end; ++j) {
          if (slopes[j] != T(0)) single.push_back({i, j, by_product(slopes[j], s[j])});
        }
      });
      std::fill_n(s, y.n, T(0));
      return;
    }
    if (self && self[i] >= 0) s[self[i]] = 0;
    for (size_t j = 0; j < kinds.size(); ++j) s[j] = kinds[j] == NO_PAIR ? T(0) : s[j];
    for_columns(i, kinds, [&](int64_t begin, int64_t end, int64_t place) {
      const T* __restrict slopes = row.slopes() + place - begin;
      for (int64_t j = begin; j < end; ++j) s[j] = by_product(slopes[j], s[j]);
    });
  }

  void add_single() {
    std::vector<SinglePair<T>> pairs;
    for (const std::vector<SinglePair<T>>& of_task : single) pairs.insert(pairs.end(), of_task.begin(), of_task.end());
    add_single_pairs(pairs, x, &SinglePair<T>::row, y, &SinglePair<T>::col);
    add_single_pairs(pairs, y, &SinglePair<T>::col, x, &SinglePair<T>::row);
  }

  // Takes the slopes of close pairs out of the panel. In a symmetric one, tiles on the diagonal list each pair twice,
  // from either side, and those above it once, with the same slope below.
  void add_close_pairs(int64_t top) {
    std::vector<SinglePair<T>> by_row, by_col;
    for (const std::vector<SinglePair<T>>& pairs : close) {
      for (SinglePair<T> p : pairs) {
        std::swap(p.slope, *at(p.row - top, p.col));
        by_row.push_back(p);
        const bool twice = symmetric && p.row / row_block == p.col / col_block;
        if (symmetric && !twice) *at(p.col, p.row) = 0;
        if (!twice) by_col.push_back(p);
      }
    }
    add_single_pairs(by_row, x, &SinglePair<T>::row, y, &SinglePair<T>::col);
    add_single_pairs(by_col, y, &SinglePair<T>::col, x, &SinglePair<T>::row);
  }

  void add_gradients(int64_t top, int64_t rows) {
    // The slopes G of a symmetric panel become G + G^T, whose product with the samples is the whole gradient.
    if (symmetric) {
      for_tiles(rows, [&](int64_t row, int64_t count, int64_t col, int64_t cols) {
        for (int64_t c = col; c < col + cols; ++c) {
          for (int64_t r = row; r < std::min(row + count, c + 1); ++r) *at(c, r) = *at(r, c) += *at(c, r);
        }
      });
    }
    add_close_pairs(top);
    parallel_for(x.has_gradient ? blocks(rows, row_block) : 0, [&](int64_t block) {
      const int64_t row = block * row_block, count = std::min(row_block, rows - row);
      add_products(Op::None, count, y.n, at(row, 0), ld, y, 0, x.gradient + (top + row) * x.d);
      if (x.slope_sums.empty()) return;
      for (int64_t r = row; r < row + count; ++r) {
        const T* slopes = at(r, 0);
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < y.n; ++c) sum += slopes[c];
        x.slope_sums[top + r] += T(sum);
      }
    });
    parallel_for(y.has_gradient && !symmetric ? blocks(y.n, col_block) : 0, [&](int64_t block) {
      const int64_t col = block * col_block, count = std::min(col_block, y.n - col);
      add_products(Op::Transpose, count, rows, at(0, col), ld, x, top, y.gradient + col * x.d);
      if (y.slope_sums.empty()) return;
      double column_sums[MAX_BLOCK] = {};
      for (int64_t r = 0; r < rows; ++r) {
        const T* slopes = at(r, col);
        for (int64_t c = 0; c < count; ++c) column_sums[c] += slopes[c];
      }
      for (int64_t c = 0; c < count; ++c) y.slope_sums[col + c] += T(column_sums[c]);
    });
  }
};

// The slope by the dot product; that of a distance of zero is zero.
template <typename T>
T by_product(Metric metric, T slope, T closeness) {
  return closeness == T(0) && metric != Metric::Dot ? T(0) : slope * closeness_slope(metric, closeness);
}

// Every positive pair with every negative pair of the same anchor.
PairLists as_triplets(const PairLists& lists, int64_t n) {
  const std::span<const int64_t> anchors = lists.anchors_of(Positive), positives = lists.others_of(Positive);
  std::vector<std::vector<int64_t>> negatives(n);
  for (size_t k = 0; k < lists.others_of(Negative).size(); ++k) {
    negatives[lists.anchors_of(Negative)[k]].push_back(lists.others_of(Negative)[k]);
  }
  std::vector<int64_t> a, p, q;
  for (size_t k = 0; k < anchors.size(); ++k) {
    const std::vector<int64_t>& others = negatives[anchors[k]];
    a.insert(a.end(), others.size(), anchors[k]);
    p.insert(p.end(), others.size(), positives[k]);
    q.insert(q.end(), others.begin(), others.end());
  }
  return {.anchors = Indices(std::move(a)),
          .positives = Indices(std::move(p)),
          .negative_anchors = std::nullopt,
          .negatives = Indices(std::move(q))};
}

// Triplets one by one. The listings of an anchor are the positives of its triplets, then their negatives.
template <typename T>
class ListedTriplets {
 public:
  ListedTriplets(const TripletTerms& terms, Metric metric, Samples<T>& x, Samples<T>& y, const PairLists& triplets,
                 bool swap, const T* weights)
      : terms_(terms),
        metric_(metric),
        weights_(weights),
        pairs_(ListedPairs::of(triplets, Positive, x.n, y.n)),
        scores_(x, y, metric, pairs_),
        sums_{std::vector<double>(x.n), std::vector<double>(x.n)} {
    if (!swap) return;
    const ListedPairs::List of_swapped{triplets.others_of(Positive), triplets.others_of(Negative)};
    swapped_.emplace(std::initializer_list<ListedPairs::List>{of_swapped}, y.n, y.n);
    swapped_scores_.emplace(y, y, metric, *swapped_);
    swapped_pair_.resize(of_swapped.rows.size());
    for (size_t k = 0; k < swapped_->pair.size(); ++k) swapped_pair_[swapped_->listing[k]] = swapped_->pair[k];
    swapped_slopes_.resize(swapped_pair_.size());
  }

  TripletSums run() {
    Interruptions interruptions;
    scores_.compute();
    interruptions.look();
    if (swapped_) swapped_scores_->compute();
    interruptions.look();
    parallel_ranges(
        pairs_.n,
        [&](int64_t begin, int64_t end) {
          std::vector<T> slopes;
          for (int64_t i = begin; i < end; ++i) visit(i, slopes);
        },
        pairs_.grain(16));
    interruptions.look();
    if (!weights_) return std::move(sums_);
    scores_.add_gradients();
    if (swapped_) add_swapped();
    return std::move(sums_);
  }

 private:
  // `slopes`: a thread's, for the derivatives by the closenesses.
  void visit(int64_t i, std::vector<T>& slopes) {
    const int64_t first = pairs_.begin[i], count = (pairs_.begin[i + 1] - first) / 2;
    const int64_t *positive = pairs_.pair.data() + first, *negative = positive + count;
    const int64_t* triplet = pairs_.listing.data() + first;
    T* const s = scores_.of_pairs();
    slopes.assign(pairs_.end[i] - first, T(0));
    for (int64_t begin = 0; begin < count; begin += CHUNK) {
      T of_triplets[CHUNK], sums[2];
      const int64_t length = std::min(CHUNK, count - begin);
      for (int64_t k = 0; k < length; ++k) {
        const T closest =
            swapped_ ? closer(s[negative[begin + k]], swapped_closeness(triplet[begin + k])) : s[negative[begin + k]];
        of_triplets[k] = closest - s[positive[begin + k]] + T(terms_.margin);
      }
      kernels<T>().listed_triplets(terms_.smooth, of_triplets, length, sums);
      sums_.losses[i] += sums[0];
      sums_.counts[i] += sums[1];
      for (int64_t k = 0; k < length && weights_; ++k) {
        T slope = of_triplets[k] * weights_[i];
        slopes[positive[begin + k] - first] -= slope;
        if (swapped_) slope = keep_share(s[negative[begin + k]], triplet[begin + k], slope);
        slopes[negative[begin + k] - first] += slope;
      }
    }
    for (size_t k = 0; k < slopes.size() && weights_; ++k) s[first + k] = by_product(metric_, slopes[k], s[first + k]);
  }

  // NaN counts as the largest.
  static T closer(T a, T b) { return a > b || std::isnan(a) ? a : b; }
  T swapped_closeness(int64_t triplet) const { return swapped_scores_->of_pairs()[swapped_pair_[triplet]]; }

  // The share of the anchor's pair in the slope of the closer of both pairs: equal ones share it. The other pair gets
  // the rest.
  T keep_share(T closeness, int64_t triplet, T slope) {
    const T other = swapped_closeness(triplet);
    const T share = closeness == other ? T(0.5) : closer(closeness, other) == other ? T(0) : T(1);
    swapped_slopes_[triplet] = (1 - share) * slope;
    return share * slope;
  }

  void add_swapped() {
    parallel_rows(swapped_->n, 16, [&](int64_t i) {
      T* const s = swapped_scores_->of_pairs();
      std::vector<T> slopes(swapped_->end[i] - swapped_->begin[i], T(0));
      for (int64_t k = swapped_->begin[i]; k < swapped_->begin[i + 1]; ++k) {
        slopes[swapped_->pair[k] - swapped_->begin[i]] += swapped_slopes_[swapped_->listing[k]];
      }
      for (size_t k = 0; k < slopes.size(); ++k) {
        T& closeness = s[swapped_->begin[i] + k];
        closeness = by_product(metric_, slopes[k], closeness);
      }
    });
    swapped_scores_->add_gradients();
  }

  const TripletTerms& terms_;
  const Metric metric_;
  const T* weights_;
  ListedPairs pairs_;
  ListedScores<T> scores_;
  TripletSums sums_;
  // Of the pairs (positive, negative): which there are, and by triplet their place and the derivatives by them.
  std::optional<ListedPairs> swapped_;
  std::optional<ListedScores<T>> swapped_scores_;
  std::vector<int64_t> swapped_pair_;
  std::vector<T> swapped_slopes_;
};

// The triplets that pairs make.
template <typename T>
TripletSums sweep_products(const TripletTerms& terms, Metric metric, Samples<T>& x, Samples<T>& y,
                           const PairLists& lists, const T* weights) {
  ListedPairs pairs = ListedPairs::of(lists, Negative, x.n, y.n);
  ListedScores<T> scores(x, y, metric, pairs);
  std::vector<int64_t> negatives(x.n);
  for (const int64_t i : lists.anchors_of(Negative)) ++negatives[i];
  int64_t longest = 0;
  for (int64_t i = 0; i < x.n; ++i) longest = std::max(longest, pairs.begin[i + 1] - pairs.begin[i]);
  TripletSums sums{std::vector<double>(x.n), std::vector<double>(x.n)};
  Interruptions interruptions;
  scores.compute();
  interruptions.look();
  T* const s = scores.of_pairs();
  const auto visit = [&](TripletRow<T>& row, int64_t i) {
    const int64_t first = pairs.begin[i], count = pairs.begin[i + 1] - first;
    for (int64_t k = 0; k < count; ++k) row.distances()[k] = -s[pairs.pair[first + k]];
    row.visit(negatives[i], count - negatives[i]);
    sums.losses[i] = row.loss;
    sums.counts[i] = row.count;
    if (!weights) return;
    std::vector<T> slopes(pairs.end[i] - first, T(0));
    for (int64_t k = 0; k < count; ++k) slopes[pairs.pair[first + k] - first] -= weights[i] * row.slopes()[k];
    for (size_t k = 0; k < slopes.size(); ++k) {
      s[first + k] = by_product(metric, slopes[k], s[first + k]);
    }
  };
  parallel_ranges(
      x.n,
      [&](int64_t begin, int64_t end) {
        TripletRow<T> row(terms, longest);
        for (int64_t i = begin; i < end; ++i) visit(row, i);
      },
      pairs.grain(64));
  interruptions.look();
  if (weights) scores.add_gradients();
  return sums;
}

}  // namespace

std::optional<TripletTerms> triplet_terms(const PairLossArguments& args) {
  const bool smooth = args.loss.starts_with("smooth_");
  const std::string name = smooth ? args.loss.substr(7) : args.loss;
  std::optional<Triplets> chosen;
  if (name == "triplet") chosen = Triplets::All;
  if (name == "semihard_triplet") chosen = Triplets::SemiHard;
  if (name == "facenet_triplet") chosen = Triplets::NearestFarther;
  if (!chosen) return {};
  STD_TORCH_CHECK(!args.learned && !args.grad_learned && !args.anchor_scalars && !args.ref_scalars,
                  "triplets have neither parameters that learn nor numbers of rows");
  args.check_params(1);
  return TripletTerms{.margin = args.params[0], .smooth = smooth, .chosen = *chosen};
}

template <typename T>
TripletSums sweep_triplets(const TripletTerms& terms, Metric metric, Samples<T>& anchors, Samples<T>& references,
                           const Relation& relation, const int64_t* self, const T* row_weights) {
  TripletSweep<T> sweep{.terms = terms,
                        .metric = metric,
                        .x = anchors,
                        .y = references,
                        .relation = relation,
                        .self = self,
                        .weights = row_weights};
  sweep.run();
  return std::move(sweep.sums);
}

template <typename T>
TripletSums sweep_listed_triplets(const TripletTerms& given, Metric metric, Samples<T>& anchors, Samples<T>& references,
                                  const PairLists& lists, bool swap, const T* row_weights) {
  const TripletTerms terms{.margin = given.margin, .smooth = given.smooth, .chosen = Triplets::All};
  if (lists.negative_anchors && !swap) {
    return sweep_products<T>(terms, metric, anchors, references, lists, row_weights);
  }
  const auto run = [&](const PairLists& triplets) {
    return ListedTriplets<T>(terms, metric, anchors, references, triplets, swap, row_weights).run();
  };
  return lists.negative_anchors ? run(as_triplets(lists, anchors.n)) : run(lists);
}

template TripletSums sweep_triplets(const TripletTerms&, Metric, Samples<float>&, Samples<float>&, const Relation&,
                                    const int64_t*, const float*);
template TripletSums sweep_triplets(const TripletTerms&, Metric, Samples<double>&, Samples<double>&, const Relation&,
                                    const int64_t*, const double*);
template TripletSums sweep_listed_triplets(const TripletTerms&, Metric, Samples<float>&, Samples<float>&,
                                           const PairLists&, bool, const float*);
template TripletSums sweep_listed_triplets(const TripletTerms&, Metric, Samples<double>&, Samples<double>&,
                                           const PairLists&, bool, const double*);

}  // namespace fastpair
