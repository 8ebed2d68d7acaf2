// Attention of few queries over many keys on tensor cores, for 16-bit T; `flash.cuh` has its parts.
//
// With few queries there are too few tiles of queries to occupy the device, and the time is that of
// reading keys and values. So the keys are divided among blocks ("Flash-Decoding", Dao et al. 2023,
// https://crfm.stanford.edu/2023/10/12/flashdecoding.html). Each part i has the running values
// (m_i, l_i, o_i) of flash_forward.cu, with m_i in base 2. Parts combine exactly, in a fixed order:
//
//   m = max_i m_i,  l = sum_i l_i 2^(m_i - m),  o = sum_i o_i 2^(m_i - m),  out = o / l
//
// This happens twice: the four warps of a block combine their keys here, and
// attention_decode_combine of decode.cu combines the blocks.
#include "flash.cuh"

#if LEHR_T != 0

// copy_rows of the keys (or values) from `key` on.
template <int W, int ROWS>
DEVICE void copy_keys(T* tile, const T* from, int stride, InOrder, int key, int end, int width) {
    copy_rows<W, ROWS>(tile, from + (i64)key * stride, stride, end - key, width);
}
template <int W, int ROWS>
DEVICE void copy_keys(T* tile, const T* from, int stride, const InPages& place, int key, int end,
    int width) {
    const int COLUMNS = W % 64 == 0 ? 8 : 4, STEP = THREADS / COLUMNS;
    static_assert(ROWS % STEP == 0, "whole rounds of copies");
    int row = threadIdx.x / COLUMNS, chunk = threadIdx.x % COLUMNS;
    key += row;
    from += chunk * 8;
    tile += at<W>(row, chunk);
    width -= chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        const T* row_from = from + place.row(key + i * STEP, end) * stride;
#pragma unroll
        for (int j = 0; j < W / (8 * COLUMNS); j++) {
            bool valid = key + i * STEP < end && j * 8 * COLUMNS < width;
            cp_async_16(tile + i * STEP * W + j * 8 * COLUMNS, row_from + j * 8 * COLUMNS, valid);
        }
    }
}

// A part of the keys for 16 of the query rows that share a key-value head: an mma has 16 rows, so
// all heads that share keys are multiplied together. Each warp takes 16 of the 64 keys of a tile
// and has its own running softmax until the end.
template <int W, int STAGES, class Place>
DEVICE void decode(const T* q, const T* k, const T* v, float* workspace, const Mask& mask,
    int q_stride, int k_stride, int v_stride, Place place, int n_heads, int n_kv_heads, int width,
    float scale, int n_splits) {
    const int ROWS = 16, BK = 16 * N_WARPS;
    DYNAMIC_SHARED(T, q_tile);
    T* k_tiles = q_tile + ROWS * W;
    T* v_tiles = k_tiles + STAGES * BK * W;
    int2* rows = (int2*)(v_tiles + STAGES * BK * W);
    float2* warp_stats = (float2*)(rows + ROWS);

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    int per_kv = n_heads / n_kv_heads, n_rows = per_kv * mask.tq,
        n_chunks = (n_rows + ROWS - 1) / ROWS;
    int split = blockIdx.x, kv_head = blockIdx.y / n_chunks, row0 = blockIdx.y % n_chunks * ROWS,
        b = blockIdx.z;

    const int2 part = part_of(mask, b, split, n_splits, BK);
    int key = part.x;
    const int end = part.y;

    // Keys of other parts are masked.
    int2 seen = make_int2(0, 0);
    if (lane < ROWS && row0 + lane < n_rows) {
        seen = mask.interval(b, (row0 + lane) / per_kv);
        seen = make_int2(max(seen.x, key), min(seen.y, end));
        if (seen.x >= seen.y) seen = make_int2(0, 0);
    }
    if (warp == 0 && lane < ROWS) rows[lane] = seen;
    const Bounds bounds = warp_joined(lane < ROWS && row0 + lane < n_rows ? bounds_of(seen)
        : no_bounds());

    for (int i = threadIdx.x; i < ROWS * W / 8; i += THREADS) {
        int r = i / (W / 8), chunk = i % (W / 8), row = row0 + r;
        bool valid = row < n_rows && chunk * 8 < width;
        i64 token = (i64)b * mask.tq + (valid ? row / per_kv : 0);
        cp_async_16(q_tile + at<W>(r, chunk),
            q + token * q_stride + (i64)(kv_head * per_kv + row % per_kv) * width + chunk * 8,
            valid);
    }
    k += place.first(b) * k_stride + (i64)kv_head * width;
    v += place.first(b) * v_stride + (i64)kv_head * width;
    if (STAGES == 2 && key < end) {
        copy_keys<W, BK>(k_tiles, k, k_stride, place, key, end, width);
        copy_keys<W, BK>(v_tiles, v, v_stride, place, key, end, width);
    }
    cp_async_commit();
    if (scale <= 0.0f) {
        // The running maximum is that of q k, before the scale, so a negative sign goes into q.
        cp_async_wait<0>();
        __syncthreads();
        u32* two = (u32*)q_tile;
        for (int i = threadIdx.x; i < ROWS * W / 2; i += THREADS)
            two[i] = scale < 0.0f ? two[i] ^ 0x80008000u : 0;
        scale = scale < 0.0f ? -scale : 1.0f;
    }
    const float scale_log2 = scale * LOG2_E;
    const Lane<W> by_rows = lane_by_rows<W>(), by_chunks = lane_by_chunks<W>();

    float acc[1][W / 8][4], row_max[1][2] = {{-INFINITY, -INFINITY}},
        row_sum[1][2] = {{0.0f, 0.0f}};
    clear<1, W / 8>(acc);
    for (int stage = 0; key < end; key += BK, stage ^= STAGES - 1) {
        // With one stage, other blocks of the multiprocessor work while this one waits.
        int next = STAGES == 2 ? key + BK : key;
        if (STAGES == 2) cp_async_wait<0>();
        __syncthreads();
        if (next < end) {
            int other = (stage ^ (STAGES - 1)) * BK * W;
            copy_keys<W, BK>(k_tiles + other, k, k_stride, place, next, end, width);
            copy_keys<W, BK>(v_tiles + other, v, v_stride, place, next, end, width);
        }
        cp_async_commit();
        if (STAGES == 1) {
            cp_async_wait<0>();
            __syncthreads();
        }
        int first_key = key + 16 * warp;
        if (!bounds.reaches(first_key, 16)) continue;
        float s[1][2][4];
        clear<1, 2>(s);
        product_by_width<W, 1, 16>(s, q_tile, k_tiles + (stage * BK + 16 * warp) * W, by_rows,
            by_chunks);
        if (!bounds.is_full(first_key, 16)) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int2 sees = rows[8 * h + group];
                int from = first_key + 2 * pair - sees.x;
                u32 n_seen = (u32)(sees.y - sees.x);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if ((u32)(from + i / 2 * 8 + i % 2) >= n_seen)
                        s[0][i / 2][2 * h + i % 2] = -INFINITY;
                }
            }
        }
        softmax_step<W, 1, 16>(s, acc, row_max, row_sum, scale_log2);
        product_by_rows<W, 1, 16>(acc, s, v_tiles + (stage * BK + 16 * warp) * W, by_rows);
    }

    // The sums of the warps go into the memory of the tiles, [warp, row, W], and are combined
    // there.
    cp_async_wait<0>();
    __syncthreads();
    float* sums = (float*)k_tiles;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = row_sum[0][h];
        sum += __shfl_xor_sync(FULL_MASK, sum, 1);
        sum += __shfl_xor_sync(FULL_MASK, sum, 2);
        int row = warp * ROWS + 8 * h + group;
        if (pair == 0) warp_stats[row] = make_float2(row_max[0][h] * scale_log2, sum);
