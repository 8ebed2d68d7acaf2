// The optimizer's passes over all parameters at once, and the index of a row's maximum.
//
// A list of tensors is cut into chunks of `chunk_len` elements, a multiple of 8 (16384 is good);
// the last chunk of a tensor is shorter. `chunks` has an entry for each, in any order, and one
// launch covers all: one block per chunk is best, any grid is right.
#include "best.cuh"
#include "clip.cuh"
#include "common.cuh"

// In Rust: #[repr(C)] struct { tensor: u32, chunk: u32 }.
struct Chunk {
    u32 tensor;
    // Elements chunk * chunk_len to (chunk + 1) * chunk_len of the tensor.
    u32 chunk;
};
// In Rust: #[repr(C)] struct { x: u64, n: i64 }, 16 bytes.
struct Vector {
    const float* x;
    i64 n;
};
// In Rust: #[repr(C)] struct { param: u64, grad: u64, m: u64, v: u64, shadow: u64, n: i64,
// lr_scale: f32, weight_decay: f32 }, 56 bytes.
struct AdamwTensor {
    float* param;
    const float* grad;
    float* m;
    float* v;
    // The compute copy of the parameter, or null.
    T* shadow;
    i64 n;
    // Of the learning rate of this tensor.
    float lr_scale;
    float weight_decay;
};

// Tells the compiler that a pointer from a table points to global memory: it takes the
// faster instructions.
template <class E>
DEVICE E* global(E* p) {
#ifndef LEHR_EMULATED
    __builtin_assume(__isGlobal(p));
#endif
    return p;
}

// How many of n elements are in the chunk that starts at `start`.
DEVICE i64 length_of(i64 n, i64 start, int chunk_len) {
    return n - start < chunk_len ? n - start : chunk_len;
}

// The sum of squares of n elements, for thread 0: those of a pack are added in f32, all else in
// f64.
DEVICE double squares_of(const float* x, i64 n) {
    __shared__ double scratch[8];
    double sum = 0;
    auto step = [&](i64 i, auto x) {
        float part = 0.0f;
        for (int k = 0; k < x.N_ELEMENTS; k++) part = fmaf(x.v[k], x.v[k], part);
        sum += part;
    };
    elementwise_by<4, 4>(threadIdx.x, blockDim.x, n, step, x);
    return block_sum(sum, scratch);
}
// partials[c] = the sum of x^2 over chunk c of a list of f32 tensors. Block 256 threads; tensors
// start on 16 bytes.
extern "C" __global__ void __launch_bounds__(256, 4)
    sum_of_squares(const Vector* tensors, const Chunk* chunks, int n_chunks, int chunk_len,
        double* partials) {
    for (int c = blockIdx.x; c < n_chunks; c += gridDim.x) {
        Vector tensor = tensors[chunks[c].tensor];
        i64 start = (i64)chunks[c].chunk * chunk_len;
        double sum = squares_of(global(tensor.x) + start, length_of(tensor.n, start, chunk_len));
        if (threadIdx.x == 0) partials[c] = sum;
    }
}
// *sum = the partials, n of them, in a fixed order, and 0 * *loss: what is not finite there is not
// finite here. `loss` may be null. One block of 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    sum_of_squares_finish(const double* partials, int n, double* sum, const float* loss) {
    __shared__ double scratch[8];
    double mine = 0;
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += 256) mine += partials[i];
    mine = block_sum(mine, scratch);
    if (threadIdx.x != 0) return;
    if (loss) mine += 0.0 * *loss;
    *sum = mine;
}

// The numbers of an update that are the same for a whole tensor.
struct AdamwRule {
    float keep, minus_step, beta1, beta2, rest1, rest2, eps, v_scale, g_scale;
    // Whether only weights decay whose update also moves them towards 0.
    bool cautious;
    // Whether weights with a gradient of exactly 0 keep their value and moments.
    bool lazy;
};
// Of lr, beta1, ... as in inplace/adamw.rs: keep = 1 - lr lambda, step_size = lr / (1 - beta1^t),
// v_scale = 1 / sqrt(1 - beta2^t).
DEVICE AdamwRule adamw_rule(float lr, float beta1, float beta2, float eps, float step_size,
    float v_scale, float weight_decay, float g_scale, bool cautious, bool lazy) {
    // Each operation is rounded for itself, as on the CPU: the compiler would fuse them.
    float keep = __fsub_rn(1.0f, __fmul_rn(lr, weight_decay));
    return {keep, -step_size, beta1, beta2, 1.0f - beta1, 1.0f - beta2, eps, v_scale, g_scale,
        cautious, lazy};
}
// The order of operations is that of inplace/adamw.rs, and so are the bits.
DEVICE void adamw_element(const AdamwRule& rule, float& p, float grad, float& m, float& v) {
    if (rule.lazy && grad == 0.0f) return;
    float g = __fmul_rn(grad, rule.g_scale);
    m = fmaf(rule.beta1, m, __fmul_rn(rule.rest1, g));
    v = fmaf(rule.beta2, v, __fmul_rn(rule.rest2, __fmul_rn(g, g)));
    float root = fmaf(sqrtf(v), rule.v_scale, rule.eps);
    float keep = rule.cautious && __fmul_rn(m, p) < 0.0f ? 1.0f : rule.keep;
    p = fmaf(rule.minus_step, m / root, __fmul_rn(p, keep));
}
// Updates n elements with the threads of this block, number `thread` of `n_threads`.
DEVICE void adamw_elements(const AdamwRule& rule, i64 thread, i64 n_threads, i64 n, float* param,
    const float* grad, float* m, float* v, T* shadow) {
    auto step = [=](i64 i, auto p, auto g, auto m_old, auto v_old) {
        auto copy = pack_like<T>(p);
        for (int k = 0; k < p.N_ELEMENTS; k++) {
            adamw_element(rule, p.v[k], g.v[k], m_old.v[k], v_old.v[k]);
            copy.v[k] = from_f32<T>(p.v[k]);
        }
        store_pack(param + i, p);
        store_pack(m + i, m_old);
        store_pack(v + i, v_old);
        if (shadow) store_pack(shadow + i, copy);
    };
    elementwise_by<4, 1>(thread, n_threads, n, step, (const float*)param, grad, (const float*)m,
        (const float*)v);
}

