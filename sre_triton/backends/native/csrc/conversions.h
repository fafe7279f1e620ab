// Numbers of one type as another, one by one and in vectors.

#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vectors.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace sre_triton {

template <class T, class S>
inline T cast_to(S value) {
  if constexpr (std::is_same_v<T, at::BFloat16> && !std::is_same_v<S, at::BFloat16>) {
    const float narrow = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &narrow, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    return at::BFloat16(static_cast<uint16_t>(nan ? 0x7fc0 : rounded), at::BFloat16::from_bits());
  } else if constexpr (std::is_same_v<S, at::BFloat16> && !std::is_same_v<T, at::BFloat16>) {
    const uint32_t bits = static_cast<uint32_t>(value.x) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return static_cast<T>(wide);
  } else {
    return static_cast<T>(value);
  }
}

// A vector of float in half as many bytes.
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));

template <class S>
inline Vector<float> widened(HalfWords half) {
  if constexpr (std::is_same_v<S, at::BFloat16>) return (Vector<float>)(__builtin_convertvector(half, Words) << 16);
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_cvtph_ps((__m256i)half);
#elif defined(__AVX__) && defined(__F16C__)
  return (Vector<float>)_mm256_cvtph_ps((__m128i)half);
#else
  Vector<float> wide;
  for (int i = 0; i < kLanes<float>; ++i) wide[i] = at::Half(half[i], at::Half::from_bits());
  return wide;
#endif
}
template <class S>
inline HalfWords narrowed(Vector<float> wide) {
  if constexpr (std::is_same_v<S, at::BFloat16>) {
    const Words bits = (Words)wide, nan = (Words)(wide != wide);
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), HalfWords);
  }
#if defined(__AVX512F__)
  return (HalfWords)_mm512_cvtps_ph((__m512)wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX__) && defined(__F16C__)
  return (HalfWords)_mm256_cvtps_ph((__m256)wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  HalfWords half;
  for (int i = 0; i < kLanes<float>; ++i) half[i] = at::Half(wide[i]).x;
  return half;
#endif
}

// T is S, or float and S half as wide.
template <class T, class S>
inline Vector<T> load_as(const S* from) {
  if constexpr (std::is_same_v<T, S>) {
    return load(from);
  } else {
    HalfWords half;
    std::memcpy(&half, from, sizeof half);
    return widened<S>(half);
  }
}
template <class T, class S>
inline void store_as(S* to, Vector<T> v) {
  if constexpr (std::is_same_v<T, S>) {
    store(to, v);
  } else {
    const HalfWords half = narrowed<S>(v);
    std::memcpy(to, &half, sizeof half);
  }
}

// Zeros where the mask has no bit; no memory is read there.
template <class T, class S>
inline Vector<T> load_lanes_as(const S* from, uint32_t mask) {
  if constexpr (std::is_same_v<T, S>) {
    return load_lanes(from, mask);
  } else {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return widened<S>((HalfWords)_mm256_maskz_loadu_epi16(mask, from));
#else
    HalfWords half = {};
    for (Index i = 0; i < kLanes<T>; ++i)
      if (mask >> i & 1) half[i] = from[i].x;
    return widened<S>(half);
#endif
  }
}

// The first n elements of a vector, and no memory beyond them.
template <class T, class S>
inline Vector<T> load_as(const S* from, Index n) {
  return n == kLanes<T> ? load_as<T>(from) : load_lanes_as<T>(from, (1u << n) - 1);
}
template <class T, class S>
inline void store_as(S* to, Vector<T> v, Index n) {
  if (n == kLanes<T>) return store_as<T>(to, v);
  if constexpr (std::is_same_v<T, S>) {
    store_part(to, v, n);
  } else {
    const HalfWords half = narrowed<S>(v);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    _mm256_mask_storeu_epi16(to, (1u << n) - 1, (__m256i)half);
#else
    std::memcpy(to, &half, n * sizeof(S));
#endif
  }
}

template <class T, class S>
inline void copy_run(T* to, const S* from, Index n) {
  if constexpr (std::is_same_v<T, S>) {
    std::memcpy(to, from, n * sizeof(T));
  } else {
    Index i = 0;
    if constexpr (std::is_same_v<T, float>)
      for (; i + kLanes<float> <= n; i += kLanes<float>) store(to + i, load_as<float>(from + i));
    else if constexpr (std::is_same_v<S, float>)
      for (; i + kLanes<float> <= n; i += kLanes<float>) store_as<float>(to + i, load(from + i));
    for (; i < n; ++i) to[i] = cast_to<T>(from[i]);
  }
}

}  // namespace sre_triton
