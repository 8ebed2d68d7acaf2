// Tiles of attention on tensor cores for 16-bit T, and the running softmax over them.
//
// Dao 2023, "FlashAttention-2", https://arxiv.org/abs/2307.08691.
//
// `attention.cuh` says what the tensors and masks are. Here E is a multiple of 8; pointers and
// strides are multiples of 16 bytes. Each kernel is named by its width W and takes E <= W; it pads
// with zeros in shared memory.
//
// All blocks have 128 threads, 4 warps. A warp owns 16 * MT rows of the result (queries, or keys
// for dk and dv) and keeps them in registers. The other operand passes through shared memory tile
// by tile; the next tile is copied while the tensor cores work on this one. Scores never leave the
// registers: the accumulator of one product has the layout of an operand of the next.
#pragma once
#include "attention.cuh"
#include "mma.cuh"

#if LEHR_T != 0

#define THREADS 128
#define N_WARPS 4

// The intervals of a block's queries, those of a warp being 16 * MT neighbours: into `rows` in
// shared memory, empty ones and those beyond Tq as [0, 0). The bounds of each warp go into
// `scratch`; after a barrier block_bounds() gives those of the block.
template <int MT>
DEVICE void find_rows(const Mask& mask, int b, int q0, int2* rows, Bounds* scratch) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = warp * 16 * MT + lane;
    Bounds bounds = no_bounds();
    if (lane < 16 * MT) {
        int2 seen = make_int2(0, 0);
        if (q0 + row < mask.tq) {
            seen = mask.interval(b, q0 + row);
            if (seen.x >= seen.y) seen = make_int2(0, 0);
            bounds = bounds_of(seen);
        }
        rows[row] = seen;
    }
    bounds = warp_joined(bounds);
    if (lane == 0) scratch[warp] = bounds;
}
DEVICE Bounds block_bounds(const Bounds* scratch) {
    return joined(joined(scratch[0], scratch[1]), joined(scratch[2], scratch[3]));
}

// Which rows the block computes: from `first` on, of head `head` of row b. Kept in shared memory
// during the loop over tiles, when registers are scarce.
struct __align__(16) Place {
    int b, head, first;
};

// ---- Tiles in shared memory ----

// Position of 16-byte chunk `chunk` of row `row` in a tile of rows of W elements. Chunks are
// permuted within a row (swizzled), so that the eight rows that ldmatrix reads at once, and the
// eight threads that copy at once, use all banks.
template <int W>
DEVICE int at(int row, int chunk) {
    int key = W % 64 == 0 ? row & 7 : row >> 1 & 3;
    return row * W + (chunk ^ key) * 8;
}

// Where a lane of ldmatrix reads 16 rows and two chunks, at any multiple of two chunks. `row` and
// `chunk` (0 or 1) are those of the lane. The swizzle repeats after 4 (or 2) steps and is the same
// in both ways below, so few registers hold it.
template <int W>
struct Lane {
    int base, key;

    DEVICE Lane(int row, int chunk) {
        key = W % 64 == 0 ? row & 7 : row >> 1 & 3;
        base = row * W + (chunk ^ (key & 1)) * 8;
        key = (key & 6) * 8;
    }
    // Of chunks 2 * step and 2 * step + 1, in rows that start at a multiple of 16.
    DEVICE int at_step(int rows, int step) const {
        const int N = W % 64 == 0 ? 4 : 2;
        return base + rows * W + step / N * (16 * N) + (step % N * 16 ^ key);
    }
};
// For A from rows of m, and for B from rows of k (transposed): the matrices are (rows 0-7, chunk
// 0), (8-15, 0), (0-7, 1), (8-15, 1).
template <int W>
DEVICE Lane<W> lane_by_rows() {
    int lane = threadIdx.x % WARP;
    return Lane<W>(lane % 16, lane / 16);
}
// For B from rows of n: (0-7, 0), (0-7, 1), (8-15, 0), (8-15, 1).
template <int W>
DEVICE Lane<W> lane_by_chunks() {
    int lane = threadIdx.x % WARP;
    return Lane<W>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// Starts to copy the first `n` rows of E elements into a tile of ROWS x W; the rest is zeros. A
// thread keeps its column within a group of 8 (or 4) chunks and its place in the swizzle, so that
// its addresses differ by constants and multiples of the stride.
template <int W, int ROWS>
DEVICE void copy_rows(T* tile, const T* from, int stride, int n, int width) {
    const int COLUMNS = W % 64 == 0 ? 8 : 4, STEP = THREADS / COLUMNS;
    static_assert(ROWS % STEP == 0 || STEP % ROWS == 0, "whole rounds of copies");
    int row = threadIdx.x / COLUMNS, chunk = threadIdx.x % COLUMNS;
    if (STEP > ROWS && row >= ROWS) return;
    from += (i64)row * stride + chunk * 8;
    tile += at<W>(row, chunk);
    n -= row;
    width -= chunk * 8;
#pragma unroll
    for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++) {
#pragma unroll
        for (int j = 0; j < W / (8 * COLUMNS); j++) {
            bool valid = i * STEP < n && j * 8 * COLUMNS < width;
            cp_async_16(tile + i * STEP * W + j * 8 * COLUMNS,
                from + (i64)i * STEP * stride + j * 8 * COLUMNS, valid);
        }
    }
}

