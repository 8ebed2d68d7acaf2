// Floats of 8 bits, as tensor cores multiply them from Ada on (Micikevicius et al. 2022,
// https://arxiv.org/abs/2209.05433).
//
//            exponent  fraction  bias  largest          smallest above 0
//   e4m3     4         3         7     448 (code 7e)    2^-9
//   e5m2     5         2         15    57344 (code 7b)  2^-16
//
// Rounded to nearest, ties to even; what is larger than the largest number becomes that; NaN
// becomes a NaN (code 7f here; of e5m2 an instruction may give another).
#pragma once
#include "common.cuh"

struct E4M3 {
    static const int FRACTION = 3, BIAS = 7;
    static const u32 LARGEST_CODE = 0x7e;
    static DEVICE float largest() { return 448.0f; }
};
struct E5M2 {
    static const int FRACTION = 2, BIAS = 15;
    static const u32 LARGEST_CODE = 0x7b;
    static DEVICE float largest() { return 57344.0f; }
};

// In integers: the same code as the instruction's, on any GPU and in the emulator.
template <class F>
DEVICE u32 fp8_code(float x) {
    const int SHIFT = 23 - F::FRACTION;
    const u32 SMALLEST_NORMAL = (u32)(127 + 1 - F::BIAS) << 23;
    u32 bits = __float_as_uint(x), sign = bits >> 31 << 7, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return 0x7f;
    if (size >= __float_as_uint(F::largest())) return sign | F::LARGEST_CODE;
    if (size >= SMALLEST_NORMAL) {
        u32 rounded = size + ((1u << (SHIFT - 1)) - 1) + (size >> SHIFT & 1);
        return sign | ((rounded >> SHIFT) - ((u32)(127 - F::BIAS) << F::FRACTION));
    }
    // Below the normal numbers codes are evenly spaced: a float whose last bit is that step does
    // the rounding.
    const u32 STEPS = (u32)(127 + 24 - F::BIAS - F::FRACTION) << 23;
    float sum = __fadd_rn(__uint_as_float(size), __uint_as_float(STEPS));
    return sign | (__float_as_uint(sum) - STEPS);
}

// Two codes, that of `low` in the lower byte.
template <class F>
DEVICE u32 fp8_pair(float low, float high) {
#if !defined(LEHR_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    u16 pair;
    if (F::BIAS == 7) {
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    }
    return pair;
#else
    return fp8_code<F>(low) | fp8_code<F>(high) << 8;
#endif
}
