// How product.cuh brings segments of W and x to shared memory.
#pragma once
#include "product_formats.cuh"

#define ROWS 16
#define TOKENS 8
// Segments of a warp in shared memory: one being worked on, the others under way.
#define STAGES 2

// ---- Shared memory of a warp's segment: 16 rows, then x, then scales. ----

template <class F>
struct SegmentLayout {
    static constexpr int BYTES = F::SEGMENT / F::BLOCK * F::BYTES;
    // Copies of 16 bytes that hold a row's segment wherever it starts.
    static constexpr int COPIES = (BYTES + 16 - F::ALIGNED + 15) / 16;
    // An odd multiple of 16 puts the words of eight rows in different banks, and one of 64 those of
    // packs.
    static constexpr int STRIDE = F::PAD ? COPIES * 16 + F::PAD : 16 * (COPIES | 1);
    static constexpr int X_STRIDE = F::SEGMENT * (int)sizeof(T) + (F::NEAR ? 64 : 32);
    static constexpr int SCALES = F::SCALES ? ROWS * (F::SEGMENT / 32) * 4 : 0;
    static DEVICE int bytes(int n) { return ROWS * STRIDE + n * X_STRIDE + SCALES; }
};

// Copies N bytes without waiting; of 4 through the first-level cache.
template <int N>
DEVICE void copy(void* to, const void* from) {
#ifdef LEHR_EMULATED
    emu::copy_later(to, from, N, N);
#else
    u32 address = (u32)__cvta_generic_to_shared(to);
    if (N == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from)
            : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from)
        : "memory");
#endif
}
// Copies 16 bytes through the first-level cache, for what other warps read too.
DEVICE void copy_cached(void* to, const void* from) {
#ifdef LEHR_EMULATED
    emu::copy_later(to, from, 16, 16);
#else
    u32 address = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#endif
}
// Copies the first `n` of N bytes and writes zeros for the others; n may be negative or above N.
template <int N>
DEVICE void copy_part(void* to, const void* from, int n) {
    n = min(max(n, 0), N);
#ifdef LEHR_EMULATED
    emu::copy_later(to, from, n, N);
#else
    u32 address = (u32)__cvta_generic_to_shared(to);
    if (N == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
            "r"(n) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(from),
        "r"(n) : "memory");
#endif
}

// Copies segments of 16 rows of W, and of x, to shared memory; zeros stand for what lies outside.
// Lane 4 g + p copies packs of 16 bytes p, p + 4, .. of rows g and g + 8: 64 neighbouring bytes of
// a row at a time.
template <class F>
struct Copier {
    typedef SegmentLayout<F> L;
    static constexpr int STEPS = F::SEGMENT / 32;
    const u8* w;
    const float* scales;
    const T* x;
    int lane, first_row, n, rows, cols, row_bytes, row_scales, group_shift;