// c[m][n] += A B^T over the width: rows of both operands are W wide. A starts at the warp's row, B
// at the first of N columns. Unrolled less where the registers do not hold what would be loaded
// ahead.
template <int W, int MT, int N, int UNROLL = W / 16>
DEVICE void product_by_width(float c[MT][N / 8][4], const T* a_tile, const T* b_tile,
    const Lane<W>& by_rows, const Lane<W>& by_chunks) {
#pragma unroll UNROLL
    for (int step = 0; step < W / 16; step++) {
        u32 a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) ldmatrix_x4(a[m], a_tile + by_rows.at_step(16 * m, step));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            u32 b[4];
            ldmatrix_x4(b, b_tile + by_chunks.at_step(16 * n, step));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_16816(c[m][2 * n], a[m], b);
                mma_16816(c[m][2 * n + 1], a[m], b + 2);
            }
        }
    }
}

// acc[m][e] += P B: P, N columns wide, is an accumulator (rounded to T here), B has N rows of W.
template <int W, int MT, int N>
DEVICE void product_by_rows(float acc[MT][W / 8][4], const float p[MT][N / 8][4], const T* b_tile,
    const Lane<W>& by_rows) {
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        u32 a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* from = p[m][2 * n + i / 2];
                a[m][i] = pack2(from[i % 2 * 2], from[i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int e = 0; e < W / 16; e++) {
            u32 b[4];
            ldmatrix_x4_trans(b, b_tile + by_rows.at_step(16 * n, e));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_16816(acc[m][2 * e], a[m], b);
                mma_16816(acc[m][2 * e + 1], a[m], b + 2);
            }
        }
    }
}

template <int MT, int N>
DEVICE void clear(float c[MT][N][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) c[m][n][i] = 0.0f;
        }
    }
}

// Writes the warp's rows, row r times factor[r / 16][r / 8 % 2], to `n` rows of E elements; or adds
// them to what is there. `tile` is room for them that only this warp uses: through it, global
// memory sees whole chunks.
template <int W, int MT>
DEVICE void write_rows(T* tile, const float acc[MT][W / 8][4], const float factor[MT][2], T* to,
    int stride, int n, int width, int accumulate) {
    const int CHUNKS = W / 8, COPIES = 16 * MT * CHUNKS / WARP;
    int lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    __syncwarp();
    if (accumulate) {
#pragma unroll 4
        for (int i = 0; i < COPIES; i++) {
            int index = lane + i * WARP, row = index / CHUNKS, chunk = index % CHUNKS;
            if (row < n && chunk * 8 < width)
                store_pack(tile + at<W>(row, chunk),
                    load_pack<T, 8>(to + (i64)row * stride + chunk * 8));
        }
        __syncwarp();
    }
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int e = 0; e < W / 8; e++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32* two = (u32*)(tile + at<W>(16 * m + 8 * h + group, e) + 2 * pair);
                float low = acc[m][e][2 * h] * factor[m][h],
                    high = acc[m][e][2 * h + 1] * factor[m][h];
                if (accumulate) {
                    low += unpack_low(*two);
                    high += unpack_high(*two);
                }
                *two = pack2(low, high);
            }
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int i = 0; i < COPIES; i++) {
        int index = lane + i * WARP, row = index / CHUNKS, chunk = index % CHUNKS;
        if (row < n && chunk * 8 < width)
            store_pack(to + (i64)row * stride + chunk * 8,
                load_pack<T, 8>(tile + at<W>(row, chunk)));
    }
}

// ---- Softmax ----

// One update of the online softmax (flash_forward.cu has the formula) with the scores s of BK keys:
// s becomes the weights p; acc, row_max and row_sum are o, m and l. Masked keys have score -inf and
// get weight 0.
template <int W, int MT, int BK>
DEVICE void softmax_step(float s[MT][BK / 8][4], float acc[MT][W / 8][4], float row_max[MT][2],
    float row_sum[MT][2], float scale_log2) {
    float safe_max[MT][2];
    bool changed = false;
    float old_max[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = fmaxf(s[m][0][2 * h], s[m][0][2 * h + 1]);
#pragma unroll
            for (int n = 1; n < BK / 8; n++)
                x = fmaxf(x, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 1));
            x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 2));
            old_max[m][h] = row_max[m][h];
            row_max[m][h] = fmaxf(x, old_max[m][h]);
            changed |= row_max[m][h] != old_max[m][h];
            // For a row that has seen no key yet, -inf - (-inf) would be NaN.
            safe_max[m][h] = row_max[m][h] == -INFINITY ? 0.0f : row_max[m][h];
        }
    }
    // After a few tiles the maximum rarely changes, and then o and l keep their scale.
    if (__any_sync(FULL_MASK, changed)) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float factor = exp2_t((old_max[m][h] - safe_max[m][h]) * scale_log2);
                row_sum[m][h] *= factor;
#pragma unroll
                for (int e = 0; e < W / 8; e++) {
                    acc[m][e][2 * h] *= factor;
                    acc[m][e][2 * h + 1] *= factor;
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float shift = safe_max[m][h] * scale_log2, sum = 0.0f;
#pragma unroll
            for (int n = 0; n < BK / 8; n++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float& x = s[m][n][2 * h + j];
                    x = exp2_t(x * scale_log2 - shift);
                    sum += x;
                }
            }
            row_sum[m][h] += sum;
        }
    }
}

#endif
