// Batch norm of x (N, C), float32, optionally followed by swish, and its gradients: see
// ops/cpu/normalization.py.
//
// Each needs one pass over memory: blocks of rows are summed while they are in a core's cache. The
// result does not depend on which thread sums a block, so it is reproducible bit for bit.

#include <cmath>

#include "common.h"

namespace {

struct Rows {
  Index count, channels, per_block;
  explicit Rows(const Array& x) {
    Require(x.dimensions().size() == 2, "an array is not (N, C)");
    count = x.dimensions()[0], channels = x.dimensions()[1];
    // A block fits into a core's cache, because it is summed twice.
    per_block = std::clamp<Index>(32 * 1024 / std::max<Index>(channels, 1), 1, kRowsToSum);
  }
  Index blocks() const { return CeilDiv(count, per_block); }
  Index at(Index block) const { return block * per_block * channels; }
  Index size(Index block) const { return std::min(per_block, count - block * per_block); }
};

// Mean and biased variance of every channel, from those of blocks of rows (Chan et al. 1983).
void Moments(ThreadPool pool, Array x, Result mean, Result var) {
  Rows rows(x);
  Index channels = rows.channels, width = Width(channels);
  RequireVectors(channels, {mean, var});
  static thread_local Buffer kept;
  kept.Reserve(2 * rows.blocks() * width);
  float* parts = kept.data();
  Parallel(pool, rows.blocks(), [&](Index block) {
    const float* from = x.typed_data() + rows.at(block);
    float* means = parts + 2 * block * width;
    float* squares = means + width;
    std::memset(means, 0, 2 * width * sizeof(float));
    Index n = rows.size(block);
    auto load = [&](auto count, Index row, Index c) {
      return LoadPart<count.value>(from + row * channels + c, channels, channels - c);
    };
    SumRows<1>(n, channels, means, width, [&](auto count, Index row, Index c, Vector* sum) {
      sum[0] = load(count, row, c).Sum();
    });
    for (Index c = 0; c < width; c += kLanes) Store(means + c, Load(means + c) / float(n));
    SumRows<1>(n, channels, squares, width, [&](auto count, Index row, Index c, Vector* sum) {
      auto d = load(count, row, c) - Load(means + c);
      sum[0] = (d * d).Sum();
    });
  });
  std::vector<double> total(channels, 0.0), spread(channels, 0.0);
  for (Index block = 0; block < rows.blocks(); ++block) {
    const float* part = parts + 2 * block * width;
    double n = rows.size(block);
#pragma omp simd
    for (Index c = 0; c < channels; ++c) total[c] += n * part[c];
  }
#pragma omp simd
  for (Index c = 0; c < channels; ++c) total[c] /= rows.count;
  for (Index block = 0; block < rows.blocks(); ++block) {
    const float* part = parts + 2 * block * width;
    double n = rows.size(block);
#pragma omp simd
    for (Index c = 0; c < channels; ++c) {
      double d = part[c] - total[c];
      spread[c] += part[width + c] + n * d * d;
    }
  }
#pragma omp simd
  for (Index c = 0; c < channels; ++c) {
    mean.typed_data()[c] = total[c];
    var.typed_data()[c] = spread[c] / rows.count;
  }
}

// The parameters of gain · (x - mean) + bias, padded with zeros to whole registers.
struct Gains {
  Index width;
  Buffer kept;
  float *gain, *mean, *bias;
  Gains(const Array& scale, const Array& bias_, const Array& mean_, const Array& var, float epsilon)
      : width(Width(scale.element_count())), kept(3 * width) {
    gain = kept.data(), mean = gain + width, bias = mean + width;
    for (size_t c = 0; c < scale.element_count(); ++c) {
      gain[c] = scale.typed_data()[c] / std::sqrt(var.typed_data()[c] + epsilon);
      mean[c] = mean_.typed_data()[c];
      bias[c] = bias_.typed_data()[c];
    }
  }
  template <int N>
  Several<N> Centre(const Several<N>& x, Index c) const {
    return x - Load(mean + c);
  }
  template <int N>
  Several<N> Normal(const Several<N>& centred, Index c) const {
    return Load(gain + c) * centred + Load(bias + c);
  }
};

void NormSwish(ThreadPool pool, Array x, Array scale, Array bias, Array mean, Array var, Result y,
               float epsilon) {
  Rows rows(x);
  Index channels = rows.channels;
  RequireVectors(channels, {scale, bias, mean, var});
  Require(HasShape(y, {rows.count, channels}), "the result is not of the shape of x");
  Gains gains(scale, bias, mean, var, epsilon);
  Parallel(pool, rows.blocks(), [&](Index block) {
    const float* p = x.typed_data() + rows.at(block);
    float* to = y.typed_data() + rows.at(block);
    ForRows(rows.size(block), channels, [&](auto n, Index row, Index c) {
      Index at = row * channels + c;
      auto h = gains.Centre(LoadPart<n.value>(p + at, channels, channels - c), c);
      StorePart(to + at, channels, Swish(gains.Normal(h, c)), channels - c);
    });
  });
}

// The gradient with respect to the normalised values: that of the output, multiplied by the
// derivative of swish if there is one.
template <bool kSwish, int N>
Several<N> Inner(const Several<N>& g, Several<N> normal) {
  if (!kSwish) return g;
  normal = Bounded(normal);
  Several<N> gate = Sigmoid(normal);
  return g * (gate * (1.0f + normal * (1.0f - gate)));
}

// With h = x - mean, the reciprocal r of the standard deviation, and the gradient g with respect to
// the normalised values: dbias = sum g, dscale = r sum g h, dx = scale r (g - (dbias + h r dscale) /
// N).
template <bool kSwish>
void NormGrad(ThreadPool pool, Array x, Array y_grad, Array scale, Array bias, Array mean, Array var,
              Result dx, Result dscale, Result dbias, float epsilon) {
  Rows rows(x);
  Index channels = rows.channels;
  RequireVectors(channels, {scale, bias, mean, var, dscale, dbias});
  Require(HasShape(y_grad, {rows.count, channels}) && HasShape(dx, {rows.count, channels}),
          "gradients are not of the shape of x");
  Gains gains(scale, bias, mean, var, epsilon);
  static thread_local Buffer kept;
  kept.Reserve((2 * rows.blocks() + 2) * gains.width);
  float* parts = kept.data();
  Parallel(pool, rows.blocks(), [&](Index block) {
    float* sum = parts + 2 * block * gains.width;
    std::memset(sum, 0, 2 * gains.width * sizeof(float));
    const float* p = x.typed_data() + rows.at(block);
    const float* q = y_grad.typed_data() + rows.at(block);
    SumRows<2>(rows.size(block), channels, sum, gains.width,
               [&](auto n, Index row, Index c, Vector* sums) {
                 Index at = row * channels + c;
                 auto h = gains.Centre(LoadPart<n.value>(p + at, channels, channels - c), c);
                 auto dy = LoadPart<n.value>(q + at, channels, channels - c);
                 auto g = Inner<kSwish>(dy, gains.Normal(h, c));
                 sums[0] = g.Sum();
                 sums[1] = (g * h).Sum();
               });
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
    dbias.typed_data()[c] = sum;
    dscale.typed_data()[c] = products * inverse;
    slope[c] = -gain * inverse * inverse * products / rows.count;
    offset[c] = -gain * sum / rows.count;
  }
  Parallel(pool, rows.blocks(), [&](Index block) {
    const float* p = x.typed_data() + rows.at(block);
    const float* q = y_grad.typed_data() + rows.at(block);
    float* to = dx.typed_data() + rows.at(block);
    ForRows(rows.size(block), channels, [&](auto n, Index row, Index c) {
      Index at = row * channels + c;
      auto h = gains.Centre(LoadPart<n.value>(p + at, channels, channels - c), c);
      auto dy = LoadPart<n.value>(q + at, channels, channels - c);
      auto g = Inner<kSwish>(dy, gains.Normal(h, c));
      auto dx = Load(gains.gain + c) * g + (Load(slope + c) * h + Load(offset + c));
      StorePart(to + at, channels, dx, channels - c);
    });
  });
}

}  // namespace

NVAE_JAX_EXPORT(nvae_jax_moments, Moments)
NVAE_JAX_EXPORT(nvae_jax_norm_swish, NormSwish, "epsilon")
NVAE_JAX_EXPORT(nvae_jax_norm_grad, NormGrad<false>, "epsilon")
NVAE_JAX_EXPORT(nvae_jax_norm_swish_grad, NormGrad<true>, "epsilon")
