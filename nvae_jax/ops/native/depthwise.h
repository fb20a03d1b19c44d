// Depthwise convolution of what is packed already, and the activations around it.

#ifndef NVAE_JAX_OPS_NATIVE_DEPTHWISE_H_
#define NVAE_JAX_OPS_NATIVE_DEPTHWISE_H_

#include "common.h"

// A vector of channels with zeros behind, to whole blocks.
inline Buffer Padded(const Array& vector) {
  Index size = vector.element_count();
  Buffer padded(CeilDiv(size, kBlock) * kBlock);
  std::memcpy(padded.data(), vector.typed_data(), size * sizeof(float));
  return padded;
}

// What is done to a row of pixels, `pitch` floats apart, with the first `valid` channels of a block:
// nothing, or swish(gain · x + shift) in place. A pass of its own, over what the first cache has:
// right where a few sums are ready, their gates would mostly wait for themselves.
struct Identity {
  void operator()(float*, Index, Index, Index) const {}
};
struct Activation {
  const float *gain, *shift;  // (kBlock,)
  void operator()(float* row, Index pitch, Index pixels, Index valid) const {
    for (Index i = 0; i < pixels; ++i, row += pitch) {
      for (Index c = 0; c < valid; c += kLanes) {
        Vector x = LoadPart(row + c, valid - c);
        StorePart(row + c, Swish(Load(gain + c) * x + Load(shift + c)), valid - c);
      }
    }
  }
};

// `Columns` neighbouring outputs: sums over kh x kw taps of x times w (kh, kw, kBlock).
template <int Columns, int Stride>
void CorrelatePixels(const float* x, Index row, const float* w, Index kh, Index kw, float* y,
                     Index pitch, Index valid) {
  for (Index c = 0; c < valid; c += kLanes) {
    Vector sum[Columns];
    Clear(sum, Columns);
    const float* tap = w + c;
    for (Index dy = 0; dy < kh; ++dy) {
      const float* at = x + dy * row + c;
      for (Index dx = 0; dx < kw; ++dx, at += kBlock, tap += kBlock) {
        Vector weight = Load(tap);
        for (int j = 0; j < Columns; ++j) sum[j] += Load(at + j * Stride * kBlock) * weight;
      }
    }
    for (int j = 0; j < Columns; ++j) StorePart(y + j * pitch + c, sum[j], valid - c);
  }
}

// rows x columns outputs, each row with `after` applied; `row` floats in a row of x.
template <int Stride, typename After>
void CorrelateRows(const float* x, Index row, const float* w, Index kh, Index kw, float* y,
                   Pitch out, Index rows, Index columns, Index valid, const After& after) {
  auto prefetch = [&](Index i) {
    if (i >= rows) return;
    for (Index j = 0; j < columns; ++j) {
      for (Index c = 0; c < valid; c += 16) {
        __builtin_prefetch(y + i * out.row + j * out.column + c, 1);
      }
    }
  };
  prefetch(0);
  prefetch(1);
  for (Index i = 0; i < rows; ++i) {
    prefetch(i + 2);
    const float* from = x + i * Stride * row;
    float* to = y + i * out.row;
    Index j = 0;
    auto run = [&](auto count) {
      constexpr int n = decltype(count)::value;
      for (; j + n <= columns; j += n) {
        CorrelatePixels<n, Stride>(from + j * Stride * kBlock, row, w, kh, kw,
                                   to + j * out.column, out.column, valid);
      }
    };
    run(std::integral_constant<int, 8>());
    run(std::integral_constant<int, 4>());
    run(std::integral_constant<int, 2>());
    run(std::integral_constant<int, 1>());
    after(to, out.column, columns, valid);
  }
}

#endif  // NVAE_JAX_OPS_NATIVE_DEPTHWISE_H_
