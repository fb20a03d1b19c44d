// Vectors as wide as the machine's registers, and operations on them.

#ifndef NVAE_JAX_OPS_NATIVE_VECTORS_H_
#define NVAE_JAX_OPS_NATIVE_VECTORS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

using Index = int64_t;

inline Index CeilDiv(Index a, Index b) { return (a + b - 1) / b; }

#if defined(__AVX512F__)
constexpr Index kLanes = 16;
#elif defined(__AVX__)
constexpr Index kLanes = 8;
#else
constexpr Index kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// A number of channels, rounded up to whole vectors.
inline Index Width(Index channels) { return CeilDiv(channels, kLanes) * kLanes; }

inline Vector Load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void Store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

// Clears arrays, or arrays of arrays, of sums that must stay in registers. An initialiser `= {}`, or a
// loop that is not unrolled, would keep them in memory.
[[gnu::always_inline]] inline void Clear(Vector& sum) { sum = Vector{}; }
template <typename Sums, size_t N>
[[gnu::always_inline]] inline void Clear(Sums (&sums)[N]) {
#pragma GCC unroll 16
  for (size_t i = 0; i < N; ++i) Clear(sums[i]);
}

// The first `valid` lanes.
inline void StorePart(float* p, Vector v, Index valid) {
  if (valid >= kLanes) {
    Store(p, v);
  } else {
    std::memcpy(p, &v, valid * sizeof(float));
  }
}

// The first `valid` lanes, and zeros.
inline Vector LoadPart(const float* p, Index valid) {
  if (valid >= kLanes) return Load(p);
  Vector v = {};
  std::memcpy(&v, p, valid * sizeof(float));
  return v;
}

// Several vectors, to which each operation is applied before the next: a sigmoid is a chain of twenty
// operations, each of which waits for the one before.
template <int N>
struct Several {
  Vector at[N];

  // make(0), make(1), … without a loop, which would keep them in memory.
  template <typename Make>
  static Several Each(const Make& make) {
    return Each(make, std::make_integer_sequence<int, N>());
  }
  template <typename Make, int... I>
  static Several Each(const Make& make, std::integer_sequence<int, I...>) {
    Several all;
    ((all.at[I] = make(I)), ...);
    return all;
  }
  Several() = default;
  Several(Vector x) : Several(Each([&](int) { return x; })) {}
  Several(float x) : Several(Vector{} + x) {}

  Vector Sum() const {
    Vector sum = at[0];
    for (int i = 1; i < N; ++i) sum += at[i];
    return sum;
  }

  friend Several operator+(const Several& a, const Several& b) {
    return Each([&](int i) { return a.at[i] + b.at[i]; });
  }
  friend Several operator-(const Several& a, const Several& b) {
    return Each([&](int i) { return a.at[i] - b.at[i]; });
  }
  friend Several operator*(const Several& a, const Several& b) {
    return Each([&](int i) { return a.at[i] * b.at[i]; });
  }
  friend Several operator/(const Several& a, const Several& b) {
    return Each([&](int i) { return a.at[i] / b.at[i]; });
  }
};
constexpr int kTogether = 4;  // enough to hide the latency of an operation

// The first `valid` lanes of `N` vectors, `pitch` floats apart.
template <int N>
[[gnu::always_inline]] inline Several<N> LoadPart(const float* p, Index pitch, Index valid) {
  if (valid >= kLanes) return Several<N>::Each([&](int i) { return Load(p + i * pitch); });
  return Several<N>::Each([&](int i) { return LoadPart(p + i * pitch, valid); });
}
template <int N>
[[gnu::always_inline]] inline void StorePart(float* p, Index pitch, const Several<N>& x,
                                             Index valid) {
  if (valid >= kLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) Store(p + i * pitch, x.at[i]);
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) StorePart(p + i * pitch, x.at[i], valid);
  }
}

// Calls run(std::integral_constant<int, n>(), i) for all of `count`, in groups of n that start at i:
// `Most` at a time, and fewer at the end.
template <int Most, int... Fewer, typename Run>
void InParts(Index count, const Run& run) {
  Index i = 0;
  auto some = [&](auto n) {
    for (; i + n.value <= count; i += n.value) run(n, i);
  };
  some(std::integral_constant<int, Most>());
  (some(std::integral_constant<int, Fewer>()), ...);
}

// The larger and the smaller of a bound and x; x if it is NaN. A comparison would be compiled by GCC to
// two instructions.
inline Vector Larger(Vector bound, Vector x) {
#ifdef __AVX512F__
  return (Vector)_mm512_max_ps((__m512)bound, (__m512)x);
#else
  return bound > x ? bound : x;
#endif
}
inline Vector Smaller(Vector bound, Vector x) {
#ifdef __AVX512F__
  return (Vector)_mm512_min_ps((__m512)bound, (__m512)x);
#else
  return bound < x ? bound : x;
#endif
}

// A lower bound, at which a gate is practically 0, also when multiplied by x.
template <int N>
[[gnu::always_inline]] inline Several<N> Bounded(const Several<N>& x) {
  return Several<N>::Each([&](int i) { return Larger(Vector{} - 86.0f, x.at[i]); });
}

// 1 / (1 + exp(-x)) in float32 precision, for bounded x. A loop over floats would be compiled to shorter
// vectors.
template <int N>
[[gnu::always_inline]] inline Several<N> Sigmoid(Several<N> x) {
  typedef int32_t Integers __attribute__((vector_size(sizeof(Vector))));
  x = Several<N>::Each([&](int i) { return Smaller(Vector{} + 86.0f, x.at[i]); });
  // exp(-x) = 2^n exp(-t), with integer n and t = x + n log 2 in [-log 2 / 2, log 2 / 2]. The
  // logarithm is split into two parts, of which n times the first is exact.
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds, to the last bits
  Several<N> rounded = x * -1.44269504f + kRound;
  Several<N> n = rounded - kRound;
  Several<N> t = x + n * 0.693359375f + n * -2.12194440e-4f;
  // with a relative error of at most 4e-9 (minimax)
  Several<N> power = t * 1.381454058e-3f + -8.368745446e-3f;
  power = power * t + 4.166838899e-2f;
  power = power * t + -1.666652113e-1f;
  power = power * t + 4.999999404e-1f;
  power = power * t + -1.0f;
  power = power * t + 1.0f;
  power = Several<N>::Each([&](int i) {  // n is added to the exponent
    return (Vector)((Integers)power.at[i] + ((Integers)rounded.at[i] << 23));
  });
  return Several<N>(1.0f) / (1.0f + power);
}

template <int N>
[[gnu::always_inline]] inline Several<N> Swish(Several<N> x) {
  x = Bounded(x);
  return x * Sigmoid(x);
}

#endif  // NVAE_JAX_OPS_NATIVE_VECTORS_H_
