// Matrices in 8 bits for products in fp8: x is stored as round(x * largest / amax) with amax = max
// |x|, and the product multiplies by amax / largest. `kind`: 0 e4m3 (weights, activations), 1 e5m2
// (gradients, whose range is wider). Tensors start on 16 bytes.
//
// amax is that of this x, not of earlier steps (current scaling), so the largest number gets the
// largest code and nothing is clipped; fp8.rs has the reasons. It takes two kernels: the maximum
// must be complete before the first code is written.
#include "fp8.cuh"

// amax[0] = max(amax[0], |x|) over n elements; amax[0] starts at 0. Non-negative floats compare
// like their bits as integers, with NaN above all. So the maximum is one of integers, and the order
// of the atomic operations does not matter. Grid and block of one dimension, any grid, block 256.
extern "C" __global__ void __launch_bounds__(256, 4) fp8_amax(const T* x, int* amax, i64 n) {
    int largest = 0;
    auto step = [&](i64, auto x) {
        for (int k = 0; k < x.N_ELEMENTS; k++)
            largest = max(largest, __float_as_int(to_f32(x.v[k])) & 0x7fffffff);
    };
    elementwise<LANES, 4>(n, step, x);
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1)
        largest = max(largest, __shfl_xor_sync(FULL_MASK, largest, lane));
    __shared__ int scratch[8];
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = largest;
    __syncthreads();
    if (threadIdx.x > 0) return;
#pragma unroll
    for (int warp = 1; warp < 8; warp++) largest = max(largest, scratch[warp]);
    if (largest > 0) atomicMax(amax, largest);
}

// The factor on the numbers before they are rounded. A maximum that is infinite or NaN gives NaN
// codes or scales, and so NaN results, which the loop reports.
template <class F>
DEVICE float fp8_factor(float amax) {
    // If the quotient overflows, the numbers are too small to matter. fminf would hide NaN.
    float factor = F::largest() / amax;
    return amax == 0.0f ? 1.0f : factor > 3e38f ? 3e38f : factor;
}

// The codes of N numbers of x, in N / 4 words.
template <class F, int N>
DEVICE void fp8_codes(const Pack<T, N>& x, float factor, u32 codes[N / 4]) {
#pragma unroll
    for (int k = 0; k < N; k += 4) {
        u32 low = fp8_pair<F>(to_f32(x.v[k]) * factor, to_f32(x.v[k + 1]) * factor);
        u32 high = fp8_pair<F>(to_f32(x.v[k + 2]) * factor, to_f32(x.v[k + 3]) * factor);
        codes[k / 4] = low | high << 16;
    }
}

template <class F>
DEVICE void cast_all(const T* x, const float* amax, float* scale, u32* codes, i64 n_packs) {
    float factor = fp8_factor<F>(amax[0]);
    if (thread_index() == 0) scale[0] = 1.0f / factor;
#pragma unroll 1
    for (i64 i = thread_index(); i < n_packs; i += 2 * n_threads()) {
        i64 j = i + n_threads();
        PackT a = load_pack<T, LANES>(x + i * LANES), b = {};
        if (j < n_packs) b = load_pack<T, LANES>(x + j * LANES);
        Pack<u32, LANES / 4> words;
        fp8_codes<F, LANES>(a, factor, words.v);
        store_pack(codes + i * (LANES / 4), words);
        if (j < n_packs) {
            fp8_codes<F, LANES>(b, factor, words.v);
            store_pack(codes + j * (LANES / 4), words);
        }
    }
}

// codes = x in fp8 for n elements, a multiple of 16, and scale[0] = 1 / factor. Grid and block of
// one dimension, any grid, block 256.
extern "C" __global__ void __launch_bounds__(256, 4)
    fp8_cast(const T* x, const float* amax, float* scale, u32* codes, i64 n, int kind) {
    if (kind == 0) {
        cast_all<E4M3>(x, amax, scale, codes, n / LANES);
    } else {
        cast_all<E5M2>(x, amax, scale, codes, n / LANES);
    }
}

// A tile of 64 x 64 codes. Rows are 17 words apart: neighbouring rows are in different banks, rows
// 16 apart in pairs of two.
#define TILE 64
#define TILE_WORDS 17

template <class F>
DEVICE void cast_tile(const T* x, float factor, u32* rows, u32* columns, int n, int w, u32* tile) {
    const int PACKS = TILE / LANES, WORDS = LANES / 4;
    int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    // All loads are issued before the first result is used.
    PackT packs[TILE * PACKS / 256];
#pragma unroll
    for (int p = 0; p < TILE * PACKS / 256; p++) {
        int at = p * 256 + threadIdx.x, row = first_row + at / PACKS,
            column = first_column + at % PACKS * LANES;
        packs[p] = PackT{};
        if (row < n && column < w) packs[p] = load_pack<T, LANES>(x + (i64)row * w + column);
    }
#pragma unroll
    for (int p = 0; p < TILE * PACKS / 256; p++) {
        int at = p * 256 + threadIdx.x, row = first_row + at / PACKS,
            column = first_column + at % PACKS * LANES;
        Pack<u32, WORDS> words;
        fp8_codes<F, LANES>(packs[p], factor, words.v);
#pragma unroll
        for (int k = 0; k < WORDS; k++)
            tile[at / PACKS * TILE_WORDS + at % PACKS * WORDS + k] = words.v[k];
        if (rows && row < n && column < w) store_pack(rows + ((i64)row * w + column) / 4, words);
    }
    __syncthreads();
    // A thread gathers 16 codes of a column; four neighbours write 64 bytes together.
    int column = threadIdx.x / 4, part = threadIdx.x % 4 * 16;
    if (first_column + column >= w || first_row + part >= n) return;
    const u8* codes = (const u8*)tile + column;
    Pack<u32, 4> words;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        u32 word = 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            word |= (u32)codes[(part + 4 * k + i) * (4 * TILE_WORDS)] << 8 * i;
        words.v[k] = word;
    }
    store_pack(columns + ((i64)(first_column + column) * n + first_row + part) / 4, words);
}

// columns [w, n] = the transpose of x [n, w] in fp8, rows [n, w] = x in fp8 unless it is null,
// scale[0] = 1 / factor, in one pass. n and w are multiples of 16. Grid (ceil(w / 64), ceil(n /
// 64)), block 256.
extern "C" __global__ void __launch_bounds__(256, 4)
    fp8_cast_transpose(const T* x, const float* amax, float* scale, u32* rows, u32* columns, int n,
        int w, int kind) {
    __shared__ u32 tile[TILE * TILE_WORDS];
    float factor = kind == 0 ? fp8_factor<E4M3>(amax[0]) : fp8_factor<E5M2>(amax[0]);
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) scale[0] = 1.0f / factor;
    if (kind == 0) {
        cast_tile<E4M3>(x, factor, rows, columns, n, w, tile);
    } else {
        cast_tile<E5M2>(x, factor, rows, columns, n, w, tile);
    }
}
