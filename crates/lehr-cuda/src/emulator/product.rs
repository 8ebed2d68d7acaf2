//! Matrix products of the emulator, in plain code.

use half::{bf16, f16};

use crate::blas::{Element, Epilogue, Matmul, Operand};
use crate::fault;
use lehr_kernels::Result;
use lehr_kernels::gemm::{Matrix, gemm};

/// Refuses products that cuBLASLt does not document: such a call is a mistake of the caller.
fn check(product: &Matmul) -> Result<()> {
    let &Matmul { m, n, k, a, b, c, accumulate, epilogue, batch } = product;
    let refuse = |rule: &str| Err(fault(format!("multiplying {product:?}"), rule));
    let is_whole = |n: &usize| n.is_multiple_of(16);
    if (a.element.size() == 1) != (b.element.size() == 1) {
        return refuse("both matrices have 8 bits or neither");
    }
    if a.element.size() == 1 {
        if a.transposed
            || !b.transposed
            || ![m, n, k, a.stride, b.stride, c.stride].iter().all(is_whole)
        {
            return refuse(
                "8-bit matrices lie along the inner dimension, with extents of multiples of 16",
            );
        }
        if [a, b].iter().all(|matrix| matrix.element == Element::E5M2)
            || a.scale == 0
            || b.scale == 0
        {
            return refuse("one of two 8-bit matrices is e4m3, and both have scales");
        }
    }
    let with_8_bits = a.element.size() == 1;
    match epilogue {
        Epilogue::Bias(_) if with_8_bits && c.element != Element::BF16 => {
            refuse("the bias of an 8-bit product has 16 bits")
        }
        Epilogue::Gelu { .. } | Epilogue::GeluSlope { .. }
            if with_8_bits || batch > 1 || accumulate =>
        {
            refuse("a GELU is of one product of 16 bits that is not added to anything")
        }
        Epilogue::Gelu { aux, .. } | Epilogue::GeluSlope { aux }
            if c.element == Element::F32
                || !c.stride.is_multiple_of(8)
                || !aux.is_multiple_of(16) =>
        {
            refuse("the matrix beside the result has 16-bit elements in rows of whole packs")
        }
        _ => Ok(()),
    }
}

pub(super) fn matmul(product: &Matmul) -> Result<()> {
    check(product)?;
    let &Matmul { m, n, k, batch, .. } = product;
    for index in 0..batch {
        let a = read(&product.a, (m, k), index);
        let b = read(&product.b, (k, n), index);
        let mut c = vec![0.0; m * n];
        if product.accumulate {
            c = read(&product.c, (m, n), index);
        }
        let rows = Matrix::rows;
        gemm((m, n, k), rows(&a, k), rows(&b, n), &mut c, n, product.accumulate, None)?;
        finish(product, index, &mut c);
        write(&product.c, (m, n), index, &c);
    }
    Ok(())
}

/// Applies the epilogue to the sums.
fn finish(product: &Matmul, index: usize, c: &mut [f32]) {
    let &Matmul { m, n, .. } = product;
    let mut add = |bias| {
        let bias = read(&Operand::rows(bias, product.c.element, n), (1, n), 0);
        for row in c.chunks_exact_mut(n) {
            row.iter_mut().zip(&bias).for_each(|(c, b)| *c += b);
        }
    };
    let beside = |aux| Operand { ptr: aux, ..product.c };
    match product.epilogue {
        Epilogue::None => (),
        Epilogue::Bias(bias) => add(bias),
        Epilogue::Gelu { bias, aux } => {
            bias.map(&mut add);
            write(&beside(aux), (m, n), index, c);
            c.iter_mut().for_each(|c| *c = gelu_tanh(*c).0);
        }
        Epilogue::GeluSlope { aux } => {
            let x = read(&beside(aux), (m, n), index);
            c.iter_mut().zip(&x).for_each(|(c, x)| *c *= gelu_tanh(*x).1);
        }
    }
}

/// `x (1 + tanh u) / 2` for `u = √(2/π) (x + 0.044715 x³)`, and its derivative.
fn gelu_tanh(x: f32) -> (f32, f32) {
    let (x, scale, cubic) = (f64::from(x), (2.0 / std::f64::consts::PI).sqrt(), 0.044_715);
    let tanh = (scale * (x + cubic * x * x * x)).tanh();
    let inner_slope = scale * (1.0 + 3.0 * cubic * x * x);
    let slope = 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_slope;
    ((0.5 * x * (1.0 + tanh)) as f32, slope as f32)
}

/// The upper half of an f16.
fn e5m2(code: u8) -> f32 {
    f16::from_bits(u16::from(code) << 8).to_f32()
}

/// Without infinities; the largest code is NaN.
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    if code < 128 { size } else { -size }
}

/// Address of element (row, column) of a stored matrix.
fn address(operand: &Operand, row: usize, column: usize, batch: usize) -> u64 {
    let (row, column) = if operand.transposed { (column, row) } else { (row, column) };
    let index = batch * operand.batch_stride + row * operand.stride + column;
    operand.ptr + (index * operand.element.size()) as u64
}

/// A matrix `[rows, columns]`, row-major, as f32.
fn read(operand: &Operand, (rows, columns): (usize, usize), batch: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * columns);
    let scale = match operand.scale {
        0 => 1.0,
        // SAFETY: the address of an f32 in a live block, as all addresses the host's.
        at => unsafe { (at as *const f32).read_unaligned() },
    };
    for row in 0..rows {
        for column in 0..columns {
            let at = address(operand, row, column, batch);
            // SAFETY: the operand lies within a live block, whose addresses are the host's.
            out.push(unsafe {
                match operand.element {
                    Element::F32 => (at as *const f32).read_unaligned(),
                    Element::BF16 => (at as *const bf16).read_unaligned().to_f32(),
                    Element::F16 => (at as *const f16).read_unaligned().to_f32(),
                    Element::E4M3 => scale * e4m3((at as *const u8).read()),
                    Element::E5M2 => scale * e5m2((at as *const u8).read()),
                }
            });
        }
    }
    out
}

fn write(operand: &Operand, (rows, columns): (usize, usize), batch: usize, values: &[f32]) {
    for row in 0..rows {
        for column in 0..columns {
            let (at, value) =
                (address(operand, row, column, batch), values[row * columns + column]);
            // SAFETY: as above.
            unsafe {
                match operand.element {
                    Element::F32 => (at as *mut f32).write_unaligned(value),
                    Element::BF16 => (at as *mut bf16).write_unaligned(bf16::from_f32(value)),
                    Element::F16 => (at as *mut f16).write_unaligned(f16::from_f32(value)),
                    // No product writes 8 bits.
                    Element::E4M3 | Element::E5M2 => (),
                }
            }
        }
    }
}