// AdamW over a list of tensors, in place: p <- p (1 - lr lambda); m <- beta1 m + (1 - beta1) g; v
// <- beta2 v + (1 - beta2) g^2; p <- p - step_size m / (sqrt(v) v_scale + eps); shadow <- p
// rounded. lr and step_size are those of lr_scale = 1. If `cautious`, the first step leaves out
// weights whose p m is negative. If `lazy`, nothing changes where grad is 0.
//
// g is grad * grad_scale, and if clip_norm > 0 and norm > clip_norm times clip_norm / norm, where
// norm = sqrt(*sum_of_squares) * grad_scale: the sum over all gradients as they lie in memory
// (before grad_scale, which undoes loss scaling). If the sum is not finite, nothing changes.
// sum_of_squares may be null: no clipping, no check.
//
// Block 256 threads; grid of one dimension, best n_chunks blocks; tensors start on 16 bytes.
extern "C" __global__ void __launch_bounds__(256, 4)
    adamw(const AdamwTensor* tensors, const Chunk* chunks, int n_chunks, int chunk_len, float lr,
        float beta1, float beta2, float eps, float step_size, float v_scale,
        const double* sum_of_squares, float clip_norm, float grad_scale, int cautious,
        int lazy) {
    __shared__ Clipped shared_clipped;
    if (threadIdx.x == 0) shared_clipped = clipped(sum_of_squares, clip_norm, grad_scale);
    __syncthreads();
    if (shared_clipped.skip) return;
    float g_scale = shared_clipped.g_scale;
    for (int c = blockIdx.x; c < n_chunks; c += gridDim.x) {
        AdamwTensor t = tensors[chunks[c].tensor];
        i64 start = (i64)chunks[c].chunk * chunk_len;
        AdamwRule rule =
            adamw_rule(lr * t.lr_scale, beta1, beta2, eps, step_size * t.lr_scale, v_scale,
                t.weight_decay, g_scale, cautious != 0, lazy != 0);
        i64 n = length_of(t.n, start, chunk_len);
        T* shadow = t.shadow ? global(t.shadow) + start : t.shadow;
        adamw_elements(rule, threadIdx.x, blockDim.x, n, global(t.param) + start,
            global(t.grad) + start, global(t.m) + start, global(t.v) + start, shadow);
    }
}

// ids[row] = the index of the largest of x [rows, width] in each row, the smallest index of equals.
// NaN never wins; if all are NaN the index is 0. One block a row, at most 65535 rows at once in the
// grid's second dimension; block whole warps, best 256, and 1024 for few rows. x starts on 16
// bytes.
extern "C" __global__ void __launch_bounds__(1024) argmax(const T* x, int width, int* ids) {
    const int N = 16 / (int)sizeof(T);
    i64 row = blockIdx.y, at = row * width;
    // The first element of the row on 16 bytes: rows may start anywhere.
    int head = (int)((N - at % N) % N);
    if (head > width) head = width;
    const T* p = x + at;
    Best best = {-INFINITY, NO_INDEX};
    if ((int)threadIdx.x < head) take_better(best, to_f32(p[threadIdx.x]), threadIdx.x);
    auto step = [&](i64 i, auto x) {
        for (int k = 0; k < x.N_ELEMENTS; k++) take_better(best, to_f32(x.v[k]), head + (int)i + k);
    };
    elementwise_by<N, 4>(threadIdx.x, blockDim.x, width - head, step, p + head);
    best = block_best(best);
    if (threadIdx.x == 0) ids[row] = best.index == NO_INDEX ? 0 : best.index;
}
