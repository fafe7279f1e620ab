// Vectors as wide as the machine's, by the compiler's own extension.

#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace sre_triton {

using Index = int64_t;

#if defined(__AVX512F__)
#if defined(__AVX512BW__) && defined(__AVX512VL__)
constexpr bool kMasks = true;  // a vector in part costs no more than a whole one
#else
constexpr bool kMasks = false;
#endif
constexpr int kVectorBytes = 64;
constexpr int kRows = 14;  // 14 x 2 accumulators, 2 vectors of weights and a factor in 32 registers
#elif defined(__AVX__)
constexpr bool kMasks = false;
constexpr int kVectorBytes = 32;
constexpr int kRows = 6;  // of 16 registers
#else
constexpr bool kMasks = false;
constexpr int kVectorBytes = 16;
constexpr int kRows = 6;
#endif

// No type for what is no number, so that overloads for vectors drop out.
template <class T, int kBytes = kVectorBytes, bool = std::is_arithmetic_v<T>>
struct VectorOf {};
template <class T, int kBytes>
struct VectorOf<T, kBytes, true> {
  typedef T type __attribute__((vector_size(kBytes)));
  // In memory that is aligned for T alone. No type for variables: Clang would align them as little, and move them with
  // instructions that want more.
  typedef T stored __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
};
template <class T, int kBytes = kVectorBytes>
using Vector = typename VectorOf<T, kBytes>::type;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
constexpr int kPanelVectors = 2;

template <int kBytes = kVectorBytes, class T>
inline Vector<T, kBytes> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T, kBytes>::stored*>(p);
}
template <int kBytes = kVectorBytes, class T>
inline void store(T* p, Vector<T, kBytes> v) {
  *reinterpret_cast<typename VectorOf<T, kBytes>::stored*>(p) = v;
}

// The same number, which the compiler has to round before it goes on: a product that is fused with an addition is not.
template <class V>
inline V rounded(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// The same vector in a register, where there are many: the compiler would read memory again for every product.
template <class V>
inline V in_register(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#endif
  return v;
}

inline Vector<float> square_root(Vector<float> v) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX__)
  return (Vector<float>)_mm256_sqrt_ps((__m256)v);
#else
  for (int i = 0; i < kLanes<float>; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}
inline Vector<double> square_root(Vector<double> v) {
#if defined(__AVX512F__)
  return (Vector<double>)_mm512_sqrt_pd((__m512d)v);
#elif defined(__AVX__)
  return (Vector<double>)_mm256_sqrt_pd((__m256d)v);
#else
  for (int i = 0; i < kLanes<double>; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// Zeros where the mask has no bit; no memory is read there.
template <class T>
inline Vector<T> load_lanes(const T* p, uint32_t mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm512_maskz_loadu_epi32(mask, p);
  if constexpr (sizeof(T) == 8) return (Vector<T>)_mm512_maskz_loadu_epi64(mask, p);
#endif
  alignas(kVectorBytes) T all[kLanes<T>] = {};
  for (Index i = 0; i < kLanes<T>; ++i)
    if (mask >> i & 1) all[i] = p[i];
  return load(all);
}
// The first n elements alone.
template <class T>
inline Vector<T> load_part(const T* p, Index n) {
  return load_lanes(p, (1u << n) - 1);
}
template <class T>
inline void store_part(T* p, Vector<T> v, Index n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_epi32(p, (1u << n) - 1, (__m512i)v);
  if constexpr (sizeof(T) == 8) return _mm512_mask_storeu_epi64(p, (1u << n) - 1, (__m512i)v);
#endif
  for (Index i = 0; i < n; ++i) p[i] = v[i];
}

inline Index divide_up(Index a, Index b) { return (a + b - 1) / b; }
inline Index round_up(Index a, Index b) { return divide_up(a, b) * b; }

}  // namespace sre_triton
