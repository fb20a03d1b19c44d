// The gate of squeeze and excitation, and its gradients: see ops/squeeze_excitation.py.
//
// Matrix products as small as these cost more to begin than to compute.

#include "common.h"

namespace {

struct Sizes {
  Index batch, channels, hidden;
  Sizes(const Array& means, const Array& reduce)
      : batch(means.dimensions()[0]),
        channels(means.dimensions()[1]),
        hidden(reduce.dimensions()[1]) {}
};

// to[j] += factor · from[j]
void Add(float factor, const float* __restrict from, Index count, float* __restrict to) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) to[j] += factor * from[j];
}

float Dot(const float* a, const float* b, Index count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < count; ++j) sum += a[j] * b[j];
  return sum;
}

// From means (B, C) and kernels (C, R) and (R, C): the hidden layer (B, R) and the gate (B, C).
ffi::Error Gate(ffi::ThreadPool pool, Array means, Array reduce, Array reduce_bias, Array expand,
                Array expand_bias, Result hidden, Result gate) {
  Sizes size(means, reduce);
  Parallel(pool, size.batch, [&](Index b) {
    const float* m = means.typed_data() + b * size.channels;
    float* h = hidden->typed_data() + b * size.hidden;
    std::memcpy(h, reduce_bias.typed_data(), size.hidden * sizeof(float));
    for (Index c = 0; c < size.channels; ++c) {
      Add(m[c], reduce.typed_data() + c * size.hidden, size.hidden, h);
    }
    float* y = gate->typed_data() + b * size.channels;
    std::memcpy(y, expand_bias.typed_data(), size.channels * sizeof(float));
    for (Index r = 0; r < size.hidden; ++r) {
      h[r] = h[r] < 0 ? 0 : h[r];
      Add(h[r], expand.typed_data() + r * size.channels, size.channels, y);
    }
    for (Index c = 0; c < size.channels; c += kLanes) {
      Index valid = size.channels - c;
      StorePart(y + c, 0, Sigmoid(Bounded(LoadPart<1>(y + c, 0, valid))), valid);
    }
  });
  return ffi::Error::Success();
}

ffi::Error GateGrad(ffi::ThreadPool pool, Array means, Array reduce, Array expand, Array hidden,
                    Array gate, Array gate_grad, Result means_grad, Result reduce_grad,
                    Result reduce_bias_grad, Result expand_grad, Result expand_bias_grad) {
  Sizes size(means, reduce);
  static thread_local Buffer kept;
  kept.Reserve(size.batch * (size.channels + size.hidden));
  float* outer = kept.data();  // gradients ahead of the sigmoid (B, C), and of the ReLU (B, R)
  float* inner = outer + size.batch * size.channels;
  Parallel(pool, size.batch, [&](Index b) {
    const float* y = gate.typed_data() + b * size.channels;
    const float* g = gate_grad.typed_data() + b * size.channels;
    const float* h = hidden.typed_data() + b * size.hidden;
    float* o = outer + b * size.channels;
    float* n = inner + b * size.hidden;
#pragma omp simd
    for (Index c = 0; c < size.channels; ++c) o[c] = g[c] * y[c] * (1 - y[c]);
    for (Index r = 0; r < size.hidden; ++r) {
      const float* row = expand.typed_data() + r * size.channels;
      n[r] = h[r] > 0 ? Dot(o, row, size.channels) : 0;
    }
    float* m = means_grad->typed_data() + b * size.channels;
    for (Index c = 0; c < size.channels; ++c) {
      m[c] = Dot(n, reduce.typed_data() + c * size.hidden, size.hidden);
    }
  });
  // Of the kernels: a task has some of the hidden units, and as large a part of the channels.
  Parallel(pool, size.hidden, [&](Index r) {
    float* row = expand_grad->typed_data() + r * size.channels;
    std::memset(row, 0, size.channels * sizeof(float));
    float sum = 0;
    for (Index b = 0; b < size.batch; ++b) {
      Add(hidden.typed_data()[b * size.hidden + r], outer + b * size.channels, size.channels, row);
      sum += inner[b * size.hidden + r];
    }
    reduce_bias_grad->typed_data()[r] = sum;
    Index end = (r + 1) * size.channels / size.hidden;
    for (Index c = r * size.channels / size.hidden; c < end; ++c) {
      float* column = reduce_grad->typed_data() + c * size.hidden;
      std::memset(column, 0, size.hidden * sizeof(float));
      float total = 0;
      for (Index b = 0; b < size.batch; ++b) {
        Add(means.typed_data()[b * size.channels + c], inner + b * size.hidden, size.hidden, column);
        total += outer[b * size.channels + c];
      }
      expand_bias_grad->typed_data()[c] = total;
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(nvae_jax_gate, Gate, (Signature<5, 2>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(nvae_jax_gate_grad, GateGrad, (Signature<6, 5>()));
