// Tiles of attention on ordinary arithmetic units, which take every T, and every E up to the width
// W of the kernel: they pad with zeros. Rows of whole packs are moved by 16 bytes, which needs
// pointers and strides that are multiples of that.
//
// A block is 16 x 16 threads and works on tiles of 16 * R rows, which lie in shared memory as
// floats. In a product of two tiles over the width, thread (ty, tx) has rows ty * R + r of the
// first and rows tx + 16 * c of the second; those of one ty are half a warp.
#pragma once
#include "attention.cuh"

#define SIDE 16
#define BLOCK_THREADS (SIDE * SIDE)

// Floats from row to row: the four more let 8 threads read 16 bytes each of 8 rows without bank
// conflicts.
template <int W>
DEVICE constexpr int row_stride() { return W + 4; }

// The first n rows of E elements into a tile of ROWS x W; the rest is zeros.
template <int W, int ROWS>
DEVICE void load_rows(float* tile, const T* from, int stride, int n, int width) {
    const int S = row_stride<W>();
    if (is_packed(width) && is_packed(stride)) {
        const int PACKS = W / LANES;
        for (int i = threadIdx.x; i < ROWS * PACKS; i += BLOCK_THREADS) {
            int row = i / PACKS, e = i % PACKS * LANES;
            PackT x;
            if (row < n && e < width) {
                x = load_pack<T, LANES>(from + (i64)row * stride + e);
            } else {
#pragma unroll
                for (int j = 0; j < LANES; j++) x.v[j] = from_f32<T>(0.0f);
            }
#pragma unroll
            for (int j = 0; j < LANES; j += 4) {
                float4* to = (float4*)(tile + row * S + e + j);
                *to = make_float4(to_f32(x.v[j]), to_f32(x.v[j + 1]), to_f32(x.v[j + 2]),
                    to_f32(x.v[j + 3]));
            }
        }
    } else {
        for (int i = threadIdx.x; i < ROWS * W; i += BLOCK_THREADS) {
            int row = i / W, e = i % W;
            tile[row * S + e] = row < n && e < width ? to_f32(from[(i64)row * stride + e]) : 0.0f;
        }
    }
}

// s[r][c] = the product over the width of the thread's rows of a and b.
template <int W, int R>
DEVICE void product_by_width(float s[R][R], const float* a, const float* b, int width) {
    const int S = row_stride<W>();
    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    a += ty * R * S;
    b += tx * S;
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int c = 0; c < R; c++) s[r][c] = 0.0f;
    }
#pragma unroll 1
    for (int e = 0; e < width; e += 4) {
        float4 x[R], y[R];
#pragma unroll
        for (int r = 0; r < R; r++) x[r] = *(const float4*)(a + r * S + e);
#pragma unroll
        for (int c = 0; c < R; c++) y[c] = *(const float4*)(b + c * SIDE * S + e);
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int c = 0; c < R; c++)
                s[r][c] += x[r].x * y[c].x + x[r].y * y[c].y + x[r].z * y[c].z + x[r].w * y[c].w;
        }
    }
}

// The columns of a thread in a result of W columns: V neighbours from tx * V, then 16 * V further
// on, and so on.
template <int W>
struct Columns {
    static const int N = W / SIDE, V = N < 4 ? N : 4;
};

// s, the thread's part of a tile of 16 R x 16 R, to shared memory. Only the half warp of the same
// rows reads it, after __syncwarp().
template <int R>
DEVICE void store_part(float* tile, const float s[R][R]) {
    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int c = 0; c < R; c++)
            tile[(ty * R + r) * row_stride<SIDE * R>() + tx + SIDE * c] = s[r][c];
    }
}

// acc += P B, with the tile P of store_part() and 16 R rows of B.
template <int W, int R>
DEVICE void product_by_rows(float acc[R][Columns<W>::N], const float* p, const float* b) {
    const int S = row_stride<W>(), P = row_stride<SIDE * R>(), V = Columns<W>::V,
        GROUPS = Columns<W>::N / V;
    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    p += ty * R * P;
    b += tx * V;
#pragma unroll 2
    for (int j = 0; j < SIDE * R; j += 4) {
        float x[R][4];
#pragma unroll
        for (int r = 0; r < R; r++) {
            float4 four = *(const float4*)(p + r * P + j);
            x[r][0] = four.x, x[r][1] = four.y, x[r][2] = four.z, x[r][3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                Pack<float, V> y = load_pack<float, V>(b + (j + i) * S + g * SIDE * V);
#pragma unroll
                for (int r = 0; r < R; r++) {
#pragma unroll
                    for (int e = 0; e < V; e++) acc[r][g * V + e] += x[r][i] * y.v[e];
                }
            }
        }
    }
}

// The thread's rows of acc, row r times factor[r], to `n` rows of E elements, or added to them.
template <int W, int R>
DEVICE void write_rows(const float acc[R][Columns<W>::N], const float factor[R], T* to, int stride,
    int n, int width, int accumulate) {
    const int V = Columns<W>::V, GROUPS = Columns<W>::N / V;
    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    const bool whole = width % V == 0 && stride % V == 0;
#pragma unroll
    for (int r = 0; r < R; r++) {
        int row = ty * R + r;
        if (row >= n) continue;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            int e = tx * V + g * SIDE * V;
            T* at = to + (i64)row * stride + e;
            if (whole && e < width) {
                Pack<T, V> x;
                if (accumulate) x = load_pack<T, V>(at);
#pragma unroll
                for (int j = 0; j < V; j++)
                    x.v[j] = from_f32<T>(acc[r][g * V + j] * factor[r]
                        + (accumulate ? to_f32(x.v[j]) : 0.0f));
                store_pack(at, x);
            } else {
#pragma unroll
                for (int j = 0; j < V; j++) {
                    if (e + j < width)
                        at[j] = from_f32<T>(acc[r][g * V + j] * factor[r]
                            + (accumulate ? to_f32(at[j]) : 0.0f));
                }
            }
        }
    }
}

template <int R, int N>
DEVICE void clear(float c[R][N]) {
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int n = 0; n < N; n++) c[r][n] = 0.0f;
    }
}

// The intervals of the block's queries into `rows`, empty ones and those beyond Tq as [0, 0), and
// their bounds into `all`. Barriers are the caller's.
template <int ROWS>
DEVICE void find_rows(const Mask& mask, int b, int q0, int2* rows, Bounds* all) {
    for (int i = threadIdx.x; i < ROWS; i += BLOCK_THREADS) {
        int2 seen = q0 + i < mask.tq ? mask.interval(b, q0 + i) : make_int2(0, 0);
        rows[i] = seen.x < seen.y ? seen : make_int2(0, 0);
    }
    if (threadIdx.x < WARP) {
        Bounds bounds = warp_bounds(mask, b, q0, ROWS);
        if (threadIdx.x == 0) *all = bounds;
    }
}
