// Numbers of weights in stored forms, rounded to T: whole matrices before a product with many rows
// of x, and rows of a table.
//
// A thread writes eight neighbours of a row. Steps are rounded to f32 one by one in the order of
// ggml's reference, as on the CPU: with T = f32 the bits are the same.
#include "quant.cuh"

DEVICE float times(float a, float b) { return __fmul_rn(a, b); }
DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }

// The levels of IQ4 and NF4 in shared memory: 16 words in as many banks, so that lanes may look up
// what they like at once.
struct Levels {
    float v[32];
};
DEVICE void fill_levels(Levels& levels) {
    int i = threadIdx.y * blockDim.x + threadIdx.x;
    if (i < 32) levels.v[i] = i < 16 ? IQ4_LEVELS[i] : NF4_LEVELS[i - 16];
    __syncthreads();
}
#define IQ4(code) levels.v[code]
#define NF4(code) levels.v[16 + (code)]

// Eight bytes from an address that is a multiple of `aligned`: 8, 4 or 2.
DEVICE void load8(u32 v[2], const u8* p, int aligned) {
    if (aligned == 8) {
        uint2 both = *(const uint2*)p;
        v[0] = both.x, v[1] = both.y;
    } else if (aligned == 4) {
        v[0] = u32_at(p), v[1] = u32_at(p + 4);
    } else {
        v[0] = u16_at(p) | u16_at(p + 2) << 16, v[1] = u16_at(p + 4) | u16_at(p + 6) << 16;
    }
}
DEVICE u32 byte_of(const u32 v[2], int i) { return v[i / 4] >> 8 * (i % 4) & 255; }

// The eight codes q of a block of 32 from number `i` on, 16 bytes of nibbles at `codes`.
DEVICE void nibble_codes(u32 v[2], const u8* codes, int i, int aligned) {
    load8(v, codes + i % 16, aligned);
    v[0] = v[0] >> i / 16 * 4 & 0x0f0f0f0fu;
    v[1] = v[1] >> i / 16 * 4 & 0x0f0f0f0fu;
}
// d q + m, where m may be absent.
DEVICE void affine(float out[8], const u32 v[2], float d, float m, int offset, bool with_minimum) {
#pragma unroll
    for (int k = 0; k < 8; k++) {
        float x = times(d, (float)((int)byte_of(v, k) - offset));
        out[k] = with_minimum ? plus(x, m) : x;
    }
}
// Bits 0 to 7 of `bits` times `unit`, or-ed to eight codes.
DEVICE void or_bits(u32 v[2], u32 bits, int shift) {
#pragma unroll
    for (int k = 0; k < 8; k++) v[k / 4] |= (bits >> k & 1) << (8 * (k % 4) + shift);
}

