// The gradients of keys and values of flash_forward.cu; `flash.cuh` has its parts, and
// flash_backward_q.cu says why backward is two kernels.
//
// For one tile of keys, summed over the query heads that share them and over tiles of queries:
//
//   s^T  = k q^T                    [BK, N]
//   p^T  = exp(scale s^T - lse)     [BK, N]
//   dv   = sum p^T dout             [BK, E]
//   dp^T = v dout^T                 [BK, N]
//   ds^T = p^T (dp^T - delta)       [BK, N]
//   dk   = scale sum ds^T q         [BK, E]
//
// Everything is transposed, so that p^T and ds^T stay in registers: an accumulator has the layout
// of the left operand of the next product.
#include "flash.cuh"

#if LEHR_T != 0

// A tile of queries in shared memory.
struct __align__(16) Step {
    Bounds bounds;
    int q0;
};

// dk (if DK) and dv (if DV) of one block of 64 * MT keys of one key-value head, summed over the
// query heads that share it and the tiles of BQ queries that see some of the keys, N queries at a
// time. Shared memory: keys, values, two tiles
// of queries and dout and their stats.
template <int W, int MT, int BQ, int N, bool DK, bool DV>
DEVICE void backward_kv(const T* q, const T* k, const T* v, const T* dout, const float* stats,
    const int* tile_bounds, T* dk, T* dv, const Mask& mask, int q_stride, int k_stride,
    int v_stride, int dk_stride, int dv_stride, int tk, int n_heads, int n_kv_heads, int width,
    float scale, int accumulate, int key_tile) {
    const int BK = 64 * MT, UNROLL = W > 64 ? 4 : 2;
    DYNAMIC_SHARED(T, k_tile);
    T* v_tile = k_tile + BK * W;
    T* q_tiles = v_tile + BK * W;
    T* dout_tiles = q_tiles + 2 * BQ * W;
    float* stats_tiles = (float*)(dout_tiles + 2 * BQ * W);
    Step* steps = (Step*)(stats_tiles + 4 * BQ);
    int* reach = (int*)(steps + 2);
    Place* place = (Place*)(reach + 2 * N_WARPS);

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    int per_kv = n_heads / n_kv_heads, kv_head = blockIdx.y, b = blockIdx.z, tq = mask.tq,
        n_tiles = (tq + BQ - 1) / BQ;
    int k0 = key_tile * BK, first_row = warp * 16 * MT, first_key = k0 + first_row;
    i64 first_token = (i64)b * tk + k0;
    if (threadIdx.x == 0) *place = Place{b, kv_head, k0};
    copy_rows<W, BK>(k_tile, k + first_token * k_stride + (i64)kv_head * width, k_stride,
        mask.n_keys - k0, width);
    if (DK)
        copy_rows<W, BK>(v_tile, v + first_token * v_stride + (i64)kv_head * width, v_stride,
            mask.n_keys - k0, width);
    cp_async_commit();

    // The first tile of queries that sees some of the keys, and one past the last.
    int first = INT_MAX, end = 0;
    for (int t = threadIdx.x; t < n_tiles; t += THREADS) {
        if (tile_bounds_of(mask, tile_bounds, b, t * BQ, BQ).reaches(k0, BK)) {
            first = min(first, t);
            end = max(end, t + 1);
        }
    }
#pragma unroll
    for (int other = 16; other > 0; other >>= 1) {
        first = min(first, __shfl_xor_sync(FULL_MASK, first, other));
        end = max(end, __shfl_xor_sync(FULL_MASK, end, other));
    }
    if (lane == 0) {
        reach[2 * warp] = first;
        reach[2 * warp + 1] = end;
    }
    __syncthreads();
    first = min(min(reach[0], reach[2]), min(reach[4], reach[6]));
    end = max(max(reach[1], reach[3]), max(reach[5], reach[7]));

    const float scale_log2 = scale * LOG2_E;
    const Lane<W> by_rows = lane_by_rows<W>(), by_chunks = lane_by_chunks<W>();
    float dk_acc[MT][W / 8][4], dv_acc[MT][W / 8][4];
    if (DK) clear<MT, W / 8>(dk_acc);
    if (DV) clear<MT, W / 8>(dv_acc);

    // Steps go through the query heads and their tiles. The tensor cores work on one, if `busy`,
    // while the next is copied, if `next_head` is below `head_end`.
    int next_head = kv_head * per_kv, next_tile = first;
    const int head_end = first < end ? next_head + per_kv : next_head;
    bool busy = false;
    for (int stage = 1; busy || next_head < head_end; stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (next_head < head_end) {
            int other = stage ^ 1, q0 = next_tile * BQ;
            if (threadIdx.x == 0) {
                steps[other].bounds = tile_bounds_of(mask, tile_bounds, b, q0, BQ);
                steps[other].q0 = q0;
            }
            i64 token = (i64)b * tq + q0;
            copy_rows<W, BQ>(q_tiles + other * BQ * W,
                q + token * q_stride + (i64)next_head * width, q_stride, tq - q0, width);
            copy_rows<W, BQ>(dout_tiles + other * BQ * W,
                dout + (token * n_heads + next_head) * width, n_heads * width, tq - q0, width);
            const float* from = stats + 2 * (((i64)b * n_heads + next_head) * tq + q0);
            if (threadIdx.x < BQ) {
                // Beyond Tq all inputs are zero, so such queries add nothing.
                int i = threadIdx.x;
                cp_async_8(stats_tiles + 2 * (other * BQ + i), from + 2 * i, i < tq - q0);
            }
        }
        cp_async_commit();

        if (busy) {
            const Bounds bounds = steps[stage].bounds;
            if (bounds.reaches(first_key, 16 * MT)) {
                const bool edge = !bounds.is_full(first_key, 16 * MT);
                const T* q_tile = q_tiles + stage * BQ * W;
                const T* dout_tile = dout_tiles + stage * BQ * W;
                const float* stats_tile = stats_tiles + stage * 2 * BQ;
#pragma unroll 1
                for (int column = 0; column < BQ; column += N) {
                    float p[MT][N / 8][4];
                    clear<MT, N / 8>(p);
                    product_by_width<W, MT, N, UNROLL>(p, k_tile + first_row * W,
                        q_tile + column * W, by_rows, by_chunks);
#pragma unroll
                    for (int n = 0; n < N / 8; n++) {
                        // lse and delta of two neighbouring queries: (x, y) and (z, w).
                        float4 two = *(const float4*)(stats_tile + 2 * (column + 8 * n + 2 * pair));
#pragma unroll
                        for (int m = 0; m < MT; m++) {
                            p[m][n][0] = exp2_t(p[m][n][0] * scale_log2 - two.x);
                            p[m][n][1] = exp2_t(p[m][n][1] * scale_log2 - two.z);
                            p[m][n][2] = exp2_t(p[m][n][2] * scale_log2 - two.x);
                            p[m][n][3] = exp2_t(p[m][n][3] * scale_log2 - two.z);
                        }
                    }
                    if (edge) {
#pragma unroll
                        for (int n = 0; n < N / 8; n++) {
#pragma unroll
                            for (int j = 0; j < 2; j++) {
                                int2 seen = mask.interval(b,
                                    min(steps[stage].q0 + column + 8 * n + 2 * pair + j, tq - 1));
                                int from = first_key + group - seen.x;
                                u32 n_seen = (u32)max(seen.y - seen.x, 0);
#pragma unroll
                                for (int m = 0; m < MT; m++) {
                                    if ((u32)(from + 16 * m) >= n_seen) p[m][n][j] = 0.0f;
                                    if ((u32)(from + 16 * m + 8) >= n_seen) p[m][n][2 + j] = 0.0f;
                                }
                            }
                        }
                    }
                    if (DV) product_by_rows<W, MT, N>(dv_acc, p, dout_tile + column * W, by_rows);
                    if (DK) {
                        float dp[MT][N / 8][4];
                        clear<MT, N / 8>(dp);
                        product_by_width<W, MT, N, UNROLL>(dp, v_tile + first_row * W,
                            dout_tile + column * W, by_rows, by_chunks);
#pragma unroll
                        for (int n = 0; n < N / 8; n++) {
                            float4 two = *(const float4*)(stats_tile
                                + 2 * (column + 8 * n + 2 * pair));
#pragma unroll
                            for (int m = 0; m < MT; m++) {
                                p[m][n][0] *= dp[m][n][0] - two.y;
                                p[m][n][1] *= dp[m][n][1] - two.w;
                                p[m][n][2] *= dp[m][n][2] - two.y;
                                p[m][n][3] *= dp[m][n][3] - two.w;
                            }
                        }
                        product_by_rows<W, MT, N>(dk_acc, p, q_tile + column * W, by_rows);
                    }
                }
            }
        }

        busy = next_head < head_end;
        if (busy) {
            do {
                next_tile++;
                if (next_tile == end) {
                    next_tile = first;
                    next_head++;
                }
            } while (next_head < head_end
                && !tile_bounds_of(mask, tile_bounds, b, next_tile * BQ, BQ).reaches(k0, BK));
        }
    }

    cp_async_wait<0>();
    __syncthreads();
    float factor[MT][2];
    kv_head = place->head;
    first_key = place->first + first_row;
    first_token = (i64)place->b * tk + first_key;
    if (DK && dk) {
#pragma unroll
        for (int m = 0; m < MT; m++) factor[m][0] = factor[m][1] = scale;
        T* to = dk + first_token * dk_stride + (i64)kv_head * width;
        write_rows<W, MT>(k_tile + first_row * W, dk_acc, factor, to, dk_stride, tk - first_key,
            width, accumulate);
    }
    if (DV && dv) {
#pragma unroll
        for (int m = 0; m < MT; m++) factor[m][0] = factor[m][1] = 1.0f;
        T* to = dv + first_token * dv_stride + (i64)kv_head * width;
        write_rows<W, MT>(k_tile + first_row * W, dv_acc, factor, to, dv_stride, tk - first_key,
            width, accumulate);
    }
}