    DEVICE Copier(const u8* w, const float* scales, const T* x, int n, int rows, int cols,
        int row_bytes, int group)
        : w(w), scales(scales), x(x), n(n), rows(rows), cols(cols), row_bytes(row_bytes) {
        lane = threadIdx.x % WARP;
        first_row = blockIdx.x * ROWS;
        // Groups are a power of two, or a whole row.
        bool by_row = group >= cols;
        row_scales = by_row || !F::SCALES ? 1 : cols / group;
        group_shift = by_row ? 31 : __popc((u32)group - 1);
        this->w += (i64)(first_row + lane / 4) * row_bytes;
        this->scales += (i64)(first_row + lane / 8) * row_scales;
    }
    // Where in shared memory a row's segment starts: copies start on 16 bytes, rows need not.
    DEVICE int phase(int row, int segment) const {
        return F::ALIGNED == 16 ? 0
            : (int)(((u32)row * (u32)row_bytes + (u32)segment * (u32)L::BYTES) & 15);
    }
    DEVICE void weights(u8* to, int segment) const {
        int start = segment * L::BYTES, left = row_bytes - start;
        if (F::REALIGN && row_bytes % 16 != 0) {
            const u8* from = w - (i64)(lane / 4) * row_bytes + start;
            for (int r = 0; r < ROWS; r++, from += row_bytes) {
                int valid = first_row + r < rows ? left : 0;
                for (int i = lane; i < L::BYTES; i += WARP)
                    to[r * L::STRIDE + i] = i < valid ? from[i] : (u8)0;
            }
            return;
        }
        // With another row to follow, what is read past the end of these is in memory.
        if (left >= L::BYTES && first_row + ROWS < rows) two_rows<true>(to, start, left);
        else two_rows<false>(to, start, left);
    }
    template <bool INSIDE>
    DEVICE void two_rows(u8* to, int start, int left) const {
        to += lane / 4 * L::STRIDE + lane % 4 * 16;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u8* from = w + (half ? (i64)8 * row_bytes : 0) + start;
            int at = F::ALIGNED == 16 ? 0 : (int)((u64)from & 15), skip = lane % 4 * 16 - at;
            from += skip;
            int end = INSIDE || first_row + lane / 4 + 8 * half < rows ? min(left, L::BYTES) - skip
                : 0;
#pragma unroll
            for (int i = 0; i < L::COPIES; i += 4) {
                if (i + 4 > L::COPIES && lane % 4 >= L::COPIES - i) break;
                if (INSIDE) copy<16>(to + half * 8 * L::STRIDE + 16 * i, from + 16 * i);
                else copy_part<16>(to + half * 8 * L::STRIDE + 16 * i, from + 16 * i, end - 16 * i);
            }
        }
    }
    DEVICE void activations(u8* to, int segment) const {
        int first = segment * F::SEGMENT, left = cols - first;
        const T* from = x + first;
        if (!is_packed(cols)) {
            for (int t = 0; t < n; t++, from += cols, to += L::X_STRIDE)
                for (int c = lane; c < F::SEGMENT; c += WARP)
                    ((T*)to)[c] = c < left ? from[c] : from_f32<T>(0.0f);
            return;
        }
        from += lane * LANES;
        to += 16 * lane;
        if (left >= F::SEGMENT) {
            for (int t = 0; t < n; t++, from += cols, to += L::X_STRIDE)
                for_packs([&](int i) { copy_cached(to + 16 * i, from + i * LANES); });
        } else {
            for (int t = 0; t < n; t++, from += cols, to += L::X_STRIDE)
                for_packs([&](int i) { copy_part<16>(to + 16 * i, from + i * LANES,
                    (left - (lane + i) * LANES) * (int)sizeof(T)); });
        }
    }
    // The packs of a row of x that this lane copies.
    template <class Copy>
    DEVICE void for_packs(const Copy& copy) const {
        constexpr int N = F::SEGMENT / LANES;
#pragma unroll
        for (int i = 0; i < N; i += WARP)
            if (i + WARP <= N || lane < N - i) copy(i);
    }
    // Eight steps of four rows at a time.
    DEVICE void scales_of_steps(float* to, int segment) const {
        int column = segment * F::SEGMENT + lane % 8 * 32;
        const float* from = scales + (column >> group_shift);
#pragma unroll
        for (int i = 0; i < ROWS; i += 4) {
            bool valid = column < cols && first_row + lane / 8 + i < rows;
            copy_part<4>(to + 8 * i + lane, from, valid ? 4 : 0);
            from += 4 * row_scales;
        }
    }
    DEVICE void start(u8* to, int segment) const {
        weights(to, segment);
        activations(to + ROWS * L::STRIDE, segment);
        if constexpr (F::SCALES) {
            static_assert(STEPS == 8, "a lane for each step of four rows");
            scales_of_steps((float*)(to + ROWS * L::STRIDE + n * L::X_STRIDE), segment);
        }
    }
};