// Numbers `column` to `column` + 7 of a row in a block format of GGUF; `column` is a multiple of 8.
DEVICE void decode_block(const Levels& levels, int format, const u8* row, int column,
    float out[8]) {
    u32 v[2], u[2];
    const u8* b;
    int i, j;
    float d;
    switch (format) {
    case FORMAT_Q4_0:
        b = row + column / 32 * 18;
        nibble_codes(v, b + 2, column % 32, 2);
        affine(out, v, f16_at(b), 0.0f, 8, false);
        break;
    case FORMAT_Q4_1:
        b = row + column / 32 * 20;
        nibble_codes(v, b + 4, column % 32, 4);
        affine(out, v, f16_at(b), f16_at(b + 2), 0, true);
        break;
    case FORMAT_Q5_0:
        b = row + column / 32 * 22;
        nibble_codes(v, b + 6, column % 32, 2);
        or_bits(v, u16_at(b + 2 + column % 32 / 16 * 2) >> column % 16, 4);
        affine(out, v, f16_at(b), 0.0f, 16, false);
        break;
    case FORMAT_Q5_1:
        b = row + column / 32 * 24;
        nibble_codes(v, b + 8, column % 32, 4);
        or_bits(v, u32_at(b + 4) >> column % 32, 4);
        affine(out, v, f16_at(b), f16_at(b + 2), 0, true);
        break;
    case FORMAT_Q8_0:
        b = row + column / 32 * 34;
        load8(v, b + 2 + column % 32, 2);
        d = f16_at(b);
#pragma unroll
        for (int k = 0; k < 8; k++) out[k] = times((float)(i8)byte_of(v, k), d);
        break;
    case FORMAT_IQ4_NL:
        b = row + column / 32 * 18;
        nibble_codes(v, b + 2, column % 32, 2);
        d = f16_at(b);
#pragma unroll
        for (int k = 0; k < 8; k++) out[k] = times(d, IQ4(byte_of(v, k)));
        break;
    case FORMAT_IQ4_XS: {
        b = row + column / 256 * 136, j = column % 256 / 32;
        nibble_codes(v, b + 8 + 16 * j, column % 32, 8);
        int code = (int)((u32_at(b + 4) >> 4 * j & 15) | (u16_at(b + 2) >> 2 * j & 3) << 4);
        d = times(f16_at(b), (float)(code - 32));
#pragma unroll
        for (int k = 0; k < 8; k++) out[k] = times(d, IQ4(byte_of(v, k)));
        break;
    }
    case FORMAT_Q2_K: {
        // Groups of 16 numbers; runs of 32 share their bytes.
        b = row + column / 256 * 84, i = column % 256, j = i / 16;
        load8(v, b + 16 + i / 128 * 32 + i % 32, 4);
        int shift = i / 32 % 4 * 2;
        v[0] = v[0] >> shift & 0x03030303u, v[1] = v[1] >> shift & 0x03030303u;
        u32 scales = b[j];
        float e = times(f16_at(b + 82), (float)(scales >> 4));
        affine(out, v, times(f16_at(b + 80), (float)(scales & 15)), -e, 0, true);
        break;
    }
    case FORMAT_Q3_K: {
        b = row + column / 256 * 110, i = column % 256, j = i / 16;
        load8(v, b + 32 + i / 128 * 32 + i % 32, 2);
        load8(u, b + i % 32, 2);
        int shift = i / 32 % 4 * 2, bit = i / 32;
#pragma unroll
        for (int k = 0; k < 2; k++)
            v[k] = (v[k] >> shift & 0x03030303u) | (u[k] >> bit & 0x01010101u) << 2;
        u32 low = b[96 + j % 8] >> j / 8 * 4 & 15, high = b[104 + j % 4] >> j / 4 * 2 & 3;
        affine(out, v, times(f16_at(b + 108), (float)((int)(low | high << 4) - 32)), 0.0f, 4,
            false);
        break;
    }
    case FORMAT_Q4_K:
    case FORMAT_Q5_K: {
        bool five = format == FORMAT_Q5_K;
        b = row + column / 256 * (five ? 176 : 144), i = column % 256, j = i / 32;
        load8(v, b + (five ? 48 : 16) + i / 64 * 32 + i % 32, 8);
        int shift = j % 2 * 4;
        v[0] = v[0] >> shift & 0x0f0f0f0fu, v[1] = v[1] >> shift & 0x0f0f0f0fu;
        if (five) {
            load8(u, b + 16 + i % 32, 8);
            v[0] |= (u[0] >> j & 0x01010101u) << 4, v[1] |= (u[1] >> j & 0x01010101u) << 4;
        }
        uint4 head = *(const uint4*)b;
        u32 words[3] = {head.y, head.z, head.w};
        float e = times(to_f32(f16{(u16)(head.x >> 16)}), (float)six_bits(words, j, 1));
        affine(out, v, times(to_f32(f16{(u16)head.x}), (float)six_bits(words, j, 0)), -e, 0, true);
        break;
    }
    case FORMAT_Q6_K: {
        b = row + column / 256 * 210, i = column % 256;
        int half = i / 128, run = i / 32 % 4;
        load8(v, b + half * 64 + run % 2 * 32 + i % 32, 2);
        load8(u, b + 128 + half * 32 + i % 32, 2);
#pragma unroll
        for (int k = 0; k < 2; k++)
            v[k] = (v[k] >> run / 2 * 4 & 0x0f0f0f0fu) | (u[k] >> 2 * run & 0x03030303u) << 4;
        affine(out, v, times(f16_at(b + 208), (float)(i8)b[192 + i / 16]), 0.0f, 32, false);
        break;
    }
    }
}

// Number `column` of a row in a format that can have any width.
DEVICE float decode_one(const Levels& levels, int format, const u8* row, const float* scales,
    int column, int group) {
    switch (format) {
    case FORMAT_F32: return ((const float*)row)[column];
    case FORMAT_F16: return to_f32(((const f16*)row)[column]);
    case FORMAT_BF16: return to_f32(((const bf16*)row)[column]);
    case FORMAT_INT8: return times((float)((const i8*)row)[column], scales[column / group]);
    }
    u32 code = row[column / 2] >> (column % 2 ? 0 : 4) & 15;
    float level = format == FORMAT_INT4 ? (float)((int)(code ^ 8) - 8) : NF4(code);
    return times(level, scales[column / group]);
}

