// The largest singular values of many matrices by power iteration: see ops/cpu/spectral.py.
//
// A matrix is read from memory once for all rounds, and then from a core's cache.

#include <cmath>

#include "common.h"

namespace {

float Norm(const float* p, Index count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index i = 0; i < count; ++i) sum += p[i] * p[i];
  return std::sqrt(sum);
}

// `image` = W'W `right` / |W `right`|, and `left` = W `right` / |W `right`|.
void Round(const float* data, Index rows, Index columns, const float* __restrict right,
           float* __restrict left, float* __restrict image) {
  std::memset(image, 0, columns * sizeof(float));
  for (Index i = 0; i < rows; ++i) {
    const float* __restrict row = data + i * columns;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (Index j = 0; j < columns; ++j) dot += row[j] * right[j];
    left[i] = dot;
#pragma omp simd
    for (Index j = 0; j < columns; ++j) image[j] += dot * row[j];
  }
  float scale = 1 / (Norm(left, rows) + 1e-12f);
  for (Index i = 0; i < rows; ++i) left[i] *= scale;
  for (Index j = 0; j < columns; ++j) image[j] *= scale;
}

// `Matrices` with the positions of their vectors, `places` and `starts`.
std::vector<Matrix> RequireMatrices(const Arrays& arrays, Index n, Indices places,
                                    Indices starts, Index vectors, Index rows) {
  Require(static_cast<Index>(starts.size()) == n && static_cast<Index>(arrays.size()) == n + vectors,
          "kernels and vectors are not as many as their places");
  auto matrices = Matrices(arrays, n);
  for (const Matrix& m : matrices) {
    Index place = places[m.array], start = starts[m.array] + m.index * m.columns;
    Require(place >= 0 && place < vectors && starts[m.array] >= 0, "a place is none");
    Index size = arrays[n + place].element_count();
    Require(start + m.columns <= size, "a vector is not in its place");
  }
  Index total = matrices.empty() ? 0 : matrices.back().first_row + matrices.back().rows;
  Require(rows == total, "the left vectors are not as long as the matrices");
  return matrices;
}

// `arrays` are n kernels, followed by the initial vectors; `results` are the new vectors. Those of
// kernel i start at entry starts[i] of array places[i].
void Spectral(ThreadPool pool, Counts rounds, Arrays arrays, Result penalty, Result lefts,
              Results results, Indices places, Indices starts) {
  Index n = places.size(), count = rounds.element_count() == 1 ? *rounds.typed_data() : 0;
  Require(count > 0, "rounds are not one positive number");
  auto matrices = RequireMatrices(arrays, n, places, starts, results.size(), lefts.element_count());
  Require(HasSize(penalty, 1), "the penalty is not one number");
  for (Index i = 0; i < static_cast<Index>(results.size()); ++i) {
    Require(HasSize(results[i], arrays[n + i].element_count()), "vectors change their size");
  }
  std::vector<float> values(matrices.size());
  Parallel(pool, matrices.size(), [&](Index task) {
    const Matrix& m = matrices[task];
    const float* data = arrays[m.array].typed_data() + m.offset;
    Index place = places[m.array], start = starts[m.array] + m.index * m.columns;
    const float* first = arrays[n + place].typed_data() + start;
    float* right = results[place].typed_data() + start;
    float* left = lefts.typed_data() + m.first_row;
    static thread_local Buffer kept;
    kept.Reserve(m.columns);
    float* image = kept.data();
    if (right != first) std::memcpy(right, first, m.columns * sizeof(float));
    for (Index round = 0; round < count; ++round) {
      Round(data, m.rows, m.columns, right, left, image);
      float value = Norm(image, m.columns), scale = 1 / (value + 1e-12f);
      for (Index j = 0; j < m.columns; ++j) right[j] = image[j] * scale;
      values[task] = value * (value * scale);
    }
  });
  double sum = 0;
  for (float value : values) sum += value;
  *penalty.typed_data() = sum;
}

// Adds scale · left ⊗ right, the gradient of u'Wv, to the gradients of the kernels. `arrays` are n
// gradients and the right vectors; `results` can share the memory of the gradients.
void SpectralGrad(ThreadPool pool, Array scale, Array lefts, Arrays arrays, Results results,
                  Indices places, Indices starts) {
  Index n = places.size();
  auto matrices =
      RequireMatrices(arrays, n, places, starts, arrays.size() - n, lefts.element_count());
  Require(HasSize(scale, 1) && static_cast<Index>(results.size()) == n, "gradients are missing");
  for (Index i = 0; i < n; ++i) {
    Require(HasSize(results[i], arrays[i].element_count()), "gradients change their size");
  }
  Parallel(pool, matrices.size(), [&](Index task) {
    const Matrix& m = matrices[task];
    const float* from = arrays[m.array].typed_data() + m.offset;
    Index start = starts[m.array] + m.index * m.columns;
    const float* right = arrays[n + places[m.array]].typed_data() + start;
    float* to = results[m.array].typed_data() + m.offset;
    for (Index i = 0; i < m.rows; ++i, from += m.columns, to += m.columns) {
      float left = *scale.typed_data() * lefts.typed_data()[m.first_row + i];
#pragma omp simd
      for (Index j = 0; j < m.columns; ++j) to[j] = from[j] + left * right[j];
    }
  });
}

}  // namespace

NVAE_JAX_EXPORT(nvae_jax_spectral, Spectral, "places", "starts")
NVAE_JAX_EXPORT(nvae_jax_spectral_grad, SpectralGrad, "places", "starts")
