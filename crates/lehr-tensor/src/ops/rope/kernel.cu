// Rotary position embedding: the table of cosines and sines, and the rotation.
#include "common.cuh"

// cos, sin [t, c] = amplitude * cos, sin(position * inv_freq[c % n_freq]), the angle in double.
// Columns below n_freq take their position from `a`, the others, n_freq more if `b` is given, from
// `b`. a, b [n] i32, b may be null; inv_freq [n_freq] double; cos, sin [n, n_freq or 2 n_freq] f32.
// Any one-dimensional grid and block.
extern "C" __global__ void rope_table(const int* a, const int* b, const double* inv_freq,
    float* cos, float* sin, double amplitude, int n, int n_freq) {
    const int width = b != nullptr ? 2 * n_freq : n_freq;
    for (i64 i = thread_index(); i < (i64)n * width; i += n_threads()) {
        const int token = (int)(i / width), column = (int)(i % width);
        const int position = column < n_freq ? a[token] : b[token];
        const double angle = position * inv_freq[column < n_freq ? column : column - n_freq];
        // sincos() needs a stack for huge angles. Here the angle less the nearest multiple of pi /
        // 2, which is taken off in three parts to keep all digits (Cody and Waite), goes to
        // sincospi(), which needs none.
        const double turns = rint(angle * 0.63661977236758134308);
        double rest = fma(-turns, 1.57079632679489655800e+00, angle);
        rest = fma(-turns, 6.12323399573676603587e-17, rest);
        rest = fma(-turns, -1.49738490485916983294e-33, rest);
        double s, c;
        sincospi(rest * 0.31830988618379067154, &s, &c);
        const int quarter = (int)((i64)turns & 3);
        const double sine = quarter % 2 ? c : s, cosine = quarter % 2 ? s : c;
        sin[i] = (float)((quarter >= 2 ? -sine : sine) * amplitude);
        cos[i] = (float)((quarter == 1 || quarter == 2 ? -cosine : cosine) * amplitude);
    }
}

// Which dimensions of a head form pairs, as in ops/rope/table.rs.
#define HALF_SPLIT 0
#define ADJACENT_PAIRS 1
#define TWO_HALVES 2
// Heads that one thread rotates: they share their cosines and sines.
#define HEADS 4

DEVICE void rotate_pair(float a, float b, float cos, float sin, float& first, float& second) {
    first = a * cos - b * sin;
    second = b * cos + a * sin;
}

// N elements of T in registers, 1 or LANES.
template <int N>
struct Held {
    typedef Bits type;
};
template <>
struct Held<1> {
    typedef T type;
};
DEVICE float element(T x, int) { return to_f32(x); }

