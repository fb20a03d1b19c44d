// The sums of batch norm over x (N, C), float32, and its gradients: see ops/normalization.py.
//
// One pass over memory each: blocks of rows are summed while a core's cache has them. Which thread
// sums a block does not matter to the result, so it is the same bits every time.

#include "common.h"

namespace {

struct Rows {
  Index count, channels, per_block;
  explicit Rows(const Array& x) : count(x.dimensions()[0]), channels(x.dimensions()[1]) {
    // Of a size that a core's cache keeps between the two sums over it.
    per_block = std::max<Index>(1, 32 * 1024 / std::max<Index>(channels, 1));
  }
  Index blocks() const { return CeilDiv(count, per_block); }
  Index at(Index block) const { return block * per_block * channels; }
  Index size(Index block) const { return std::min(per_block, count - block * per_block); }
};

// Mean and biased variance of every channel, from those of blocks of rows (Chan et al. 1983).
ffi::Error Moments(ffi::ThreadPool pool, Array x, Result mean, Result var) {
  Rows rows(x);
  Index channels = rows.channels;
  static thread_local Buffer kept;
  kept.Reserve(2 * rows.blocks() * channels);
  float* parts = kept.data();
  Parallel(pool, rows.blocks(), [&](Index block) {
    const float* from = x.typed_data() + rows.at(block);
    float* __restrict sum = parts + 2 * block * channels;
    float* __restrict squares = sum + channels;
    std::memset(sum, 0, 2 * channels * sizeof(float));
    Index n = rows.size(block), i = 0;
    for (; i + 4 <= n; i += 4) {
      const float* __restrict p = from + i * channels;
#pragma omp simd
      for (Index c = 0; c < channels; ++c) {
        sum[c] += (p[c] + p[c + channels]) + (p[c + 2 * channels] + p[c + 3 * channels]);
      }
    }
    for (; i < n; ++i) {
      const float* __restrict p = from + i * channels;
#pragma omp simd
      for (Index c = 0; c < channels; ++c) sum[c] += p[c];
    }
#pragma omp simd
    for (Index c = 0; c < channels; ++c) sum[c] /= n;
    for (i = 0; i + 4 <= n; i += 4) {
      const float* __restrict p = from + i * channels;
#pragma omp simd
      for (Index c = 0; c < channels; ++c) {
        float m = sum[c];
        float d0 = p[c] - m, d1 = p[c + channels] - m;
        float d2 = p[c + 2 * channels] - m, d3 = p[c + 3 * channels] - m;
        squares[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
      }
    }
    for (; i < n; ++i) {
      const float* __restrict p = from + i * channels;
#pragma omp simd
      for (Index c = 0; c < channels; ++c) squares[c] += (p[c] - sum[c]) * (p[c] - sum[c]);
    }
  });
  std::vector<double> total(channels, 0.0), spread(channels, 0.0);
  for (Index block = 0; block < rows.blocks(); ++block) {
    const float* part = parts + 2 * block * channels;
    double n = rows.size(block);
#pragma omp simd
    for (Index c = 0; c < channels; ++c) total[c] += n * part[c];
  }
#pragma omp simd
  for (Index c = 0; c < channels; ++c) total[c] /= rows.count;
  for (Index block = 0; block < rows.blocks(); ++block) {
    const float* part = parts + 2 * block * channels;
    double n = rows.size(block);
#pragma omp simd
    for (Index c = 0; c < channels; ++c) {
      double d = part[c] - total[c];
      spread[c] += part[channels + c] + n * d * d;
    }
  }
#pragma omp simd
  for (Index c = 0; c < channels; ++c) {
    mean->typed_data()[c] = total[c];
    var->typed_data()[c] = spread[c] / rows.count;
  }
  return ffi::Error::Success();
}

// With h = x - mean and r = inverse, the reciprocal of the standard deviation:
// dbias = sum g, dscale = r sum g h, dx = scale r (g - (dbias + h r dscale) / N).
ffi::Error NormGrad(ffi::ThreadPool pool, Array x, Array g, Array scale, Array mean, Array inverse,
                    Result dx, Result dscale, Result dbias) {
  Rows rows(x);
  Index channels = rows.channels;
  static thread_local Buffer kept;
  kept.Reserve((2 * rows.blocks() + 3) * channels);
  float* parts = kept.data();
  Parallel(pool, rows.blocks(), [&](Index block) {
    const float* __restrict m = mean.typed_data();
    float* __restrict sum = parts + 2 * block * channels;
    float* __restrict products = sum + channels;
    std::memset(sum, 0, 2 * channels * sizeof(float));
    Index n = rows.size(block), i = 0;
    for (; i + 2 <= n; i += 2) {
      const float* __restrict p = x.typed_data() + rows.at(block) + i * channels;
      const float* __restrict q = g.typed_data() + rows.at(block) + i * channels;
#pragma omp simd
      for (Index c = 0; c < channels; ++c) {
        float g0 = q[c], g1 = q[c + channels];
        sum[c] += g0 + g1;
        products[c] += g0 * (p[c] - m[c]) + g1 * (p[c + channels] - m[c]);
      }
    }
    for (; i < n; ++i) {
      const float* __restrict p = x.typed_data() + rows.at(block) + i * channels;
      const float* __restrict q = g.typed_data() + rows.at(block) + i * channels;
#pragma omp simd
      for (Index c = 0; c < channels; ++c) {
        sum[c] += q[c];
        products[c] += q[c] * (p[c] - m[c]);
      }
    }
  });
  // dx = gain g + slope x + offset
  float* gain = parts + 2 * rows.blocks() * channels;
  float* slope = gain + channels;
  float* offset = slope + channels;
  for (Index c = 0; c < channels; ++c) {
    double sum = 0, products = 0, r = inverse.typed_data()[c];
    for (Index block = 0; block < rows.blocks(); ++block) {
      sum += parts[2 * block * channels + c];
      products += parts[(2 * block + 1) * channels + c];
    }
    double a = scale.typed_data()[c] * r, b = -a * r * r * products / rows.count;
    dbias->typed_data()[c] = sum;
    dscale->typed_data()[c] = products * r;
    gain[c] = a;
    slope[c] = b;
    offset[c] = -a * sum / rows.count;
  }
  Parallel(pool, rows.blocks(), [&](Index block) {
    const float* __restrict m = mean.typed_data();
    const float* __restrict a = gain;
    const float* __restrict b = slope;
    const float* __restrict o = offset;
    for (Index i = 0; i < rows.size(block); ++i) {
      const float* __restrict p = x.typed_data() + rows.at(block) + i * channels;
      const float* __restrict q = g.typed_data() + rows.at(block) + i * channels;
      float* __restrict to = dx->typed_data() + rows.at(block) + i * channels;
#pragma omp simd
      for (Index c = 0; c < channels; ++c) to[c] = a[c] * q[c] + (b[c] * (p[c] - m[c]) + o[c]);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    nvae_jax_moments, Moments,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(nvae_jax_norm_grad, NormGrad,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>());
