// How product.cuh multiplies a segment in shared memory and keeps the sums: on tensor cores for
// several rows of x (TensorSums) and for one (DiagonalSums), and in f32 (FloatSums).
#pragma once
#include "product_copy.cuh"

#if LEHR_T != 0
// Pairs of neighbours to pairs of numbers four apart.
DEVICE void cross(u32 b[4]) {
    u32 a0 = b[0], a1 = b[1], a2 = b[2], a3 = b[3];
    b[0] = __byte_perm(a0, a2, 0x5410), b[1] = __byte_perm(a0, a2, 0x7632);
    b[2] = __byte_perm(a1, a3, 0x5410), b[3] = __byte_perm(a1, a3, 0x7632);
}

// Sums of rows g and g + 8 of W and rows 2 p and 2 p + 1 of x.
template <class F>
struct TensorSums {
    float sums[4];
    DEVICE void clear() {
        for (int i = 0; i < 4; i++) sums[i] = 0.0f;
    }
    static DEVICE const u8* x_of_lane(const u8* x, int n) {
        // Sums of rows of x that do not exist are never read.
        int lane = threadIdx.x % WARP;
        int row = min(lane / 4, n - 1);
        return x + row * SegmentLayout<F>::X_STRIDE + lane % 4 * (F::NEAR ? 16 : 8);
    }
    static DEVICE void load_x(const u8* x, int j, u32 b[4]) {
        if (F::NEAR) {
            Pack<u32, 4> v = load_pack<u32, 4>((const u32*)(x + 64 * j));
            for (int i = 0; i < 4; i++) b[i] = v.v[i];
        } else {
            Pack<u32, 2> v = load_pack<u32, 2>((const u32*)(x + 64 * j)),
                u = load_pack<u32, 2>((const u32*)(x + 64 * j + 32));
            b[0] = v.v[0], b[1] = v.v[1], b[2] = u.v[0], b[3] = u.v[1];
        }
        if (F::CROSS) cross(b);
    }
    // c += half `half` of the step.
    static DEVICE void multiply(float c[4], const u32* low, const u32* high, const u32 b[4],
        int half) {
        u32 a[4] = {low[2 * half], high[2 * half], low[2 * half + 1], high[2 * half + 1]};
        mma_16816(c, a, b + 2 * half);
    }
    static DEVICE void sum_x(float c[4], const u32 b[4], int half) {
        u32 ones[4] = {BOTH(ONE), BOTH(ONE), BOTH(ONE), BOTH(ONE)};
        mma_16816(c, ones, b + 2 * half);
    }
    DEVICE void add(const float c[4], float low, float high) {
        sums[0] += low * c[0], sums[1] += low * c[1], sums[2] += high * c[2],
            sums[3] += high * c[3];
    }
    DEVICE void step(int j, const u8* x, int n, const Step<u32>& low, const Step<u32>& high) {
        u32 b[4];
        load_x(x, j, b);
        if (F::UNIT) {
            multiply(sums, low.pairs, high.pairs, b, 0);
            multiply(sums, low.pairs, high.pairs, b, 1);
            return;
        }
#pragma unroll
        for (int half = 0; half < (F::HALVES ? 2 : 1); half++) {
            float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (F::REST) {
                // Pairs and rests come as neighbours and stay so, as two rows of one product.
                float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    multiply(c, low.pairs, low.rest, b, i);
                    multiply(d, high.pairs, high.rest, b, i);
                }
                c[0] += c[2], c[1] += c[3], c[2] = d[0] + d[2], c[3] = d[1] + d[3];
            } else {
                multiply(c, low.pairs, high.pairs, b, half);
                if (!F::HALVES) multiply(c, low.pairs, high.pairs, b, 1);
            }
            add(c, low.scale[half], high.scale[half]);
            if (F::MINIMA) {
                float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                sum_x(s, b, half);
                if (!F::HALVES) sum_x(s, b, 1);
                add(s, low.minimum[half], high.minimum[half]);
            }
        }
    }
    DEVICE void segment(const Row& low, const Row& high, const u8* x, const u8* zeros, int n) {
        const u8* x_lane = x_of_lane(x, n);
#pragma unroll
        for (int j = 0; j < F::SEGMENT / 32; j++) {
            Step<u32> a, b;
            F::step(j, low, a);
            F::step(j, high, b);
            step(j, x_lane, n, a, b);
        }
    }
    // Writes the sums of the warp to `out`, [ROWS, TOKENS].
    DEVICE void store(float* out, int n) {
        int lane = threadIdx.x % WARP, row = lane / 4, token = lane % 4 * 2;
        for (int i = 0; i < 4; i++) out[(row + i / 2 * 8) * TOKENS + token + i % 2] = sums[i];
    }
};