// A unit of work is N dimensions twice, at `first` and `second`, of HEADS heads; behind the units
// that rotate come those that copy N dimensions.
template <int N>
DEVICE void rotate(const T* x, const float* cos, const float* sin, T* y, int n_tokens, int n_heads,
    int width, int half, int layout, float sign, int accumulate) {
    const u32 rotating = half / N, units = rotating + (width - 2 * half) / N,
        groups = (n_heads + HEADS - 1) / HEADS;
    const u32 n_work = (u32)n_tokens * groups * units;
    for (i64 work = thread_index(); work < n_work; work += n_threads()) {
        const u32 unit = (u32)work % units, rest = (u32)work / units;
        const u32 head = rest % groups * HEADS, token = rest / groups;
        const int heads = min(HEADS, n_heads - (int)head);
        const i64 start = ((i64)token * n_heads + head) * width;
        int first, second, column = unit * N;
        if (unit >= rotating) {
            first = second = 2 * half + (unit - rotating) * N;
        } else if (layout == ADJACENT_PAIRS && N == 1) {
            first = 2 * unit, second = first + 1;
        } else if (layout == TWO_HALVES) {
            first = column < half / 2 ? column : column + half / 2;
            second = first + half / 2;
        } else {
            first = column, second = column + half;
        }
        // Adjacent pairs in packs: the pack at `first` has the columns `first / 2 ..`, that at
        // `second` the columns `second / 2 ..`.
        const bool adjacent = N > 1 && layout == ADJACENT_PAIRS;
        float c[N], s[N];
        if (unit < rotating) {
            const int low = adjacent ? first / 2 : column,
                high = adjacent ? second / 2 : column + (N + 1) / 2;
            constexpr int H = (N + 1) / 2;
            const float *cos_row = cos + (i64)token * half, *sin_row = sin + (i64)token * half;
            Pack<float, H> cl = load_pack<float, H>(cos_row + low),
                sl = load_pack<float, H>(sin_row + low);
#pragma unroll
            for (int i = 0; i < H; i++) c[i] = cl.v[i], s[i] = sl.v[i] * sign;
            if (N > 1) {
                cl = load_pack<float, H>(cos_row + high), sl = load_pack<float, H>(sin_row + high);
#pragma unroll
                for (int i = 0; i < H; i++) c[N / 2 + i] = cl.v[i], s[N / 2 + i] = sl.v[i] * sign;
            }
        }
        typedef typename Held<N>::type Part;
        Part a[HEADS], b[HEADS];
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            if (h >= heads) break;
            a[h] = *(const Part*)(x + start + h * width + first);
            if (unit < rotating) b[h] = *(const Part*)(x + start + h * width + second);
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            if (h >= heads) break;
            T *to_first = y + start + h * width + first,
                *to_second = y + start + h * width + second;
            Part old_a = {}, old_b = {};
            if (accumulate) {
                old_a = *(const Part*)to_first;
                if (unit < rotating) old_b = *(const Part*)to_second;
            }
            if (unit >= rotating && !accumulate) {
                *(Part*)to_first = a[h];
                continue;
            }
            Pack<T, N> out_a, out_b;
            if (unit >= rotating) {
#pragma unroll
                for (int i = 0; i < N; i++)
                    out_a.v[i] = from_f32<T>(element(old_a, i) + element(a[h], i));
                store_pack(to_first, out_a);
                continue;
            }
            float ya[N], yb[N];
            if (adjacent) {
#pragma unroll
                for (int i = 0; i + 1 < N; i += 2) {
                    rotate_pair(element(a[h], i), element(a[h], i + 1), c[i / 2], s[i / 2], ya[i],
                        ya[i + 1]);
                    rotate_pair(element(b[h], i), element(b[h], i + 1), c[(N + i) / 2],
                        s[(N + i) / 2], yb[i], yb[i + 1]);
                }
            } else {
#pragma unroll
                for (int i = 0; i < N; i++)
                    rotate_pair(element(a[h], i), element(b[h], i), c[i], s[i], ya[i], yb[i]);
            }
#pragma unroll
            for (int i = 0; i < N; i++) {
                out_a.v[i] = from_f32<T>(element(old_a, i) + ya[i]);
                out_b.v[i] = from_f32<T>(element(old_b, i) + yb[i]);
            }
            store_pack(to_first, out_a);
            store_pack(to_second, out_b);
        }
    }
}

// y (+)= the heads of x rotated by the table's angles times `sign` (1 forward, -1 backward): a pair
// (a, b) of dimensions becomes (a cos - b sin, b cos + a sin), and dimensions from 2 half on pass
// through. `layout`, with E = width:
//   0: pair i is (i, half + i);
//   1: pair i is (2i, 2i + 1);
//   2: half-split in each half of the head, 2 half = E: (i, half / 2 + i) for i < half / 2, and the
//      same half dimensions further for the other columns.
// x, y [n_tokens, n_heads, width] T; cos, sin [n_tokens,
// half] f32. y may be x if accumulate = 0. Block 256, grid: ceil(n_tokens * ceil(n_heads / 4) *
// (width - half) / LANES / 256), or any other: its stride covers all. n_tokens * ceil(n_heads / 4)
// * (width - half) must be below 2^32.
extern "C" __global__ void __launch_bounds__(256) rope_rotate(const T* x, const float* cos,
    const float* sin, T* y, int n_tokens, int n_heads, int width, int half, int layout, float sign,
    int accumulate) {
    const int run = layout == TWO_HALVES ? half / 2 : half;
    if (is_packed(width) && is_packed(run)) {
        rotate<LANES>(x, cos, sin, y, n_tokens, n_heads, width, half, layout, sign, accumulate);
    } else {
        rotate<1>(x, cos, sin, y, n_tokens, n_heads, width, half, layout, sign, accumulate);
    }
}