// dk and dv [B, Tk, K, E] (each may be null), all Tk keys: 0 for those that nobody sees. With
// `accumulate` they are added to. `tile_bounds` for tiles of BQ queries is needed only if intervals
// are given. The wide ones compute dk and dv in separate blocks, because the registers do not hold
// both.
//
// Grid (ceil(Tk / BK), K, B), for W = 192 and 256 (2 ceil(Tk / BK), K, B); 128 threads.
//   W                            32      64      96     128     192     256
//   BK                          128     128      64      64      64      64
//   BQ                           64      64      64      64      32      16
//   dynamic shared memory     33904   66672   74864   99440   98928   98672 bytes
#define FLASH_BACKWARD_KV(W, MT, BQ, N, SPLIT, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) flash_backward_kv_##W( \
        const T* q, const T* k, const T* v, const T* dout, const float* stats, \
            const int* intervals, const int* tile_bounds, T* dk, \
        T* dv, int q_stride, int k_stride, int v_stride, int dk_stride, int dv_stride, int tq, \
            int tk, int n_heads, int n_kv_heads, \
        int width, int causal, int window, int n_keys, float scale, int accumulate) { \
        Mask mask{intervals, causal, window, n_keys, tq}; \
        if (!SPLIT) { \
            backward_kv<W, MT, BQ, N, true, !SPLIT>(q, k, v, dout, stats, tile_bounds, dk, dv, \
                mask, q_stride, k_stride, v_stride, dk_stride, dv_stride, tk, n_heads, n_kv_heads, \
                width, scale, accumulate, blockIdx.x); \
        } else if (blockIdx.x % 2 == 0) { \
            backward_kv<W, MT, BQ, N, true, !SPLIT>(q, k, v, dout, stats, tile_bounds, dk, dv, \
                mask, q_stride, k_stride, v_stride, dk_stride, dv_stride, tk, n_heads, n_kv_heads, \
                width, scale, accumulate, blockIdx.x / 2); \
        } else { \
            backward_kv<W, MT, BQ, N, !SPLIT, true>(q, k, v, dout, stats, tile_bounds, dk, dv, \
                mask, q_stride, k_stride, v_stride, dk_stride, dv_stride, tk, n_heads, n_kv_heads, \
                width, scale, accumulate, blockIdx.x / 2); \
        } \
    }
FLASH_BACKWARD_KV(32, 2, 64, 32, false, 2)
FLASH_BACKWARD_KV(64, 2, 64, 32, false, 2)
FLASH_BACKWARD_KV(96, 1, 64, 32, false, 2)
FLASH_BACKWARD_KV(128, 1, 64, 32, false, 2)
FLASH_BACKWARD_KV(192, 1, 32, 32, true, 2)
FLASH_BACKWARD_KV(256, 1, 16, 16, true, 2)

#endif