// Sums of rows g and g + 8 of W and the one row of x, in part: lanes of a row share them.
//
// With one row of x, seven of a tensor core's eight columns are idle. So column t is given x of run
// t of 32 columns of a segment, and zeros elsewhere: the product of the whole segment is then the
// sums of its eight runs, each in a column of its own, and a lane scales two of them rather than
// eight. As lane p owns runs of its own, four lanes' part of that factor is x and all else zeros.
template <class F>
struct DiagonalSums {
    float sums[2];
    DEVICE void clear() { sums[0] = sums[1] = 0.0f; }
    static DEVICE void multiply(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, const u32* b) {
        u32 a[4] = {a0, a1, a2, a3};
        mma_16816(c, a, b);
    }
    static DEVICE void load_x(const u8* x, int k, u32 b[4]) {
        if (F::CROSS && !F::NEAR) {
            Pack<u32, 2> v = load_pack<u32, 2>((const u32*)(x + 8 * k)),
                u = load_pack<u32, 2>((const u32*)(x + 32 + 8 * k));
            b[0] = v.v[0], b[1] = v.v[1], b[2] = u.v[0], b[3] = u.v[1];
        } else {
            Pack<u32, 4> v = load_pack<u32, 4>((const u32*)(x + 16 * k));
            for (int i = 0; i < 4; i++) b[i] = v.v[i];
        }
        if (F::CROSS) cross(b);
    }
    DEVICE void segment(const Row& low, const Row& high, const u8* x, const u8* zeros, int n) {
        int lane = threadIdx.x % WARP, column = lane / 4, p = lane % 4;
        // Sums of codes, and of x; of both halves of runs if they have scales of their own. With
        // rests: of low and high rows.
        float c[2][4], s[2][4];
        for (int i = 0; i < 8; i++) c[i / 4][i % 4] = s[i / 4][i % 4] = 0.0f;
#pragma unroll
        for (int run = 0; run < 2; run++) {
            // Zeros in banks where no other lane reads x at the same time.
            const u8* none = zeros + (((u32)(u64)x - (u32)(u64)zeros + (run ? 0 : 64)) & 127);
            const u8* x_run = column == F::run_of(p, run) ? x + 64 * column : none;
            typename F::Raw low_raw, high_raw;
            F::load(low, run, low_raw);
            F::load(high, run, high_raw);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                u32 b[4];
                load_x(x_run, k, b);
                Step<u32> l, h;
                F::pairs(low_raw, low, run, k, l);
                F::pairs(high_raw, high, run, k, h);
                constexpr int SPLIT = F::HALVES ? 2 : 4;
                if (F::REST) {
                    // Pairs and rests come as neighbours and stay so, as two rows of one product.
                    multiply(c[0], l.pairs[0], l.rest[0], l.pairs[1], l.rest[1], b);
                    multiply(c[0], l.pairs[2], l.rest[2], l.pairs[3], l.rest[3], b + 2);
                    multiply(c[1], h.pairs[0], h.rest[0], h.pairs[1], h.rest[1], b);
                    multiply(c[1], h.pairs[2], h.rest[2], h.pairs[3], h.rest[3], b + 2);
                } else {
                    multiply(c[k / SPLIT], l.pairs[0], h.pairs[0], l.pairs[1], h.pairs[1], b);
                    multiply(c[k / SPLIT], l.pairs[2], h.pairs[2], l.pairs[3], h.pairs[3], b + 2);
                }
                if (F::MINIMA) {
                    multiply(s[k / SPLIT], BOTH(ONE), BOTH(ONE), BOTH(ONE), BOTH(ONE), b);
                    multiply(s[k / SPLIT], BOTH(ONE), BOTH(ONE), BOTH(ONE), BOTH(ONE), b + 2);
                }
            }
        }
        if (F::REST) {
            for (int i = 0; i < 2; i++) c[0][i] += c[0][i + 2], c[0][i + 2] = c[1][i] + c[1][i + 2];
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            Step<u32> l, h;
            F::scales(2 * p + i, low, l);
            F::scales(2 * p + i, high, h);
#pragma unroll
            for (int half = 0; half < (F::HALVES ? 2 : 1); half++) {
                sums[0] += l.scale[half] * c[half][i];
                sums[1] += h.scale[half] * c[half][i + 2];
                if (F::MINIMA) {
                    sums[0] += l.minimum[half] * s[half][i];
                    sums[1] += h.minimum[half] * s[half][i];
                }
            }
        }
    }
    DEVICE void store(float* out, int n) {
        int lane = threadIdx.x % WARP;
        for (int i = 0; i < 2; i++) {
            float sum = sums[i];
            sum += __shfl_xor_sync(FULL_MASK, sum, 1);
            sum += __shfl_xor_sync(FULL_MASK, sum, 2);
            if (lane % 4 == 0) out[(lane / 4 + 8 * i) * TOKENS] = sum;
        }
    }
};
#endif

