// One step of Adamax over all parameters, and the norm of all their gradients: see ops/cpu/optimizer.py.
//
// One call for all arrays instead of one program per array: there are many, and most are small.

#include <cmath>

#include "common.h"

namespace {

void Norm(ThreadPool pool, Arrays arrays, Result norm) {
  Require(HasSize(norm, 1), "the norm is not one number");
  std::vector<const float*> data;
  std::vector<Index> sizes;
  for (size_t i = 0; i < arrays.size(); ++i) {
    Array array = arrays[i];
    data.push_back(array.typed_data());
    sizes.push_back(array.element_count());
  }
  auto tasks = Tasks(sizes);
  std::vector<double> sums(tasks.size());
  Parallel(pool, tasks.size(), [&](Index task) {
    double total = 0;
    for (const Piece& piece : tasks[task]) {
      const float* p = data[piece.array] + piece.begin;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (Index i = 0; i < piece.count; ++i) sum += p[i] * p[i];
      total += sum;
    }
    sums[task] = total;
  });
  double total = 0;
  for (double sum : sums) total += sum;
  *norm.typed_data() = std::sqrt(total);
}

struct Rates {
  float first, second, epsilon, decay;
};

void Update(const Rates& rates, float factor, float step, Index count, const float* gradient,
            const float* old_param, const float* old_mean, const float* old_largest, float* param,
            float* mean, float* largest) {
  float b1 = rates.first, b2 = rates.second, epsilon = rates.epsilon, decay = rates.decay;
#pragma omp simd
  for (Index i = 0; i < count; ++i) {
    float p = old_param[i];
    float g = factor * gradient[i] + decay * p;
    float m = b1 * old_mean[i] + (1 - b1) * g;
    float size = std::fabs(g) + epsilon, kept = b2 * old_largest[i];
    float u = size > kept ? size : kept;
    mean[i] = m;
    largest[i] = u;
    param[i] = p + step * (m / u);
  }
}

void RequireStep(const Array& scalars, const Arrays& arrays, const Results& results, Indices places,
                 Indices starts, Index k) {
  Index n = places.size();
  Require(HasSize(scalars, 3), "the numbers of a step are not three");
  Require(static_cast<Index>(starts.size()) == n && k >= 0 &&
              static_cast<Index>(arrays.size()) == 2 * (n + k) &&
              static_cast<Index>(results.size()) == n + 2 * k,
          "arrays are missing");
  for (Index i = 0; i < n + 2 * k; ++i) {
    Require(HasSize(results[i], arrays[n + i].element_count()), "arrays change their size");
  }
  for (Index i = 0; i < n; ++i) {
    Index size = arrays[n + i].element_count(), end = starts[i] + size;
    Require(HasSize(arrays[i], size), "a gradient is not of the size of its parameter");
    Require(places[i] >= 0 && places[i] < k && starts[i] >= 0, "a place is none");
    for (Index moments : {2 * n + places[i], 2 * n + k + places[i]}) {
      Require(end <= static_cast<Index>(arrays[moments].element_count()),
              "moments are not in their place");
    }
  }
}

// `scalars` are: whether to take the step, and the factors of the gradients and of m / u. `arrays` are
// n gradients, n parameters, k arrays of first moments and k of infinity moments; the moments of
// parameter i start at entry starts[i] of array places[i]. `results` are the new parameters and
// moments, which can share the memory of the old ones.
void Adamax(ThreadPool pool, Array scalars, Arrays arrays, Results results, Indices places,
            Indices starts, float b1, float b2, float epsilon, float decay) {
  Index n = places.size(), k = (static_cast<Index>(arrays.size()) - 2 * n) / 2;
  RequireStep(scalars, arrays, results, places, starts, k);
  const float* scalar = scalars.typed_data();
  auto from = [&](Index i) { return arrays[i].typed_data(); };
  auto to = [&](Index i) { return results[i].typed_data(); };
  std::vector<Index> sizes;
  for (Index i = 0; i < n; ++i) sizes.push_back(arrays[i].element_count());
  auto tasks = Tasks(sizes);
  Rates rates{b1, b2, epsilon, decay};
  Parallel(pool, tasks.size(), [&](Index task) {
    for (const Piece& piece : tasks[task]) {
      Index i = piece.array, moment = starts[i] + piece.begin, place = places[i];
      const float* old[] = {from(n + i) + piece.begin, from(2 * n + place) + moment,
                            from(2 * n + k + place) + moment};
      float* updated[] = {to(i) + piece.begin, to(n + place) + moment, to(n + k + place) + moment};
      if (scalar[0] != 0) {
        Update(rates, scalar[1], scalar[2], piece.count, from(i) + piece.begin, old[0], old[1],
               old[2], updated[0], updated[1], updated[2]);
        continue;
      }
      for (int j = 0; j < 3; ++j) {
        if (updated[j] != old[j]) std::memcpy(updated[j], old[j], piece.count * sizeof(float));
      }
    }
  });
}

}  // namespace

NVAE_JAX_EXPORT(nvae_jax_norm, Norm)
NVAE_JAX_EXPORT(nvae_jax_adamax, Adamax, "places", "starts", "b1", "b2", "epsilon", "decay")
