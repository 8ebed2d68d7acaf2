// One pass over memory for each use of an activation. `kind`: 0 gelu_tanh, 1 gelu_erf, 2 silu, 3
// relu, 4 relu2. All kernels here: grid and block of one dimension, any grid, at most 256 threads;
// tensors start on 16 bytes; no shared memory.
#include "curves.cuh"

// y = f(x) for n elements. y may be x.
extern "C" __global__ void __launch_bounds__(256, 4) activation_forward(const T* x, T* y, i64 n,
    int kind) {
    with_curve(kind, [=](auto curve) {
        auto step = [=](i64 i, auto x) {
            auto out = pack_like<T>(x);
            for (int k = 0; k < x.N_ELEMENTS; k++)
                out.v[k] = from_f32<T>(curve_value(curve, to_f32(x.v[k])));
            store_pack(y + i, out);
        };
        elementwise<LANES, 2>(n, step, x);
    });
}

// dx (+)= dy f'(x) for n elements. dx may be dy or x.
extern "C" __global__ void __launch_bounds__(256, 4)
    activation_backward(const T* x, const T* dy, T* dx, i64 n, int kind, int accumulate) {
    with_curve(kind, [=](auto curve) {
        auto product = [=](auto x, auto dy, int k) {
            float slope;
            curve.both(to_f32(x.v[k]), slope);
            return to_f32(dy.v[k]) * slope;
        };
        if (accumulate) {
            auto step = [=](i64 i, auto x, auto dy, auto old) {
                auto out = pack_like<T>(x);
                for (int k = 0; k < x.N_ELEMENTS; k++)
                    out.v[k] = from_f32<T>(to_f32(old.v[k]) + product(x, dy, k));
                store_pack(dx + i, out);
            };
            elementwise<LANES, 1>(n, step, x, dy, (const T*)dx);
        } else {
            auto step = [=](i64 i, auto x, auto dy) {
                auto out = pack_like<T>(x);
                for (int k = 0; k < x.N_ELEMENTS; k++) out.v[k] = from_f32<T>(product(x, dy, k));
                store_pack(dx + i, out);
            };
            elementwise<LANES, 1>(n, step, x, dy);
        }
    });
}

// In one pass dx = dh f'(x), and f(x) in the place of dh, for n elements. dx may be x.
extern "C" __global__ void __launch_bounds__(256, 4)
    activation_backward_and_value(const T* x, T* dh_then_h, T* dx, i64 n, int kind) {
    with_curve(kind, [=](auto curve) {
        auto step = [=](i64 i, auto x, auto dh) {
            auto h = pack_like<T>(x), out = pack_like<T>(x);
            for (int k = 0; k < x.N_ELEMENTS; k++) {
                float slope, value = curve.both(to_f32(x.v[k]), slope);
                h.v[k] = from_f32<T>(value);
                out.v[k] = from_f32<T>(to_f32(dh.v[k]) * slope);
            }
            store_pack(dh_then_h + i, h);
            store_pack(dx + i, out);
        };
        elementwise<LANES, 1>(n, step, x, (const T*)dh_then_h);
    });
}
