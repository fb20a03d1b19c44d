// Depthwise convolution of packed arrays, and the activations around it.

#ifndef NVAE_JAX_OPS_NATIVE_DEPTHWISE_H_
#define NVAE_JAX_OPS_NATIVE_DEPTHWISE_H_

#include "common.h"

// A vector of channels, padded with zeros to whole blocks.
inline Buffer Padded(const Array& vector) {
  Index size = vector.element_count();
  Buffer padded(CeilDiv(size, kBlock) * kBlock);
  std::memcpy(padded.data(), vector.typed_data(), size * sizeof(float));
  return padded;
}

// The activation of a row of pixels, `pitch` floats apart, with the first `valid` channels of a block:
// none, or swish(gain · x + shift) in place. It is a separate pass over the first-level cache, because
// the latency of the gates is too long to apply them to a few sums at a time.
struct Identity {
  void operator()(float*, Index, Index, Index) const {}
};
struct Activation {
  const float *gain, *shift;  // (kBlock,)
  [[gnu::flatten]] void operator()(float* row, Index pitch, Index pixels, Index valid) const {
    for (Index c = 0; c < valid; c += kLanes) {
      Vector a = Load(gain + c), b = Load(shift + c);
      InParts<kTogether, 1>(pixels, [&](auto n, Index i) {
        float* at = row + i * pitch + c;
        auto x = LoadPart<n.value>(at, pitch, valid - c);
        StorePart(at, pitch, Swish(a * x + b), valid - c);
      });
    }
  }
};

// The number of sums that are computed in parallel, because each addition waits for the one before.
// It leaves registers for the weights and an input.
constexpr int kMostSums = kRegisters == 32 ? 16 : 12;

// `Columns` neighbouring outputs of `Wide` vectors: sums over kh x kw taps of x times w (kh, kw,
// kBlock).
template <int Columns, int Stride, int Wide>
void CorrelatePixels(const float* x, Index row, const float* w, Index kh, Index kw, float* y,
                     Index pitch, Index valid) {
  Vector sum[Columns][Wide];
  Clear(sum);
  for (Index dy = 0; dy < kh; ++dy) {
    const float* at = x + dy * row;
    for (Index dx = 0; dx < kw; ++dx, at += kBlock, w += kBlock) {
      Vector weights[Wide];
      for (int v = 0; v < Wide; ++v) weights[v] = Load(w + v * kLanes);
#pragma GCC unroll 8
      for (int j = 0; j < Columns; ++j) {
        for (int v = 0; v < Wide; ++v) {
          sum[j][v] += Load(at + j * Stride * kBlock + v * kLanes) * weights[v];
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < Columns; ++j) {
    for (int v = 0; v < Wide; ++v) {
      StorePart(y + j * pitch + v * kLanes, sum[j][v], valid - v * kLanes);
    }
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
    auto of = [&](auto wide) {
      constexpr int most = std::min(8, kMostSums / wide.value);
      InParts<most, 4, 2, 1>(columns, [&](auto n, Index j) {
        CorrelatePixels<n.value, Stride, wide.value>(from + j * Stride * kBlock, row, w, kh, kw,
                                                     to + j * out.column, out.column, valid);
      });
    };
    if (valid > kLanes) {
      of(std::integral_constant<int, kBlock / kLanes>());
    } else {
      of(std::integral_constant<int, 1>());
    }
    after(to, out.column, columns, valid);
  }
}

// The taps w[row - i step, column - j step] of w (k, k, channels), for channels [c, c + valid), as
// (rows, columns, kBlock). Returns the end of the written values.
inline float* PackTaps(const float* w, Index k, Index channels, Index c, Index valid, Index row,
                       Index rows, Index column, Index columns, Index step, float* taps) {
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; ++j, taps += kBlock) {
      Index tap = (row - i * step) * k + column - j * step;
      std::memcpy(taps, w + tap * channels + c, valid * sizeof(float));
    }
  }
  return taps;
}

// The gradient for the input of a convolution. A convolution of a doubled input is computed like it.
struct InputGradient {
  Index k, stride, low;

  // All taps of w, in the order that `Run` needs.
  void Pack(const float* w, Index channels, Index c, Index valid, float* taps) const {
    for (Index p = 0; p < stride * stride; ++p) {
      Class v(p / stride, 0, 0, k, stride, low), h(p % stride, 0, 0, k, stride, low);
      taps = PackTaps(w, k, channels, c, valid, v.last, v.taps, h.last, h.taps, stride, taps);
    }
  }

  // Rows [row, end) of `width` outputs, `pixel` floats from one to the next, of a block of what
  // they reach `down` and `across`.
  template <typename After>
  void Run(const float* x, const Reach& down, const Reach& across, const float* taps, Index row,
           Index end, Index width, float* y, Index pixel, Index valid, const After& after) const {
    for (Index p = 0; p < stride * stride; ++p) {
      Class v(p / stride, row, end, k, stride, low), h(p % stride, 0, width, k, stride, low);
      Index pitch = across.count * kBlock;
      CorrelateRows<1>(x + (v.start - down.first) * pitch + (h.start - across.first) * kBlock,
                       pitch, taps, v.taps, h.taps, y + (v.first * width + h.first) * pixel,
                       {stride * width * pixel, stride * pixel}, v.count, h.count, valid, after);
      taps += v.taps * h.taps * kBlock;
    }
  }
};

#endif  // NVAE_JAX_OPS_NATIVE_DEPTHWISE_H_
