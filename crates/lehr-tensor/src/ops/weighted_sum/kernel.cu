// A sum of tensors with factors that may be on the device. Tensors start on 16 bytes; grid and
// block have one dimension.
#include "common.cuh"

DEVICE float coefficient(const float* weight, float factor) {
    return weight ? factor * *weight : factor;
}

// y = sum of c_i x_i, c_i = factor_i * *weight_i, for n elements. x1, x2 and x3 may be null: there
// is no such term. A weight may be null: it is 1. y may be any x. Any grid, at most 256 threads.
extern "C" __global__ void __launch_bounds__(256, 4)
    weighted_sum_forward(const T* x0, const T* x1, const T* x2, const T* x3, const float* w0,
        const float* w1, const float* w2, const float* w3, float f0, float f1, float f2, float f3,
        T* y, i64 n) {
    float a = coefficient(w0, f0), b = coefficient(w1, f1), c = coefficient(w2, f2),
          d = coefficient(w3, f3);
    const i64 n_packs = n / LANES;
    for (i64 p = thread_index(); p < n_packs; p += n_threads()) {
        Bits v0 = load_bits_once(x0 + p * LANES), v1 = {}, v2 = {}, v3 = {};
        if (x1) v1 = load_bits_once(x1 + p * LANES);
        if (x2) v2 = load_bits_once(x2 + p * LANES);
        if (x3) v3 = load_bits_once(x3 + p * LANES);
        PackT out;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            float sum = a * element(v0, i) + b * element(v1, i) + c * element(v2, i);
            out.v[i] = from_f32<T>(sum + d * element(v3, i));
        }
        store_pack(y + p * LANES, out);
    }
    for (i64 i = n_packs * LANES + thread_index(); i < n; i += n_threads()) {
        float sum = a * to_f32(x0[i]);
        if (x1) sum += b * to_f32(x1[i]);
        if (x2) sum += c * to_f32(x2[i]);
        if (x3) sum += d * to_f32(x3[i]);
        y[i] = from_f32<T>(sum);
    }
}

// dx (+)= factor * *weight * dy for n elements; weight may be null. Any grid, at most 256 threads.
extern "C" __global__ void __launch_bounds__(256, 4)
    weighted_sum_backward(const T* dy, const float* weight, float factor, T* dx, i64 n,
        int accumulate) {
    float c = coefficient(weight, factor);
    const i64 n_packs = n / LANES;
    for (i64 p = thread_index(); p < n_packs; p += n_threads()) {
        Bits dys = load_bits_once(dy + p * LANES), added = {};
        if (accumulate) added = load_bits_once(dx + p * LANES);
        PackT out;
#pragma unroll
        for (int i = 0; i < LANES; i++)
            out.v[i] = from_f32<T>(element(added, i) + c * element(dys, i));
        store_pack(dx + p * LANES, out);
    }
    for (i64 i = n_packs * LANES + thread_index(); i < n; i += n_threads()) {
        float value = c * to_f32(dy[i]);
        dx[i] = from_f32<T>(accumulate ? to_f32(dx[i]) + value : value);
    }
}

// partials[block] = the block's part of sum a b, n elements, in f64. Block 256 threads; the grid
// decides the order of the sums, so it must depend on n alone.
extern "C" __global__ void __launch_bounds__(256, 4)
    weighted_sum_dot(const T* a, const T* b, double* partials, i64 n) {
    __shared__ double scratch[8];
    double sum = 0;
    auto step = [&](i64, auto a, auto b) {
        float part = 0.0f;
        for (int k = 0; k < a.N_ELEMENTS; k++) part += to_f32(a.v[k]) * to_f32(b.v[k]);
        sum += part;
    };
    elementwise<LANES, 1>(n, step, a, b);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// *out (+)= factor * the sum of n partials, in their order. One block of 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    weighted_sum_finish(const double* partials, int n, float factor, float* out, int accumulate) {
    __shared__ double scratch[8];
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += 256) sum += partials[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        float value = (float)(sum * factor);
        *out = accumulate ? *out + value : value;
    }
}