#pragma unroll
        for (int e = 0; e < W / 8; e++) {
            *(float2*)(sums + row * W + 8 * e + 2 * pair) =
                make_float2(acc[0][e][2 * h], acc[0][e][2 * h + 1]);
        }
    }
    __syncthreads();
    Workspace to(workspace, gridDim.z * n_kv_heads * n_rows, n_splits, width);
    for (int r = warp; r < ROWS && row0 + r < n_rows; r += N_WARPS) {
        float all_max = -INFINITY, sum = 0.0f, factor[N_WARPS];
#pragma unroll
        for (int w = 0; w < N_WARPS; w++) all_max = fmaxf(all_max, warp_stats[w * ROWS + r].x);
#pragma unroll
        for (int w = 0; w < N_WARPS; w++) {
            factor[w] = exp2_t(warp_stats[w * ROWS + r].x
                - (all_max == -INFINITY ? 0.0f : all_max));
            sum += warp_stats[w * ROWS + r].y * factor[w];
        }
        int row = (b * n_kv_heads + kv_head) * n_rows + row0 + r;
        for (int e = lane; e < width; e += WARP) {
            float x = 0.0f;
#pragma unroll
            for (int w = 0; w < N_WARPS; w++) x += sums[(w * ROWS + r) * W + e] * factor[w];
            to.sums_of(row, split)[e] = x;
        }
        if (lane == 0) *(float2*)to.stats_of(row, split) = make_float2(all_max, sum);
    }
}

// As attention_decode of decode.cu and attention_decode_paged of paged_decode.cu, 16 rows at once;
// better from about 3 rows on. workspace: B * H * Tq * n_splits * (E + 2) floats.
//
// Grid (n_splits, K * ceil(H / K * Tq / 16), B), 128 threads. Choose n_splits so that there are
// about three blocks per multiprocessor, with at least 128 keys each.
//   W                            32      64      96     128     192     256
//   dynamic shared memory     18048   35456   52864   70272   55936   74368 bytes
#define FLASH_DECODE(W, STAGES, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) flash_decode_##W( \
        const T* q, const T* k, const T* v, float* workspace, const int* intervals, \
            int q_stride, \
        int k_stride, int v_stride, int tq, int tk, int n_heads, int n_kv_heads, int width, \
            int causal, int window, int n_keys, \
        float scale, int n_splits) { \
        Mask mask(intervals, causal, window, n_keys, tq); \
        decode<W, STAGES>(q, k, v, workspace, mask, q_stride, k_stride, v_stride, InOrder{tk}, \
            n_heads, n_kv_heads, width, scale, n_splits); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) flash_decode_paged_##W( \
        const T* q, const T* k, const T* v, float* workspace, const int* table, \
            const int* lengths, int max_pages, int page_shift, \
        int q_stride, int k_stride, int v_stride, int tq, int n_heads, int n_kv_heads, int width, \
            int causal, int window, \
        float scale, int n_splits) { \
        Mask mask(0, causal, window, lengths[blockIdx.z], tq); \
        InPages place(table, max_pages, page_shift); \
        decode<W, STAGES>(q, k, v, workspace, mask, q_stride, k_stride, v_stride, place, n_heads, \
            n_kv_heads, width, scale, n_splits); \
    }
FLASH_DECODE(32, 2, 4)
FLASH_DECODE(64, 2, 4)
FLASH_DECODE(96, 2, 4)
FLASH_DECODE(128, 2, 3)
FLASH_DECODE(192, 1, 2)
FLASH_DECODE(256, 1, 2)

#endif
