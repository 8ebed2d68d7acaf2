// Writing into tensors that exist: scaled, added to, copied into at strides. Unless a kernel says
// otherwise: grid and block of one dimension, any grid, at most 256 threads, no shared memory;
// tensors start on 16 bytes.
#include "common.cuh"

template <int UNROLL>
DEVICE void scale_values(const T* x, T* y, i64 n, float factor) {
    auto step = [=](i64 i, auto x) {
        for (int k = 0; k < x.N_ELEMENTS; k++) x.v[k] = from_f32<T>(to_f32(x.v[k]) * factor);
        store_pack(y + i, x);
    };
    elementwise<LANES, UNROLL>(n, step, x);
}
// x *= factor for n elements.
extern "C" __global__ void __launch_bounds__(256, 4) scale_in_place(T* x, i64 n, float factor) {
    scale_values<4>(x, x, n, factor);
}
// x *= *factor * constant for n elements: a factor that was computed on the device.
extern "C" __global__ void __launch_bounds__(256, 4) scale_in_place_by(T* x, i64 n,
    const float* factor, float constant) {
    scale_values<4>(x, x, n, *factor * constant);
}

// dst += src for n elements.
extern "C" __global__ void __launch_bounds__(256, 4) add_assign(T* dst, const T* src, i64 n) {
    auto step = [=](i64 i, auto old, auto x) {
        for (int k = 0; k < x.N_ELEMENTS; k++)
            old.v[k] = from_f32<T>(to_f32(old.v[k]) + to_f32(x.v[k]));
        store_pack(dst + i, old);
    };
    elementwise<LANES, 2>(n, step, (const T*)dst, src);
}
// dst += src for n elements, dst in f32. Packs of 4: neighbouring threads touch neighbouring
// addresses on both sides.
extern "C" __global__ void __launch_bounds__(256, 4) add_assign_f32(float* dst, const T* src,
    i64 n) {
    auto step = [=](i64 i, auto old, auto x) {
        for (int k = 0; k < x.N_ELEMENTS; k++) old.v[k] += to_f32(x.v[k]);
        store_pack(dst + i, old);
    };
    elementwise<4, 2>(n, step, (const float*)dst, src);
}

// y += weight * (x - y) for n elements in f32. Each operation is rounded for itself, as on the CPU.
extern "C" __global__ void __launch_bounds__(256, 4) lerp(float* y, const float* x, i64 n,
    float weight) {
    auto step = [=](i64 i, auto old, auto x) {
        for (int k = 0; k < x.N_ELEMENTS; k++)
            old.v[k] = fmaf(weight, __fsub_rn(x.v[k], old.v[k]), old.v[k]);
        store_pack(y + i, old);
    };
    elementwise<4, 2>(n, step, (const float*)y, x);
}

// Strides and lengths in packs of N.
template <int N, class I>
DEVICE void copy_runs_by(const T* src, i64 src_stride, T* dst, i64 dst_stride, I n_packs, I len,
    bool accumulate) {
    auto from = [=](i64 i) { return src + ((i64)((I)i / len) * src_stride + (I)i % len) * N; };
    auto to = [=](i64 i) { return dst + ((i64)((I)i / len) * dst_stride + (I)i % len) * N; };
    if (!accumulate) return move_packs<N>(n_packs, from, to);
#pragma unroll 1
    for (i64 i = thread_index(); i < (i64)n_packs; i += n_threads()) {
        auto sum = load_pack<T, N>(to(i)), pack = load_pack<T, N>(from(i));
        for (int k = 0; k < N; k++) sum.v[k] = from_f32<T>(to_f32(sum.v[k]) + to_f32(pack.v[k]));
        store_pack(to(i), sum);
    }
}
// Copies n runs of `len` elements, or adds them to what is there: run i is at offset + i *
// stride on either side. In packs (at most 2^32) if lengths, offsets and strides are multiples of
// LANES. src and dst do not overlap; the stride of dst is at least len.
extern "C" __global__ void __launch_bounds__(256)
    copy_runs(const T* src, i64 src_offset, i64 src_stride, T* dst, i64 dst_offset, i64 dst_stride,
        i64 n, i64 len, int accumulate) {
    src += src_offset;
    dst += dst_offset;
    i64 total = n * len, small = (i64)1 << 32;
    if ((src_offset | src_stride | dst_offset | dst_stride | len) % LANES == 0) {
        i64 from_stride = src_stride / LANES, to_stride = dst_stride / LANES;
        copy_runs_by<LANES, u32>(src, from_stride, dst, to_stride, total / LANES, len / LANES,
            accumulate);
    } else if (total < small) {
        copy_runs_by<1, u32>(src, src_stride, dst, dst_stride, total, len, accumulate);
    } else {
        copy_runs_by<1, u64>(src, src_stride, dst, dst_stride, total, len, accumulate);
    }
}
