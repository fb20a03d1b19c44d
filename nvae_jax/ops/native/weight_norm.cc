// Weight normalisation of many kernels at once, and its gradients: see ops/weight_norm.py.

#include <cmath>

#include "common.h"

namespace {

constexpr float kEpsilon = 1e-5f;  // added to a norm

// Sums over the rows of a (rows, columns) and b of products of their entries.
void Products(const float* __restrict a, const float* __restrict b, Index rows, Index columns,
              float* __restrict sums) {
  std::memset(sums, 0, columns * sizeof(float));
  for (Index i = 0; i < rows; ++i, a += columns, b += columns) {
#pragma omp simd
    for (Index j = 0; j < columns; ++j) sums[j] += a[j] * b[j];
  }
}

// exp(log_scale) · v / (|v| + epsilon). `arrays` are n kernels v and n log-scales.
ffi::Error WeightNorm(ffi::ThreadPool pool, ffi::RemainingArgs arrays, ffi::RemainingRets results) {
  Index n = results.size();
  auto matrices = Matrices(arrays, n);
  Parallel(pool, matrices.size(), [&](Index task) {
    const Matrix& m = matrices[task];
    const float* v = (*arrays.get<Array>(m.array)).typed_data() + m.offset;
    const float* log_scale =
        (*arrays.get<Array>(n + m.array)).typed_data() + m.index * m.columns;
    float* to = (*results.get<Array>(m.array))->typed_data() + m.offset;
    std::vector<float> gain(m.columns);
    Products(v, v, m.rows, m.columns, gain.data());
    for (Index j = 0; j < m.columns; ++j) {
      gain[j] = std::exp(log_scale[j]) / (std::sqrt(gain[j]) + kEpsilon);
    }
    for (Index i = 0; i < m.rows; ++i, v += m.columns, to += m.columns) {
#pragma omp simd
      for (Index j = 0; j < m.columns; ++j) to[j] = gain[j] * v[j];
    }
  });
  return ffi::Error::Success();
}

// With s = exp(log_scale) / (|v| + epsilon) and d = sum g v: the gradients s g - s d v / ((|v| +
// epsilon) |v|) and s d. `arrays` are n kernels, log-scales and gradients g, `results` those for
// kernels and log-scales; the former may be where the g are.
ffi::Error WeightNormGrad(ffi::ThreadPool pool, ffi::RemainingArgs arrays,
                          ffi::RemainingRets results) {
  Index n = results.size() / 2;
  auto matrices = Matrices(arrays, n);
  Parallel(pool, matrices.size(), [&](Index task) {
    const Matrix& m = matrices[task];
    Index channels = m.index * m.columns;
    const float* v = (*arrays.get<Array>(m.array)).typed_data() + m.offset;
    const float* log_scale = (*arrays.get<Array>(n + m.array)).typed_data() + channels;
    const float* g = (*arrays.get<Array>(2 * n + m.array)).typed_data() + m.offset;
    float* v_grad = (*results.get<Array>(m.array))->typed_data() + m.offset;
    float* log_scale_grad = (*results.get<Array>(n + m.array))->typed_data() + channels;
    std::vector<float> gain(m.columns), slope(m.columns);
    Products(v, v, m.rows, m.columns, gain.data());
    Products(g, v, m.rows, m.columns, slope.data());
    for (Index j = 0; j < m.columns; ++j) {
      float norm = std::sqrt(gain[j]), product = slope[j];
      gain[j] = std::exp(log_scale[j]) / (norm + kEpsilon);
      log_scale_grad[j] = gain[j] * product;
      slope[j] = norm > 0 ? -gain[j] * product / ((norm + kEpsilon) * norm) : 0;
    }
    for (Index i = 0; i < m.rows; ++i, v += m.columns, g += m.columns, v_grad += m.columns) {
#pragma omp simd
      for (Index j = 0; j < m.columns; ++j) v_grad[j] = gain[j] * g[j] + slope[j] * v[j];
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    nvae_jax_weight_norm, WeightNorm,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    nvae_jax_weight_norm_grad, WeightNormGrad,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets());
