// Attention of few queries over many keys that lie in order; `decode.cuh` does it.
#include "decode.cuh"

// The parts of attention for Tq <= 8 queries, RC = 1, 2 or 4 rows at once.
// workspace: B * H * Tq * n_splits * (E + 2) floats.
//
// Grid (n_splits, K * ceil(H / K * Tq / RC), B), 128 threads. Choose n_splits so that there are
// about two blocks per multiprocessor, with at least 64 keys each.
#define ATTENTION_DECODE(W, TEAM, RC) \
    extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 2) attention_decode_##W##_##RC( \
        const T* q, const T* k, const T* v, float* workspace, const int* intervals, \
            int q_stride, \
        int k_stride, int v_stride, int tq, int tk, int n_heads, int n_kv_heads, int width, \
            int causal, int window, int n_keys, \
        float scale, int n_splits) { \
        Mask mask(intervals, causal, window, n_keys, tq); \
        DECODE_BY(W, TEAM, RC, InOrder{tk}) \
    }
ATTENTION_DECODE(64, 8, 1)
ATTENTION_DECODE(64, 8, 2)
ATTENTION_DECODE(64, 8, 4)
ATTENTION_DECODE(128, 8, 1)
ATTENTION_DECODE(128, 8, 2)
ATTENTION_DECODE(128, 8, 4)
ATTENTION_DECODE(256, 16, 1)
ATTENTION_DECODE(256, 16, 2)
ATTENTION_DECODE(256, 16, 4)

// out [B, Tq, H, E] from the parts, which are added in their order.
//
// Grid (H / K * Tq, K, B), 64 or 128 threads.
extern "C" __global__ void attention_decode_combine(const float* workspace, T* out, int tq,
    int n_heads, int n_kv_heads, int width, int n_splits) {
    int per_kv = n_heads / n_kv_heads, n_rows = per_kv * tq, row_in_head = blockIdx.x,
        kv_head = blockIdx.y, b = blockIdx.z;
    int row = (b * n_kv_heads + kv_head) * n_rows + row_in_head;
    Workspace from((float*)workspace, gridDim.z * n_kv_heads * n_rows, n_splits, width);
    float all_max = -INFINITY, sum = 0.0f;
    for (int split = 0; split < n_splits; split++)
        all_max = fmaxf(all_max, from.stats_of(row, split)[0]);
    if (all_max == -INFINITY) all_max = 0.0f;
    for (int split = 0; split < n_splits; split++) {
        float2 stats = *(const float2*)from.stats_of(row, split);
        sum += stats.y * exp2_t(stats.x - all_max);
    }
    // A row that sees nothing has only sums of 0.
    float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    int i = row_in_head / per_kv, head = kv_head * per_kv + row_in_head % per_kv;
    T* to = out + (((i64)b * tq + i) * n_heads + head) * width;
    for (int e = threadIdx.x; e < width; e += blockDim.x) {
        float x = 0.0f;
#pragma unroll 4
        for (int split = 0; split < n_splits; split++)
            x += from.sums_of(row, split)[e] * exp2_t(from.stats_of(row, split)[0] - all_max);
        to[e] = from_f32<T>(x * factor);
    }
}
