// Weights in stored forms, on the GPU: what dequantize.cu and product.cuh share. The layouts are
// those of quant/block32.rs, quant/kquant/ and quant/scaled.rs.
#pragma once
#include "common.cuh"

// Numbers of the formats at the interface of kernels: GGUF's own (WeightFormat::ggml_id), and
// lehr's from 100 on.
#define FORMAT_F32 0
#define FORMAT_F16 1
#define FORMAT_Q4_0 2
#define FORMAT_Q4_1 3
#define FORMAT_Q5_0 6
#define FORMAT_Q5_1 7
#define FORMAT_Q8_0 8
#define FORMAT_Q2_K 10
#define FORMAT_Q3_K 11
#define FORMAT_Q4_K 12
#define FORMAT_Q5_K 13
#define FORMAT_Q6_K 14
#define FORMAT_IQ4_NL 20
#define FORMAT_IQ4_XS 23
#define FORMAT_BF16 30
#define FORMAT_INT8 100
#define FORMAT_INT4 101
#define FORMAT_NF4 102

// The levels of IQ4_NL and IQ4_XS.
__constant__ float IQ4_LEVELS[16] =
    {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// The levels of NF4.
__constant__ float NF4_LEVELS[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// The f16 at an address that is a multiple of 2.
DEVICE float f16_at(const u8* p) { return to_f32(f16{*(const u16*)p}); }
DEVICE u32 u16_at(const u8* p) { return *(const u16*)p; }
DEVICE u32 u32_at(const u8* p) { return *(const u32*)p; }

// Scale (0) or minimum (1) number j of 8 of Q4_K and Q5_K. Of the 12 bytes, given as three words,
// the low 6 bits of bytes 0 to 3 and 4 to 7 are the first four of each, the nibbles of bytes 8 to
// 11 the low bits of the last four, whose upper two bits stand above the first four.
DEVICE u32 six_bits(const u32 words[3], int j, int minimum) {
    u32 first = words[minimum];
    u32 all = j < 4 ? first & 0x3f3f3f3fu
        : (words[2] >> 4 * minimum & 0x0f0f0f0fu) | (first >> 2 & 0x30303030u);
    return all >> 8 * (j % 4) & 255;
}
