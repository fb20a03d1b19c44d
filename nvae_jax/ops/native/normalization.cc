// The sums of batch norm over x (N, C), float32, its gradients, and swish behind it: see
// ops/normalization.py.
//
// One pass over memory each: blocks of rows are summed while a core's cache has them. Which thread
// sums a block does not matter to the result, so it is the same bits every time.

#include <cmath>

#include "common.h"

namespace {

struct Rows {
  Index count, channels, per_block;
  explicit Rows(const Array& x) : count(x.dimensions()[0]), channels(x.dimensions()[1]) {
    // Of a size that a core's cache keeps between the two sums over it, and no longer than sums in
    // float32 can be with hardly any rounding.
    per_block = std::clamp<Index>(32 * 1024 / std::max<Index>(channels, 1), 1, 256);
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

// What is normalised as gain · (x - mean) + bias: vectors with zeros behind, to whole registers.
struct Gains {
  Index width;
  Buffer kept;
  float *gain, *mean, *bias;
  Gains(const Array& scale, const Array& bias_, const Array& mean_, const Array& var, float epsilon)
      : width(CeilDiv(scale.element_count(), kLanes) * kLanes), kept(3 * width) {
    gain = kept.data(), mean = gain + width, bias = mean + width;
    for (size_t c = 0; c < scale.element_count(); ++c) {
      gain[c] = scale.typed_data()[c] / std::sqrt(var.typed_data()[c] + epsilon);
      mean[c] = mean_.typed_data()[c];
      bias[c] = bias_.typed_data()[c];
    }
  }
  Vector Centre(Vector x, Index c) const { return x - Load(mean + c); }
  Vector Normal(Vector centred, Index c) const { return Load(gain + c) * centred + Load(bias + c); }
};

ffi::Error NormSwish(ffi::ThreadPool pool, Array x, Array scale, Array bias, Array mean, Array var,
                     Result y, float epsilon) {
  Rows rows(x);
  Gains gains(scale, bias, mean, var, epsilon);
  Parallel(pool, rows.blocks(), [&](Index block) {
    const float* p = x.typed_data() + rows.at(block);
    float* to = y->typed_data() + rows.at(block);
    for (Index i = 0; i < rows.size(block); ++i, p += rows.channels, to += rows.channels) {
      for (Index c = 0; c < rows.channels; c += kLanes) {
        Index valid = rows.channels - c;
        Vector h = gains.Centre(LoadPart(p + c, valid), c);
        StorePart(to + c, Swish(gains.Normal(h, c)), valid);
      }
    }
  });
  return ffi::Error::Success();
}

// The gradient of what is normalised: that of the output, or what swish makes of it.
template <bool kSwish>
inline Vector Inner(Vector g, Vector normal) {
  if (!kSwish) return g;
  normal = Bounded(normal);
  Vector gate = Sigmoid(normal);
  return g * (gate * (1.0f + normal * (1.0f - gate)));
}

// With h = x - mean, r the reciprocal of the standard deviation and g the gradient of what is
// normalised: dbias = sum g, dscale = r sum g h, dx = scale r (g - (dbias + h r dscale) / N).
template <bool kSwish>
ffi::Error NormGrad(ffi::ThreadPool pool, Array x, Array y_grad, Array scale, Array bias,
                    Array mean, Array var, Result dx, Result dscale, Result dbias, float epsilon) {
  Rows rows(x);
  Index channels = rows.channels;
  Gains gains(scale, bias, mean, var, epsilon);
  static thread_local Buffer kept;
  kept.Reserve((2 * rows.blocks() + 2) * gains.width);
  float* parts = kept.data();
  Parallel(pool, rows.blocks(), [&](Index block) {
    float* sum = parts + 2 * block * gains.width;
    float* products = sum + gains.width;
    std::memset(sum, 0, 2 * gains.width * sizeof(float));
    Index n = rows.size(block);
    for (Index i = 0; i < n; i += 4) {
      const float* p = x.typed_data() + rows.at(block) + i * channels;
      const float* q = y_grad.typed_data() + rows.at(block) + i * channels;
      Index last = std::min<Index>(4, n - i) * channels;
      for (Index c = 0; c < channels; c += kLanes) {
        Index valid = channels - c;
        Vector s = {}, t = {};  // of four rows first: fewer roundings of the long sums
        for (Index j = c; j < last; j += channels) {
          Vector h = gains.Centre(LoadPart(p + j, valid), c);
          Vector g = Inner<kSwish>(LoadPart(q + j, valid), gains.Normal(h, c));
          s += g;
          t += g * h;
        }
        Store(sum + c, Load(sum + c) + s);
        Store(products + c, Load(products + c) + t);
      }
    }
  });
  // dx = gain g + slope h + offset
  float* slope = parts + 2 * rows.blocks() * gains.width;
  float* offset = slope + gains.width;
  for (Index c = 0; c < channels; ++c) {
    double sum = 0, products = 0, inverse = 1 / std::sqrt(var.typed_data()[c] + epsilon);
    for (Index block = 0; block < rows.blocks(); ++block) {
      sum += parts[2 * block * gains.width + c];
      products += parts[(2 * block + 1) * gains.width + c];
    }
    double gain = scale.typed_data()[c] * inverse;
    dbias->typed_data()[c] = sum;
    dscale->typed_data()[c] = products * inverse;
    slope[c] = -gain * inverse * inverse * products / rows.count;
    offset[c] = -gain * sum / rows.count;
  }
  Parallel(pool, rows.blocks(), [&](Index block) {
    for (Index i = 0; i < rows.size(block); ++i) {
      const float* p = x.typed_data() + rows.at(block) + i * channels;
      const float* q = y_grad.typed_data() + rows.at(block) + i * channels;
      float* to = dx->typed_data() + rows.at(block) + i * channels;
      for (Index c = 0; c < channels; c += kLanes) {
        Index valid = channels - c;
        Vector h = gains.Centre(LoadPart(p + c, valid), c);
        Vector g = Inner<kSwish>(LoadPart(q + c, valid), gains.Normal(h, c));
        StorePart(to + c, Load(gains.gain + c) * g + (Load(slope + c) * h + Load(offset + c)),
                  valid);
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace

#define NVAE_JAX_EXPORT_NORM_GRAD(name, function)           \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,             \
                                ffi::Ffi::Bind()            \
                                    .Ctx<ffi::ThreadPool>() \
                                    .Arg<Array>()           \
                                    .Arg<Array>()           \
                                    .Arg<Array>()           \
                                    .Arg<Array>()           \
                                    .Arg<Array>()           \
                                    .Arg<Array>()           \
                                    .Ret<Array>()           \
                                    .Ret<Array>()           \
                                    .Ret<Array>()           \
                                    .Attr<float>("epsilon"))

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    nvae_jax_moments, Moments,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(nvae_jax_norm_swish, NormSwish,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<float>("epsilon"));
NVAE_JAX_EXPORT_NORM_GRAD(nvae_jax_norm_grad, NormGrad<false>);
NVAE_JAX_EXPORT_NORM_GRAD(nvae_jax_norm_swish_grad, NormGrad<true>);
