// The largest singular values of many matrices by power iteration: see ops/cpu/spectral.py.
//
// A matrix is read from memory once, whatever the number of rounds: a core's cache has it after.

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

// `Matrices`, whose vectors are where `places` and `starts` say.
std::vector<Matrix> RequireMatrices(const ffi::RemainingArgs& arrays, Index n,
                                    ffi::Span<const int64_t> places,
                                    ffi::Span<const int64_t> starts, Index vectors, Index rows) {
  Require(static_cast<Index>(starts.size()) == n && static_cast<Index>(arrays.size()) == n + vectors,
          "kernels and vectors are not as many as their places");
  auto matrices = Matrices(arrays, n);
  for (const Matrix& m : matrices) {
    Index place = places[m.array], start = starts[m.array] + m.index * m.columns;
    Require(place >= 0 && place < vectors && starts[m.array] >= 0, "a place is none");
    Index size = At(arrays, n + place).element_count();
    Require(start + m.columns <= size, "a vector is not in its place");
  }
  Index total = matrices.empty() ? 0 : matrices.back().first_row + matrices.back().rows;
  Require(rows == total, "the left vectors are not as long as the matrices");
  return matrices;
}

// `arrays` are n kernels and then the vectors to start from; `results` are the new vectors. Those of
// kernel i start at entry starts[i] of array places[i].
ffi::Error Spectral(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> rounds, ffi::RemainingArgs arrays,
                    Result penalty, Result lefts, ffi::RemainingRets results,
                    ffi::Span<const int64_t> places, ffi::Span<const int64_t> starts) {
  Index n = places.size(), count = rounds.element_count() == 1 ? *rounds.typed_data() : 0;
  Require(count > 0, "rounds are not one positive number");
  auto matrices = RequireMatrices(arrays, n, places, starts, results.size(), lefts->element_count());
  Require(HasSize(*penalty, 1), "the penalty is not one number");
  for (Index i = 0; i < static_cast<Index>(results.size()); ++i) {
    Require(HasSize(At(results, i), At(arrays, n + i).element_count()), "vectors change their size");
  }
  std::vector<float> values(matrices.size());
  Parallel(pool, matrices.size(), [&](Index task) {
    const Matrix& m = matrices[task];
    const float* data = At(arrays, m.array).typed_data() + m.offset;
    Index place = places[m.array], start = starts[m.array] + m.index * m.columns;
    const float* first = At(arrays, n + place).typed_data() + start;
    float* right = At(results, place).typed_data() + start;
    float* left = lefts->typed_data() + m.first_row;
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
  *penalty->typed_data() = sum;
  return ffi::Error::Success();
}

// Adds scale · left ⊗ right, the gradient of u'Wv, to the gradients of the kernels. `arrays` are n
// of those and the right vectors; `results` may be where the gradients are.
ffi::Error SpectralGrad(ffi::ThreadPool pool, Array scale, Array lefts, ffi::RemainingArgs arrays,
                        ffi::RemainingRets results, ffi::Span<const int64_t> places,
                        ffi::Span<const int64_t> starts) {
  Index n = places.size();
  auto matrices =
      RequireMatrices(arrays, n, places, starts, arrays.size() - n, lefts.element_count());
  Require(HasSize(scale, 1) && static_cast<Index>(results.size()) == n, "gradients are missing");
  for (Index i = 0; i < n; ++i) {
    Require(HasSize(At(results, i), At(arrays, i).element_count()), "gradients change their size");
  }
  Parallel(pool, matrices.size(), [&](Index task) {
    const Matrix& m = matrices[task];
    const float* from = At(arrays, m.array).typed_data() + m.offset;
    Index start = starts[m.array] + m.index * m.columns;
    const float* right = At(arrays, n + places[m.array]).typed_data() + start;
    float* to = At(results, m.array).typed_data() + m.offset;
    for (Index i = 0; i < m.rows; ++i, from += m.columns, to += m.columns) {
      float left = *scale.typed_data() * lefts.typed_data()[m.first_row + i];
#pragma omp simd
      for (Index j = 0; j < m.columns; ++j) to[j] = from[j] + left * right[j];
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(nvae_jax_spectral, Guarded<Spectral>::Call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("places")
                                  .Attr<ffi::Span<const int64_t>>("starts"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(nvae_jax_spectral_grad, Guarded<SpectralGrad>::Call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("places")
                                  .Attr<ffi::Span<const int64_t>>("starts"));
