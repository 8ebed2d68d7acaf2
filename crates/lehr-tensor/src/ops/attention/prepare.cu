// What the backward kernels of attention read besides their inputs. `attention.cuh` says what the
// tensors are.
#include "attention.cuh"

// bounds [B, ceil(Tq / n), 4]: what each tile of n queries sees, for backward over keys with
// `intervals` given: two numbers around all keys that some query sees, two around those that all
// see.
//
// Grid (ceil(Tq / n), B), 32 threads.
extern "C" __global__ void attention_tile_bounds(const int* intervals, int* bounds, int tq,
    int n_keys, int n) {
    int tile = blockIdx.x, b = blockIdx.y;
    Bounds found = warp_bounds(Mask(intervals, 0, 0, n_keys, tq), b, tile * n, n);
    int4* to = (int4*)(bounds + 4 * ((i64)b * gridDim.x + tile));
    if (threadIdx.x == 0)
        *to = make_int4(found.reach_lo, found.reach_hi, found.full_lo, found.full_hi);
}

// stats[b, h, i] = (lse[b, h, i] in base 2, delta = sum_e out[b, i, h, e] * dout[b, i, h, e]); lse
// of a query that sees nothing becomes +inf, so that exp2(score - lse) is 0. n_rows = B * Tq * H.
// Eight threads per row.
//
// Any grid (about n_rows / 32 blocks), 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    attention_stats(const T* out, const T* dout, const float* lse, float* stats, int n_rows, int tq,
        int n_heads, int width) {
    const int TEAM = 8;
    int member = threadIdx.x % TEAM;
    const bool packed = is_packed(width);
    // All threads of a warp go through the loop equally often, because they exchange sums.
    for (i64 first = thread_index() / WARP * (WARP / TEAM); first < n_rows;
        first += n_threads() / TEAM) {
        i64 row = first + threadIdx.x % WARP / TEAM;
        float delta = 0.0f;
        if (row < n_rows) {
            const T* x = out + row * width;
            const T* y = dout + row * width;
            if (packed) {
#pragma unroll 2
                for (int e = member * LANES; e < width; e += TEAM * LANES) {
                    PackT a = load_pack<T, LANES>(x + e), b = load_pack<T, LANES>(y + e);
#pragma unroll
                    for (int i = 0; i < LANES; i++) delta += to_f32(a.v[i]) * to_f32(b.v[i]);
                }
            } else {
                for (int e = member; e < width; e += TEAM) delta += to_f32(x[e]) * to_f32(y[e]);
            }
        }
#pragma unroll
        for (int other = TEAM / 2; other > 0; other >>= 1)
            delta += __shfl_xor_sync(FULL_MASK, delta, other);
        if (row < n_rows && member == 0) {
            int head = (u32)row % (u32)n_heads, token = (u32)row / (u32)n_heads;
            i64 at = ((i64)(token / tq) * n_heads + head) * tq + token % tq;
            float x = lse[at];
            *(float2*)(stats + 2 * at) = make_float2(x == -INFINITY ? INFINITY : x * LOG2_E, delta);
        }
    }
}