// The eight from `column` on, a multiple of 8, of rows that start on 16 bytes and consist of whole
// eights.
DEVICE void decode_aligned(const Levels& levels, int format, const u8* row, const float* scales,
    int column, int group, float out[8]) {
    u32 v[2];
    switch (format) {
    case FORMAT_F32: {
        Pack<float, 4> a = load_pack<float, 4>((const float*)row + column),
            b = load_pack<float, 4>((const float*)row + column + 4);
#pragma unroll
        for (int k = 0; k < 8; k++) out[k] = k < 4 ? a.v[k % 4] : b.v[k % 4];
        return;
    }
    case FORMAT_F16: {
        Pack<f16, 8> a = load_pack<f16, 8>((const f16*)row + column);
#pragma unroll
        for (int k = 0; k < 8; k++) out[k] = to_f32(a.v[k]);
        return;
    }
    case FORMAT_BF16: {
        Pack<bf16, 8> a = load_pack<bf16, 8>((const bf16*)row + column);
#pragma unroll
        for (int k = 0; k < 8; k++) out[k] = to_f32(a.v[k]);
        return;
    }
    }
    // Groups are 32 numbers or more, a power of two unless they are whole rows.
    float scale = scales[(group & (group - 1)) == 0 ? column >> __popc((u32)group - 1)
        : column / group];
    if (format == FORMAT_INT8) {
        load8(v, row + column, 8);
#pragma unroll
        for (int k = 0; k < 8; k++) out[k] = times((float)(i8)byte_of(v, k), scale);
        return;
    }
    u32 codes = u32_at(row + column / 2);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        u32 code = codes >> (8 * (k / 2) + (k % 2 ? 0 : 4)) & 15;
        out[k] = times(format == FORMAT_INT4 ? (float)((int)(code ^ 8) - 8) : NF4(code), scale);
    }
}

DEVICE bool is_block_format(int format) {
    return format != FORMAT_F32 && format != FORMAT_F16 && format != FORMAT_BF16
        && format < FORMAT_INT8;
}

// Writes numbers `column` to `column` + 7 of a row, or as many as there are.
DEVICE void dequantize_eight(const Levels& levels, const u8* row, const float* scales, T* out,
    int column, int cols, int format, int group, bool aligned) {
    float v[8];
    if (is_block_format(format)) {
        decode_block(levels, format, row, column, v);
    } else if (aligned) {
        decode_aligned(levels, format, row, scales, column, group, v);
    } else {
        for (int k = column; k < min(column + 8, cols); k++)
            out[k] = from_f32<T>(decode_one(levels, format, row, scales, k, group));
        return;
    }
#pragma unroll
    for (int k = 0; k < 8; k += LANES) {
        PackT pack;
#pragma unroll
        for (int i = 0; i < LANES; i++) pack.v[i] = from_f32<T>(v[k + i]);
        store_pack(out + column + k, pack);
    }
}

// The numbers of `rows` rows: out[rows, cols], from w[rows, row_bytes] and, for int8, int4 and nf4,
// scales[rows, cols / group]; `group` is `cols` where a row has one scale. For a range of rows the
// caller moves the pointers to its first row: `w` must still be a multiple of 16 bytes away from 16
// bytes if `row_bytes` is one of 16, which it then is, and of 2 in any case for GGUF's formats.
// Grid: (⌈cols / 256⌉, any number up to ⌈rows / 8⌉ and 65535). Block: (32, 8).
extern "C" __global__ void __launch_bounds__(256, 4) dequantize(const u8* w, const float* scales,
    T* out, int rows, int cols, int row_bytes, int format, int group) {
    __shared__ Levels levels;
    fill_levels(levels);
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8, step = gridDim.y * blockDim.y;
    if (column >= cols) return;
    bool aligned = row_bytes % 16 == 0 && cols % 8 == 0;
    i64 row_scales = group > 0 ? cols / group : 0;
#pragma unroll 1
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += step)
        dequantize_eight(levels, w + (i64)row * row_bytes, scales + row * row_scales,
            out + (i64)row * cols, column, cols, format, group, aligned);
}

// out[i, :] = row ids[i] of w, for i below n_ids: out[n_ids, cols]. `rows` is the number of rows of
// w; rows of NaN where an id is no row. Grid: (⌈cols / 256⌉, any number up to ⌈n_ids / 8⌉ and
// 65535). Block: (32, 8).
extern "C" __global__ void __launch_bounds__(256, 4) dequantize_rows(const u8* w,
    const float* scales, const int* ids, T* out, int n_ids, int rows, int cols, int row_bytes,
    int format, int group) {
    __shared__ Levels levels;
    fill_levels(levels);
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8, step = gridDim.y * blockDim.y;
    if (column >= cols) return;
    bool aligned = row_bytes % 16 == 0 && cols % 8 == 0;
    i64 row_scales = group > 0 ? cols / group : 0;
#pragma unroll 1
    for (int i = blockIdx.y * blockDim.y + threadIdx.y; i < n_ids; i += step) {
        i64 row = ids[i];
        T* to = out + (i64)i * cols;
        if (row < 0 || row >= rows) {
            for (int k = column; k < min(column + 8, cols); k++)
                to[k] = from_f32<T>(__int_as_float(0x7fffffff));
            continue;
        }
        dequantize_eight(levels, w + row * row_bytes, scales + row * row_scales, to, column, cols,
            format, group, aligned);
    }
}
