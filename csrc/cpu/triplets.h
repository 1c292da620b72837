// Triplet losses over all triplets, all semi-hard ones, or one for each positive pair.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cpu/listed_pairs.h"
#include "cpu/relation.h"
#include "cpu/samples.h"

namespace fastpair {

// Which triplets with the positive at distance p and the negative at distance n count. SemiHard: those with
// p < n < p + margin. NearestFarther: for each positive the one with the nearest negative with p < n or, where there is
// none, with the farthest negative; all of these count in the mean, for the others those whose loss is not zero. A
// distance is the negative of a closeness.
enum class Triplets { All, SemiHard, NearestFarther };

// A triplet has the loss [p - n + margin]_+, or log(1 + exp(p - n + margin)) if `smooth`.
struct TripletTerms {
  double margin;
  bool smooth;
  Triplets chosen;
};

// Empty unless the loss of that name is one over triplets.
std::optional<TripletTerms> triplet_terms(const PairLossArguments& args);

// The sum over the triplets of each anchor, and how many of them count in the mean; anchors in the order of the
// samples.
struct TripletSums {
  std::vector<double> losses, counts;
};

// Visits the triplets of every anchor. self[i] is the place of the anchor's own copy among the references, or -1; null:
// there is none. Unless row_weights is null, the anchors' gradients, times their weights, are added to those of the
// samples that have them.
template <typename T>
TripletSums sweep_triplets(const TripletTerms& terms, Metric metric, Samples<T>& anchors, Samples<T>& references,
                           const Relation& relation, const int64_t* self, const T* row_weights);

// The same for triplets that lists name: triplets themselves, or pairs, of which each positive makes triplets with each
// negative of its anchor. With `swap`, the negative's distance is the smaller of that from the anchor and that from the
// positive. Triplets are visited as often as they are listed, all of them, whatever `terms.chosen` says.
template <typename T>
TripletSums sweep_listed_triplets(const TripletTerms& terms, Metric metric, Samples<T>& anchors, Samples<T>& references,
                                  const PairLists& lists, bool swap, const T* row_weights);

}  // namespace fastpair
