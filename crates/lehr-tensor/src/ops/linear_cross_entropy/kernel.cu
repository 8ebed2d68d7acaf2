// The loss over a vocabulary from a chunk of logits, their gradient, and the rows that have a
// label.
#include "common.cuh"

// Packs of a thread that are on their way at once.
#define BATCH 4

// max y and sum of e^(y - max) of the numbers seen so far (Milakov and Gimelshein 2018,
// https://arxiv.org/abs/1805.02867).
struct OnlineSum {
    float max, sum;
};
// A new maximum rescales the sum. NaN is no maximum, but makes the sum NaN.
template <int N>
DEVICE void see(OnlineSum& seen, const float y[N]) {
    float peak = y[0];
#pragma unroll
    for (int i = 1; i < N; i++) peak = fmaxf(peak, y[i]);
    if (peak > seen.max) {
        seen.sum *= exp_for_t(seen.max - peak);
        seen.max = peak;
    }
#pragma unroll
    for (int i = 0; i < N; i++) seen.sum += exp_for_t(y[i] - seen.max);
}

// What turns a logit into its gradient.
struct Gradient {
    float max, scale, pull;
    int label;
};
// scale e^(y - max) - [label] pull, times the slope of the cap.
template <bool CAP>
DEVICE float gradient(const Gradient& g, float z, float cap, float inverse_cap, bool is_label) {
    float y = z, slope = 1.0f;
    if (CAP) {
        float t = tanh_for_t(z * inverse_cap);
        y = cap * t;
        slope = 1.0f - t * t;
    }
    float value = exp_for_t(y - g.max) * g.scale;
    if (is_label) value -= g.pull;
    return value * slope;
}

template <bool CAP>
DEVICE void turn_rows(T* logits, const int* labels, float* losses, int n, int v, i64 ld, float cap,
    float z_loss, float factor, const float* factors, const float* scale, int write_gradient,
    Bits* cache, int n_cached) {
    __shared__ float scratch[2][32];
    __shared__ float shared_scale, shared_pull;
    // Fast divisions here and below: exact ones are calls, which cost registers, and the error of
    // these is 2 units in the last place.
    const float inverse_cap = CAP ? __fdividef(1.0f, cap) : 0.0f;
    const int step = blockDim.x, tid = threadIdx.x;
    for (int r = blockIdx.x; r < n; r += gridDim.x) {
        T* const row = logits + r * ld;
        // Single elements up to a multiple of 16 bytes, whole packs, and single elements again:
        // fewer than LANES at either end, so that one thread has at most one of each.
        const int head = min(v, (int)((16 - ((u64)row & 15)) % 16 / sizeof(T)));
        const int n_packs = (v - head) / LANES, tail = head + n_packs * LANES;
        const int cached = min(n_packs, n_cached / LANES);
        T* const packed = row + head;
        // -FLT_MAX, not -infinity: e^(-infinity + infinity) would be NaN.
        OnlineSum seen = {-3.402823466e38f, 0.0f};
        for (int first = tid; first < n_packs; first += BATCH * step) {
            Bits b[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                if (first + k * step < n_packs)
                    b[k] = load_bits_once(packed + (i64)(first + k * step) * LANES);
            }
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                int p = first + k * step;
                if (p >= n_packs) break;
                if (write_gradient && p < cached) cache[p] = b[k];
                float y[LANES];
#pragma unroll
                for (int i = 0; i < LANES; i++) {
                    y[i] = element(b[k], i);
                    if (CAP) y[i] = cap * tanh_for_t(y[i] * inverse_cap);
                }
                see<LANES>(seen, y);
            }
        }
#pragma unroll
        for (int end = 0; end < 2; end++) {
            int c = end == 0 ? tid : tail + tid;
            if (c >= (end == 0 ? head : v)) continue;
            float y = to_f32(row[c]);
            if (CAP) y = cap * tanh_for_t(y * inverse_cap);
            see<1>(seen, &y);
        }
        Gradient g;
        g.max = row_max(seen.max, scratch[0]);
        const float sum = row_sum(seen.sum * exp_for_t(seen.max - g.max), scratch[1]);
        g.label = labels[r];
        if (tid == 0) {
            float target = to_f32(row[g.label]);
            if (CAP) target = cap * tanh_for_t(target * inverse_cap);
            const double log_sum = log((double)sum), lse = g.max + log_sum, z = z_loss;
            // The difference of two numbers near each other first: small losses keep their digits.
            if (losses != nullptr)
                losses[r] = (float)(log_sum + ((double)g.max - target) + z * lse * lse);
            const float f = (factors != nullptr ? factors[r] : factor)
                * (scale != nullptr ? *scale : 1.0f);
            shared_scale = __fdividef((float)(f * (1.0 + 2.0 * z * lse)), sum);
            shared_pull = f;
        }
        // Behind the barrier nobody needs the logits any more, and the scratch of the maximum and
        // the sum is free again.
        __syncthreads();
        if (!write_gradient) continue;
        g.scale = shared_scale;
        g.pull = shared_pull;
        // Backwards: what was read last is still in the second-level cache, what was read first in
        // shared memory.
        for (int first = (n_packs - 1) / (BATCH * step) * (BATCH * step) + tid; first >= 0;
            first -= BATCH * step) {
            Bits b[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                int p = first + k * step;
                if (p < n_packs) b[k] = p < cached ? cache[p] : load_bits(packed + (i64)p * LANES);
            }
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                int p = first + k * step;
                if (p >= n_packs) break;
                PackT out;
                const int column = head + p * LANES;
#pragma unroll
                for (int i = 0; i < LANES; i++) {
                    out.v[i] = from_f32<T>(gradient<CAP>(g, element(b[k], i), cap, inverse_cap,
                        column + i == g.label));
                }
                store_pack(packed + (i64)p * LANES, out);
            }
        }
