// One pass over memory for each use of a gate. `kind`: 0 gelu_tanh, 1 gelu_erf, 2 silu, 3 relu, 4
// relu2. All kernels here: grid and block of one dimension, any grid, at most 256 threads; tensors
// start on 16 bytes; no shared memory.
#include "curves.cuh"

// h = f(gate) up for n elements. h may be gate or up.
extern "C" __global__ void __launch_bounds__(256, 4) gated_forward(const T* gate, const T* up, T* h,
    i64 n, int kind) {
    with_curve(kind, [=](auto curve) {
        auto step = [=](i64 i, auto gate, auto up) {
            auto out = pack_like<T>(gate);
            for (int k = 0; k < gate.N_ELEMENTS; k++) {
                out.v[k] = from_f32<T>(curve_value(curve, to_f32(gate.v[k])) * to_f32(up.v[k]));
            }
            store_pack(h + i, out);
        };
        elementwise<LANES, 1>(n, step, gate, up);
    });
}

// dgate = dh up f'(gate) and dup = dh f(gate) for n elements. The outputs may be any of the inputs.
extern "C" __global__ void __launch_bounds__(256, 4)
    gated_backward(const T* gate, const T* up, const T* dh, T* dgate, T* dup, i64 n, int kind) {
    with_curve(kind, [=](auto curve) {
        auto step = [=](i64 i, auto gate, auto up, auto dh) {
            auto out_gate = pack_like<T>(gate), out_up = pack_like<T>(gate);
            for (int k = 0; k < gate.N_ELEMENTS; k++) {
                float slope, value = curve.both(to_f32(gate.v[k]), slope), d = to_f32(dh.v[k]);
                out_gate.v[k] = from_f32<T>(d * to_f32(up.v[k]) * slope);
                out_up.v[k] = from_f32<T>(d * value);
            }
            store_pack(dgate + i, out_gate);
            store_pack(dup + i, out_up);
        };
        elementwise<LANES, 1>(n, step, gate, up, dh);
    });
}

// gated_backward, and in the same pass h = f(gate) up in the place of dh.
extern "C" __global__ void __launch_bounds__(256, 4)
    gated_backward_and_value(const T* gate, const T* up, T* dh_then_h, T* dgate, T* dup, i64 n,
        int kind) {
    with_curve(kind, [=](auto curve) {
        auto step = [=](i64 i, auto gate, auto up, auto dh) {
            auto out_gate = pack_like<T>(gate), out_up = pack_like<T>(gate), h = pack_like<T>(gate);
            for (int k = 0; k < gate.N_ELEMENTS; k++) {
                float slope, value = curve.both(to_f32(gate.v[k]), slope), u = to_f32(up.v[k]),
                    d = to_f32(dh.v[k]);
                out_gate.v[k] = from_f32<T>(d * u * slope);
                out_up.v[k] = from_f32<T>(d * value);
                h.v[k] = from_f32<T>(value * u);
            }
            store_pack(dgate + i, out_gate);
            store_pack(dup + i, out_up);
            store_pack(dh_then_h + i, h);
        };
        elementwise<LANES, 1>(n, step, gate, up, (const T*)dh_then_h);
    });
}
