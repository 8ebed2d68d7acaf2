// Products of a few vectors with a weight in a stored form, for generation: y = x Wᵀ + bias, n = 1
// to 8 rows of x.
//
// A block makes 16 rows of W, that is 16 columns of y. Rows are cut into segments of columns, which
// its warps take in turn. A warp copies its next two segments to shared memory while it works on
// one (cp.async, so that bytes under way take no registers), each byte of W once, with 16 bytes per
// copy. Then lane 4 g + p decodes a quarter p of rows g and g + 8, 32 columns ("a step") at a time.
//
// With 16-bit activations codes become small integers in T, exactly, and tensor cores multiply them
// with x: products are exact and sums are f32; the scales of a block then multiply its sum, in f32.
// So x is never rounded, and two to eight rows cost the same; one row has its own way
// (DiagonalSums), which costs less. With f32 activations, and for weights that are floats of
// another type than T, the same lanes multiply and add in f32.
//
// Lane p of a row owns eight columns of a step, in one of two ways (NEAR): 8 p to 8 p + 7, or 4 p
// to 4 p + 3 and 16 + 4 p to 16 + 4 p + 3. It holds them as four pairs: neighbours, or (CROSS)
// number i of the first four and number i of the last four. Tensor cores sum over columns, so any
// order of them will do that is the same in W and x.
//
// The formats are in the files that include this one and start kernels with PRODUCT:
// ops/linear_q/product_own.cu, product_blocks.cu and product_k.cu.
#pragma once
#include "product_sums.cuh"

// Bytes of zeros in shared memory: 64, wherever they start in 128.
#define ZEROS 256

// Sums all segments of this warp and writes the sums to `out`, [ROWS, TOKENS]. The copies of the
// first STAGES segments are already under way.
template <class F, class Sums>
DEVICE void sum_segments(const Copier<F>& copier, u8* stages, float* all_partial, const u8* zeros,
    const u8* table, int n_segments) {
    typedef SegmentLayout<F> L;
    constexpr int STEPS = F::SEGMENT / 32;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, n_warps = blockDim.x / WARP,
        n = copier.n, stage_bytes = L::bytes(n);
    int low = lane / 4, high = low + 8, slot = 0;
    Sums sums;
    sums.clear();
    for (int segment = warp; segment < n_segments; segment += n_warps) {
        cp_async_wait<STAGES - 1>();
        __syncwarp();
        u8* at = stages + slot * stage_bytes;
        const u8* x = at + ROWS * L::STRIDE;
        const float* scales = (const float*)(x + n * L::X_STRIDE);
        int low_phase = copier.phase(copier.first_row + low, segment),
            high_phase = copier.phase(copier.first_row + high, segment);
        Row low_row = {at + low * L::STRIDE + low_phase, scales + low * STEPS, table, lane % 4};
        Row high_row = {at + high * L::STRIDE + high_phase, scales + high * STEPS, table, lane % 4};
        sums.segment(low_row, high_row, x, zeros, n);
        __syncwarp();
        int next = segment + STAGES * n_warps;
        if (next < n_segments) copier.start(at, next);
        cp_async_commit();
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    // The sums take the place of the segments.
    __syncthreads();
    sums.store(all_partial + warp * ROWS * TOKENS, n);
}

template <class F>
DEVICE void product(const u8* w, const float* scales, const T* x, const T* bias, T* y, int n,
    int rows, int cols, int row_bytes, int group) {
    DYNAMIC_SHARED(u8, shared);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, n_warps = blockDim.x / WARP;
    int first_row = blockIdx.x * ROWS, n_segments = (cols + F::SEGMENT - 1) / F::SEGMENT,
        stage_bytes = SegmentLayout<F>::bytes(n);
    Copier<F> copier(w, scales, x, n, rows, cols, row_bytes, group);
    u8 *zeros = shared + (F::TABLE ? TABLE_BYTES : 0), *stages = zeros + ZEROS,
        *mine = stages + warp * STAGES * stage_bytes;
#pragma unroll 1
    for (int i = 0; i < STAGES; i++) {
        int segment = warp + i * n_warps;
        if (segment < n_segments) copier.start(mine + i * stage_bytes, segment);
        cp_async_commit();
    }
    for (int i = threadIdx.x; i < ZEROS / 4; i += blockDim.x) ((u32*)zeros)[i] = 0;
    const u8* table = shared + table_offset<F::TABLE == 2>(lane);
    if (F::TABLE) fill_table<F::TABLE == 2>(shared);
    __syncthreads();

    float* partial = (float*)stages;
    if constexpr (OnTensorCores<typename F::P>::value) {
#if LEHR_T != 0
        if constexpr (F::DIAGONAL) {
            if (n == 1)
                sum_segments<F, DiagonalSums<F>>(copier, mine, partial, zeros, table, n_segments);
            else sum_segments<F, TensorSums<F>>(copier, mine, partial, zeros, table, n_segments);
        } else {
            sum_segments<F, TensorSums<F>>(copier, mine, partial, zeros, table, n_segments);
        }
#endif
    } else {
        sum_segments<F, FloatSums<F>>(copier, mine, partial, zeros, table, n_segments);
    }
    __syncthreads();
    // The sums of all warps, in order.
    for (int i = threadIdx.x; i < ROWS * n; i += blockDim.x) {
        int r = i % ROWS, t = i / ROWS, row = first_row + r;
        if (row >= rows) continue;
        float sum = bias ? to_f32(bias[row]) : 0.0f;
        for (int k = 0; k < n_warps; k++) sum += partial[(k * ROWS + r) * TOKENS + t];
        y[(i64)t * rows + row] = from_f32<T>(sum);
    }
}

// y[n, rows] = x[n, cols] Wᵀ + bias[rows] for n = 1 to 8; `bias` may be null. `w` is [rows,
// row_bytes] and starts on 16 bytes; `scales` is [rows, cols / group] for int8, int4 and nf4 and
// otherwise unused; `group` is `cols` where a row has one scale. Grid: ⌈rows / 16⌉. Block: 32 ·
// warps, at most 256: 256 unless shared memory is short or a row has fewer segments than warps.
// Shared memory: table + 256 + 2 · warps · (16 · stride + n · (segment · sizeof(T) + pad) + scales)
// bytes, where
//               f32  f16,bf16   q4_0   q4_1   q5_0   q5_1   q8_0   q2_k   q3_k
//   segment      64       128    256    256    256    256    256    256    256
//   stride      272       320    176    176    208    208    304    112    144
//   pad          64        64     32     32     32     32     32     32     32
//   scales        0         0      0      0      0      0      0      0      0
//   table         0         0      0      0      0      0      0      0      0
//
//              q4_k   q5_k   q6_k iq4_nl iq4_xs   int8   int4    nf4
//   segment     256    256    256    256    256    256    256    256
//   stride      144    176    240    176    176    272    144    144
//   pad          32     32     32     32     32     32     64     64
//   scales        0      0      0      0      0    512    512    512
//   table         0      0      0  32768  32768      0      0  32768
#define PRODUCT(name, F) \
    extern "C" __global__ void __launch_bounds__(256, 3) \
        name(const u8* w, const float* scales, const T* x, const T* bias, T* y, int n, int rows, \
            int cols, int row_bytes, int group) { \
        product<F>(w, scales, x, bias, y, n, rows, cols, row_bytes, group); \
    }