#pragma unroll
        for (int end = 0; end < 2; end++) {
            int c = end == 0 ? tid : tail + tid;
            if (c >= (end == 0 ? head : v)) continue;
            row[c] = from_f32<T>(gradient<CAP>(g, to_f32(row[c]), cap, inverse_cap, c == g.label));
        }
    }
}

// For each row of logits z, with y = cap tanh(z / cap) (y = z if cap is 0), max = max y, sum = sum
// of e^(y - max), lse = max + ln sum:
//   losses[r] = lse - y[label] + z_loss lse^2,
// and if `write_gradient`, in place of the logits,
//   f ((1 + 2 z_loss lse) e^(y - lse) - onehot(label)) (1 - (y / cap)^2),
//   f = (factors ? factors[r] : factor) * (scale ? *scale : 1).
// logits [n, v] T with
// ld >= v elements from row to row (elements beyond v are neither read nor written); labels [n]
// i32, each in 0..v; losses [n] f32 or null; factors [n] f32 or null; scale [1] f32 or null. Block:
// whole warps, at most 512 threads; 512 unless v is small: about v / (4 LANES). Grid: n, or less.
// Dynamic shared memory: n_cached * sizeof(T) bytes, n_cached a multiple of LANES: so many logits
// of a row stay in shared memory between reading and writing, the rest is read twice. Best is the
// whole row if two blocks of it fit in a multiprocessor (about 100 KB each on an H200), else that
// much of it. 0 if no gradient is written.
extern "C" __global__ void __launch_bounds__(512, 2) cross_entropy_rows(T* logits,
    const int* labels, float* losses, int n, int v, i64 ld, float cap, float z_loss, float factor,
    const float* factors, const float* scale, int write_gradient, int n_cached) {
    DYNAMIC_SHARED(Bits, cache);
    if (cap > 0.0f) {
        turn_rows<true>(logits, labels, losses, n, v, ld, cap, z_loss, factor, factors, scale,
            write_gradient, cache, n_cached);
    } else {
        turn_rows<false>(logits, labels, losses, n, v, ld, cap, z_loss, factor, factors, scale,
            write_gradient, cache, n_cached);
    }
}

// out[i] = x[positions[i]]. x [.., d], out [n, d] T, positions [n] i32.
// Block (x, y), x threads to a row: about d / (4 LANES), x * y = 256. Grid: ceil(n / y), or less.
extern "C" __global__ void gather_labelled_rows(const T* x, const int* positions, T* out, int n,
    int d) {
    for (i64 i = (i64)blockIdx.x * blockDim.y + threadIdx.y; i < n;
        i += (i64)gridDim.x * blockDim.y) {
        copy_row(out + i * d, x + (i64)positions[i] * d, d);
    }
}

// accumulate = 0: out[positions[i]] = rows[i], and zeros in all other rows: every row of `out` is
// written. accumulate = 1: out[positions[i]] += rows[i], and the other rows are left alone. rows
// [n, d], out [n_out, d] T; positions [n] i32, rising and below n_out; n may be 0. Block as
// gather_labelled_rows; grid: ceil(n_out / y) (accumulate = 0) or ceil(n / y) (accumulate = 1), or
// less.
extern "C" __global__ void scatter_labelled_rows(const T* rows, const int* positions, T* out, int n,
    int n_out, int d, int accumulate) {
    const int end = accumulate ? n : n_out;
    for (i64 i = (i64)blockIdx.x * blockDim.y + threadIdx.y; i < end;
        i += (i64)gridDim.x * blockDim.y) {
        if (accumulate) {
            T* to = out + (i64)positions[i] * d;
            const T* from = rows + i * d;
            if (is_packed(d)) {
                for (int c = threadIdx.x * LANES; c < d; c += blockDim.x * LANES) {
                    *(Bits*)(to + c) = add_rounded(load_bits(to + c), load_bits_once(from + c));
                }
            } else {
                for (int c = threadIdx.x; c < d; c += blockDim.x)
                    to[c] = from_f32<T>(to_f32(to[c]) + to_f32(from[c]));
            }
            continue;
        }
        // The number of positions below i: if row i has a label, that is its place among the
        // labelled rows.
        int low = 0, high = n;
        while (low < high) {
            int middle = (low + high) / 2;
            if (positions[middle] < i) low = middle + 1;
            else high = middle;
        }
        if (low < n && positions[low] == i) {
            copy_row(out + i * d, rows + (i64)low * d, d);
        } else if (is_packed(d)) {
            for (int c = threadIdx.x * LANES; c < d; c += blockDim.x * LANES)
                *(Bits*)(out + i * d + c) = Bits{};
        } else {
            for (int c = threadIdx.x; c < d; c += blockDim.x) out[i * d + c] = from_f32<T>(0.0f);
        }
    }
}

// out[0] = (sum of losses) / normalizer, summed in double in a fixed order; 0 for n = 0. losses [n]
// f32, out [1] f32. One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) sum_losses(const float* losses, float* out,
    int n, float normalizer) {
    __shared__ double sums[1024];
    double sum = 0.0;
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += losses[i];
    sums[threadIdx.x] = sum;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[0] = n == 0 ? 0.0f : (float)(sums[0] / normalizer);
}
