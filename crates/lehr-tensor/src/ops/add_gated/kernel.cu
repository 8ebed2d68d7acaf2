// Rows added behind a gate. All kernels: n rows of d elements, one gate logit per row; block 128
// threads, a warp to a row; grid ceil(n / 4), or less. The gate of a row is
// g = factor * *scale * sigmoid(logit); scale may be null: it is 1.
#include "common.cuh"

#define WARPS 4

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
DEVICE float constant(const float* scale, float factor) { return scale ? factor * *scale : factor; }
DEVICE i64 first_row() { return (i64)blockIdx.x * WARPS + threadIdx.x / WARP; }
DEVICE i64 row_step() { return (i64)gridDim.x * WARPS; }

// y = x + g other. x, other, y [n, d] T, logits [n] T. y may be x.
extern "C" __global__ void __launch_bounds__(128)
    add_gated_forward(const T* x, const T* other, const T* logits, const float* scale, float factor,
        T* y, int n, int d) {
    float c = constant(scale, factor);
    for (i64 r = first_row(); r < n; r += row_step()) {
        float gate = c * sigmoid(to_f32(logits[r]));
        for (int k = threadIdx.x % WARP; k < d; k += WARP) {
            i64 i = r * d + k;
            y[i] = from_f32<T>(to_f32(x[i]) + gate * to_f32(other[i]));
        }
    }
}

// dother (+)= g dy. dy, dother [n, d] T.
extern "C" __global__ void __launch_bounds__(128)
    add_gated_backward_other(const T* dy, const T* logits, const float* scale, float factor,
        T* dother, int n, int d, int accumulate) {
    float c = constant(scale, factor);
    for (i64 r = first_row(); r < n; r += row_step()) {
        float gate = c * sigmoid(to_f32(logits[r]));
        for (int k = threadIdx.x % WARP; k < d; k += WARP) {
            i64 i = r * d + k;
            float value = gate * to_f32(dy[i]);
            dother[i] = from_f32<T>(accumulate ? to_f32(dother[i]) + value : value);
        }
    }
}

// dlogits[r] = g (1 - sigmoid(logit)) * p with p = sum of dy other over the row, and
// partials[block] = the sum of sigmoid(logit) p over the rows of the block, in f64; partials may be
// null. The grid decides the order of the sums, so it must depend on n alone.
extern "C" __global__ void __launch_bounds__(128)
    add_gated_backward_gate(const T* dy, const T* other, const T* logits, const float* scale,
        float factor, T* dlogits, double* partials, int n, int d) {
    __shared__ double scratch[WARPS];
    float c = constant(scale, factor);
    double total = 0;
    int lane = threadIdx.x % WARP;
    for (i64 r = first_row(); r < n; r += row_step()) {
        float open = sigmoid(to_f32(logits[r])), p = 0.0f;
        for (int k = lane; k < d; k += WARP) p += to_f32(dy[r * d + k]) * to_f32(other[r * d + k]);
        p = warp_sum(p);
        if (lane == 0) {
            dlogits[r] = from_f32<T>(c * open * (1.0f - open) * p);
            total += open * p;
        }
    }
    total = block_sum(total, scratch);
    if (partials && threadIdx.x == 0) partials[blockIdx.x] = total;
}