// Sums of quarter p of rows g and g + 8 of W, all rows of x.
template <class F>
struct FloatSums {
    float sums[2][TOKENS];
    DEVICE void clear() {
        for (int i = 0; i < 2 * TOKENS; i++) sums[i / TOKENS][i % TOKENS] = 0.0f;
    }
    static DEVICE const u8* x_of_lane(const u8* x, int n) {
        return x + threadIdx.x % 4 * (int)sizeof(T) * (F::NEAR ? 8 : 4);
    }
    // Eight numbers, as the pairs of W hold them.
    static DEVICE void load_x(const T* x, float v[8]) {
        constexpr int N = F::NEAR && sizeof(T) == 2 ? 8 : 4;
        float u[8];
        for (int i = 0; i < 8; i += N) {
            Pack<T, N> pack = load_pack<T, N>(F::NEAR ? x + i : x + 4 * i);
            for (int k = 0; k < N; k++) u[i + k] = to_f32(pack.v[k]);
        }
        for (int i = 0; i < 8; i++) v[i] = F::CROSS ? u[i / 2 + i % 2 * 4] : u[i];
    }
    static DEVICE float dot(const float2* pairs, const float* v, int n_pairs) {
        float sum = 0.0f;
        for (int i = 0; i < n_pairs; i++) {
            sum += pairs[i].x * v[2 * i];
            sum += pairs[i].y * v[2 * i + 1];
        }
        return sum;
    }
    DEVICE void step(int j, const u8* x, int n, const Step<float2>& low, const Step<float2>& high) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            if (t >= n) break;
            float v[8];
            load_x((const T*)(x + t * SegmentLayout<F>::X_STRIDE) + 32 * j, v);
            constexpr int HALVES = F::HALVES ? 2 : 1, N = F::HALVES ? 2 : 4;
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                float a = dot(low.pairs + N * half, v + 2 * N * half, N),
                    b = dot(high.pairs + N * half, v + 2 * N * half, N);
                sums[0][t] += F::UNIT ? a : low.scale[half] * a;
                sums[1][t] += F::UNIT ? b : high.scale[half] * b;
                if (F::MINIMA) {
                    float s = 0.0f;
                    for (int i = 0; i < 2 * N; i++) s += v[2 * N * half + i];
                    sums[0][t] += low.minimum[half] * s;
                    sums[1][t] += high.minimum[half] * s;
                }
            }
        }
    }
    DEVICE void segment(const Row& low, const Row& high, const u8* x, const u8* zeros, int n) {
        const u8* x_lane = x_of_lane(x, n);
#pragma unroll
        for (int j = 0; j < F::SEGMENT / 32; j++) {
            Step<float2> a, b;
            F::step(j, low, a);
            F::step(j, high, b);
            step(j, x_lane, n, a, b);
        }
    }
    DEVICE void store(float* out, int n) {
        int lane = threadIdx.x % WARP;
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            if (t >= n) break;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float sum = sums[i][t];
                sum += __shfl_xor_sync(FULL_MASK, sum, 1);
                sum += __shfl_xor_sync(FULL_MASK, sum, 2);
                if (lane % 4 == 0) out[(lane / 4 + 8 * i) * TOKENS + t] = sum;
            }
        }
    }
};
