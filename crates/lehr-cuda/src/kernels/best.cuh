// The largest of many floats and its index: of equals the smallest index, never NaN.
#pragma once
#include "common.cuh"

// A candidate for the maximum. With `index` = NO_INDEX there is none yet.
#define NO_INDEX 0x7fffffff
struct Best {
    float value;
    int index;
};
// The larger, of equals the one with the smaller index. Comparisons with NaN are false, so that NaN
// never wins.
DEVICE void take_better(Best& best, float value, int index) {
    // Without && and ||, which became branches.
    bool better = (value > best.value) | ((value == best.value) & (index < best.index));
    best.value = better ? value : best.value;
    best.index = better ? index : best.index;
}
// The best of the block, for thread 0.
DEVICE Best block_best(Best best) {
    __shared__ float values[32];
    __shared__ int indices[32];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
#pragma unroll
    for (int other = 16; other > 0; other >>= 1) {
        float value = __shfl_xor_sync(FULL_MASK, best.value, other);
        int index = __shfl_xor_sync(FULL_MASK, best.index, other);
        take_better(best, value, index);
    }
    if (lane == 0) {
        values[warp] = best.value;
        indices[warp] = best.index;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int i = 1; i < n_warps; i++) take_better(best, values[i], indices[i]);
    }
    return best;
}
